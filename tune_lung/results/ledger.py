"""Writing a run's tables: whole files, checked against the schema.

The driver is the only writer of a run, but for `validation_predictions/<trial_id>.parquet`, which the trial's worker
writes. The tables that grow with every trial and epoch lie in parts that a few trials share (`tune_lung.results.parts`);
predictions and explanations, many rows each, in a part per trial.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pandas as pd
import pyarrow as pa

from tune_lung.errors import InputError
from tune_lung.files import (
    CheckWriter,
    anyone_may_write,
    read_json_with_digest,
    set_aside,
    write_json_with_digest,
)
from tune_lung.results.layout import TABLES, RunPaths
from tune_lung.results.manifest import MOST_MANIFEST_BYTES, require_manifest
from tune_lung.results.parts import DamagedPartError, SharedParts, bring_up_to_date, read_part, write_part
from tune_lung.results.schema import ALLOWED_WORDS, table_schema
from tune_lung.shapes import WrongShapeError

_log = logging.getLogger(__name__)

Row = Mapping[str, Any]
"""Values by column name; a missing column is null."""


class Ledger:
    """The tables and the manifest of one run, for writing."""

    def __init__(self, root: Path, *, check_writer: CheckWriter = anyone_may_write) -> None:
        """Point at a run; nothing is read or written yet.

        Args:
            root: The run's folder.
            check_writer: Raises when this process must not write to the run any more; called before each file, and before
                it takes its place.
        """
        self.paths = RunPaths(Path(root))
        self.check_writer = check_writer
        self._shared_parts: dict[str, SharedParts] = {}

    @classmethod
    def create(cls, root: Path, manifest: Mapping[str, Any]) -> Self:
        """Start a new run: every table readable at once, without rows.

        Args:
            root: The run's folder; it must not exist, or be empty.
            manifest: The manifest; `data.classes` must be known.

        Raises:
            InputError: The folder holds something already.
        """
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise InputError(f"The run folder '{root.name}' exists already. Choose another --name or remove it.")
        ledger = cls(root)
        ledger.begin(manifest)
        return ledger

    @classmethod
    def open(cls, root: Path, *, damaged: Iterable[str] = (), check_writer: CheckWriter = anyone_may_write) -> Self:
        """Go on with a run that exists.

        Args:
            root: The run's folder.
            damaged: Parts that a reader passed over, such as `epochs/3f2a.parquet`: they are set aside under hidden names.
            check_writer: Raises when this process must not write to the run any more.

        Raises:
            InputError: The folder is no run.
        """
        ledger = cls(root, check_writer=check_writer)
        ledger.read_manifest()
        for name in damaged:
            table, _, part = name.partition("/")
            if part:
                path = ledger.paths.table(table) / part
                check_writer()
                set_aside(path, ledger.paths.damaged_part(table, path.stem))
        for table in TABLES:
            if not ledger._is_whole(table, ledger.paths.schema_part(table).stem):
                ledger._write_part(ledger.paths.schema_part(table), ledger._schema(table).empty_table())
            for found in ledger.paths.parts(table):
                bring_up_to_date(found, ledger._schema(table), check_writer=check_writer)
        return ledger

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Write what every run has from its beginning: each table without rows, and the manifest.

        Args:
            manifest: The manifest; `data.classes` must be known.
        """
        classes = tuple(manifest["data"]["classes"])
        for table in TABLES:
            self._write_part(self.paths.schema_part(table), table_schema(table, classes).empty_table())
        self.write_manifest(manifest)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The run's classes, in the order of the network's outputs."""
        return tuple(self.read_manifest()["data"]["classes"])

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest.

        Args:
            manifest: JSON values only; no host name, no absolute path.
        """
        for path in (self.paths.manifest, self.paths.manifest_copy):
            write_json_with_digest(path, manifest, check_writer=self.check_writer)

    def read_manifest(self) -> dict[str, Any]:
        """Read the manifest.

        Raises:
            InputError: The folder is no run, or its manifest is damaged.
        """
        return read_manifest(self.paths)

    def write_images(self, images: pd.DataFrame) -> None:
        """Replace the table of images: one row per file found, those left out included."""
        self._write_frame("images", "images", images)

    def write_trial(self, row: Row) -> None:
        """Replace one trial's row.

        Raises:
            ValueError: A column is unknown or a value has the wrong type; so for every other table.
        """
        self._replace("trials", row["trial_id"], [row])

    def write_epochs(self, trial_id: str, rows: Iterable[Row]) -> None:
        """Replace one trial's epochs; each row gets the trial's id."""
        self._replace("epochs", trial_id, [{**row, "trial_id": trial_id} for row in rows])

    def write_decisions(self, rows: Iterable[Row]) -> None:
        """Replace the decisions about every trial that the rows name."""
        rows_by_trial: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            rows_by_trial[row["trial_id"]].append(row)
        for trial_id, own in rows_by_trial.items():
            self._replace("decisions", trial_id, own)

    def write_explanations(self, trial_id: str, rows: Iterable[Row]) -> None:
        """Replace one trial's explanations; each row gets the trial's id."""
        explanations = self._checked("explanations", [{**row, "trial_id": trial_id} for row in rows])
        self._write_part(self.paths.part("explanations", trial_id), explanations)

    def write_profile(self, trial_id: str, rows: Iterable[Row]) -> None:
        """Replace where one trial's time went; each row gets the trial's id."""
        self._replace("profile", trial_id, [{**row, "trial_id": trial_id} for row in rows])

    def write_run_profile(self, rows: Iterable[Row]) -> None:
        """Replace where the run's own time went."""
        self._write_part(self.paths.part("profile", "run"), self._checked("profile", list(rows)))

    def write_predictions(self, trial_id: str, predictions: pd.DataFrame) -> None:
        """Replace one trial's predictions on test.

        Args:
            trial_id: The trial.
            predictions: Columns `image_id`, `label` (the class's name) and one `p_<class>` per class.
        """
        self._write_frame("predictions", trial_id, predictions.assign(trial_id=trial_id))

    def has_predictions(self, trial_id: str) -> bool:
        """Whether a trial's predictions on test are there and whole."""
        return self._is_whole("predictions", trial_id)

    def has_images(self) -> bool:
        """Whether the table of images is there and whole."""
        return self._is_whole("images", "images")

    def _is_whole(self, table: str, part: str) -> bool:
        try:
            read_part(self.paths.part(table, part), self._schema(table))
        except (DamagedPartError, OSError):
            return False
        return True

    def write_validation_predictions(self, trial_id: str, predictions: pd.DataFrame) -> None:
        """Replace one trial's predictions on validation at its kept epoch; columns as in `write_predictions`."""
        self._write_frame("validation_predictions", trial_id, predictions.assign(trial_id=trial_id))

    def _replace(self, table: str, trial_id: str, rows: list[Row]) -> None:
        checked = self._checked(table, rows)
        if table not in self._shared_parts:
            self._shared_parts[table] = SharedParts(self.paths, table, self._schema(table), check_writer=self.check_writer)
        self._shared_parts[table].replace(trial_id, checked)

    def _checked(self, table: str, rows: list[Row]) -> pa.Table:
        schema = self._schema(table)
        for row in rows:
            _check_columns(table, row, schema)
        return _table_of(table, [_with_nulls(row) for row in rows], schema)

    def _write_frame(self, table: str, part: str, frame: pd.DataFrame) -> None:
        schema = self._schema(table)
        _check_columns(table, frame.columns, schema)
        complete = frame.reindex(columns=schema.names)
        self._write_part(self.paths.part(table, part), _table_of(table, complete, schema))

    def _write_part(self, path: Path, table: pa.Table) -> None:
        write_part(path, table, check_writer=self.check_writer)

    def _schema(self, table: str) -> pa.Schema:
        return table_schema(table, self.classes)


