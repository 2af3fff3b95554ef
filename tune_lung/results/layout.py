"""Where every file of a run lies: the one place that knows the names, and that nothing is written through a link."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from tune_lung.errors import InputError

KeepName: TypeAlias = Literal["leaders", "best", "all"]
KEEPS: tuple[KeepName, ...] = get_args(KeepName)
"""Which checkpoints stay: the leaders' networks, every trial's best network, or all with what training goes on from."""
DEFAULT_KEEP: KeepName = "leaders"

TABLES = ("trials", "epochs", "decisions", "images", "predictions", "validation_predictions", "explanations", "profile")
"""The ledger's tables, each a folder of Parquet parts."""

TRACKERS = ("tensorboard", "mlflow", "wandb")
"""Other tools that keep files in a run, each in a folder of its name."""

PART_NAME = re.compile(r"[A-Za-z0-9_]+")
"""What may name a part of a table, and so a trial: what synchronisers call their copies of a file is none."""


@dataclass(frozen=True)
class RunPaths:
    """The paths of one run; nothing is written here."""

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
        """Who writes the run, as earlier versions said it: one file for all attempts."""
        return self.root / ".owner.json"

    def owner(self, attempt: int) -> Path:
        """Return who writes the run in one attempt: see `tune_lung.results.ownership`."""
        return self.root / f".owner-{attempt}.json"

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
            part: What the part holds, such as a trial's id: letters, digits and `_`.

        Raises:
            ValueError: There is no such table, or the part cannot be a file's name.
        """
        if not PART_NAME.fullmatch(part):
            raise ValueError(f"{part!r} cannot name a part of the table {table}: use letters, digits and '_'.")
        return self.table(table) / f"{part}.parquet"

    def schema_part(self, table: str) -> Path:
        """Return the part without rows that makes an empty table readable."""
        return self.part(table, "schema")

    def damaged_part(self, table: str, part: str) -> Path:
        """Return where a damaged part is kept once its trials are written anew; readers of the folder pass it over."""
        return self.table(table) / f".{part}.damaged"

    def parts(self, table: str) -> list[Path]:
        """List the Parquet files of a table in the order of their names, unfinished ones left out."""
        return sorted(path for path in self.table(table).glob("*.parquet") if PART_NAME.fullmatch(path.stem))

    def foreign_parts(self, table: str) -> list[Path]:
        """List the Parquet files in a table's folder that bear no part's name, such as a synchroniser's copies of parts."""
        named = (path for path in self.table(table).glob("*.parquet") if not path.name.startswith("."))
        return sorted(path for path in named if not PART_NAME.fullmatch(path.stem))

    @property
    def all_checkpoints(self) -> Path:
        """The folder of every trial's checkpoints."""
        return self.root / "checkpoints"

    def checkpoints(self, trial_id: str) -> Path:
        """Return the folder of one trial's checkpoints."""
        return self.all_checkpoints / trial_id

    @property
    def frozen_parts(self) -> Path:
        """The folder of what networks leave out, by digest: trials share it."""
        return self.root / "frozen"

    def figure(self, name: str) -> Path:
        """Return the image file of one figure, such as `figure4`."""
        return self.figures / f"{name}.png"

    def refuse_links_to(self, *files: Path) -> None:
        """Refuse files of the run that a link in it leads to: what is read through one may lie anywhere.

        Args:
            files: Paths below the run's folder.

        Raises:
            InputError: One of them, or a folder on the way to it, is a link.
        """
        for file in files:
            for path in (file, *file.parents):
                if path == self.root:
                    break
                if path.is_symlink():
                    raise InputError(
                        f"'{path.relative_to(self.root)}' in the run '{self.root.name}' is a link, and nothing is read through"
                        " links. Put what it leads to in its place."
                    )

    def refuse_links(self, name: str = "") -> None:
        """Refuse a run in which there is a link: what is written through it would lie elsewhere.

        The run's own folder may be reached by a link, which is the user's word. What a tracker keeps of its own may hold links
        that stay in the run, such as W&B's to its latest log.

        Args:
            name: The one file or folder of the run to look at; none for all.

        Raises:
            InputError: There is one.
        """
        for path in (link for top in ([self.root / name] if name else self.root.iterdir()) for link in _links_in(top)):
            relative = path.relative_to(self.root)
            if not _is_trackers_own(relative, path.readlink()):
                raise InputError(
                    f"'{relative}' in the run '{self.root.name}' is a link, and nothing is written through links. Put what it"
                    " leads to in its place, or remove it."
                )


def _links_in(path: Path) -> Iterator[Path]:
    """Give a path where it is a link, else the links in it at any depth; none is followed."""
    if path.is_symlink():
        yield path
        return
    for folder, folders, files in os.walk(path):
        yield from (found for found in (Path(folder, name) for name in (*folders, *files)) if found.is_symlink())


def _is_trackers_own(link: Path, target: Path) -> bool:
    """Whether a tracker made a link in a trial's folder of its own, to something below it."""
    return link.parts[0] in TRACKERS and len(link.parts) > 2 and not target.is_absolute() and ".." not in target.parts
