"""Where every file of a run lies: the one place that knows the names."""

import re
from dataclasses import dataclass
from pathlib import Path

TABLES = ("trials", "epochs", "decisions", "images", "predictions", "validation_predictions", "explanations", "profile")
"""The ledger's tables, each a folder of Parquet parts."""

PART_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""What may name a part of a table, and so a trial."""


@dataclass(frozen=True)
class RunPaths:
    """The paths of one run; nothing is read or written here."""

    root: Path
    """The run's own folder."""

    @property
    def manifest(self) -> Path:
        """The JSON file that says what the run is; a folder without it is no run."""
        return self.root / "run.json"

    @property
    def manifest_copy(self) -> Path:
        """The manifest once more, for when its file is damaged."""
        return self.root / ".run.json.copy"

    @property
    def ownership(self) -> Path:
        """Who writes the run now: see `tune_lung.results.ownership`."""
        return self.root / ".owner.json"

    @property
    def lock(self) -> Path:
        """The file that the run's driver keeps locked."""
        return self.root / ".lock"

    @property
    def lessons(self) -> Path:
        """What the search was taught of an earlier run, so that it can go on without that one."""
        return self.root / "warm_start.json"

    @property
    def figures(self) -> Path:
        """The folder of figures."""
        return self.root / "figures"

    def table(self, name: str) -> Path:
        """Return the folder of one table.

        Raises:
            ValueError: There is no such table.
        """
        if name not in TABLES:
            raise ValueError(f"The ledger has no table {name!r}; it has {', '.join(TABLES)}.")
        return self.root / name

    def part(self, table: str, part: str) -> Path:
        """Return one Parquet file of a table.

        Args:
            table: The table's name.
            part: What the part holds, such as a trial's id: letters, digits, `_`, `-` and `.`, no `.` or `-` in front.

        Raises:
            ValueError: There is no such table, or the part cannot be a file's name.
        """
        if not PART_NAME.fullmatch(part):
            raise ValueError(f"{part!r} cannot name a part of the table {table}: use letters, digits, '_', '-' and '.'.")
        return self.table(table) / f"{part}.parquet"

    def schema_part(self, table: str) -> Path:
        """Return the part without rows that makes an empty table readable."""
        return self.part(table, "schema")

    def damaged_part(self, table: str, part: str) -> Path:
        """Return where a damaged part is kept once its trials are written anew; readers of the folder pass it over."""
        return self.table(table) / f".{part}.damaged"

    def parts(self, table: str) -> list[Path]:
        """List the Parquet files of a table in the order of their names, unfinished ones left out."""
        return sorted(path for path in self.table(table).glob("*.parquet") if not path.name.startswith("."))

    def checkpoints(self, trial_id: str) -> Path:
        """Return the folder of one trial's checkpoints."""
        return self.root / "checkpoints" / trial_id

    def figure(self, name: str) -> Path:
        """Return the image file of one figure, such as `figure4`."""
        return self.figures / f"{name}.png"