def read_manifest(paths: RunPaths, damaged: list[str] | None = None) -> dict[str, Any]:
    """Read a run's manifest, digest and shape verified; from its copy where its own file is damaged.

    Args:
        paths: The run's paths.
        damaged: Takes the name of the file that was passed over; None logs it.

    Returns:
        What it says; of a newer version's manifest only that it is one.

    Raises:
        InputError: The folder is no run, or its manifest and the copy are damaged.
    """
    try:
        return _verified(paths.manifest)
    except (FileNotFoundError, NotADirectoryError) as error:
        problem = InputError(f"'{paths.root}' is no run: it holds no run.json. Give a folder that tune_lung.search wrote.")
        problem.__cause__ = error
    except WrongShapeError as error:
        said = "lacks what a run must say" if error.is_lacking else "says what no run says"
        problem = InputError(f"The run.json of '{paths.root}' {said} ({error}).")
        problem.__cause__ = error
    except (ValueError, OSError) as error:
        problem = InputError(f"The run.json of '{paths.root}' cannot be read ({type(error).__name__}).")
        problem.__cause__ = error
    try:
        manifest = _verified(paths.manifest_copy)
    except (ValueError, OSError):
        raise problem from problem.__cause__
    if damaged is None:
        _log.warning("run.json is damaged; its copy is used.")
    else:
        damaged.append(paths.manifest.name)
    return manifest


def _verified(path: Path) -> dict[str, Any]:
    """Read one file of the manifest.

    Raises:
        WrongShapeError: It does not say what every manifest says.
        ValueError: It is not what was written.
        OSError: It is not there, or the disk does not give it.
    """
    manifest = read_json_with_digest(path, most_bytes=MOST_MANIFEST_BYTES)
    require_manifest(manifest)
    return manifest


def _check_columns(table: str, columns: Iterable[str], schema: pa.Schema) -> None:
    unknown = sorted(set(columns) - set(schema.names))
    if unknown:
        raise ValueError(f"The table {table} has no column {', '.join(unknown)}; it has {', '.join(schema.names)}.")


def _with_nulls(row: Row) -> dict[str, Any]:
    for name, words in ALLOWED_WORDS.items():
        if row.get(name) is not None:
            words(row[name])  # raises a ValueError for another word
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}


def _table_of(table: str, values: list[dict[str, Any]] | pd.DataFrame, schema: pa.Schema) -> pa.Table:
    try:
        if isinstance(values, pd.DataFrame):
            return pa.Table.from_pandas(values, schema=schema, preserve_index=False).replace_schema_metadata(schema.metadata)
        return pa.Table.from_pylist(values, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"A value does not fit its column of the table {table}: {error}") from error
