"""Reading a run's tables: as pandas frames, damaged parts passed over and named."""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tune_lung.errors import InputError
from tune_lung.printable import in_one_line
from tune_lung.results.layout import TABLES, RunPaths
from tune_lung.results.ledger import read_manifest
from tune_lung.results.manifest import note_of_other_numbers
from tune_lung.results.parts import read_parts
from tune_lung.results.ranking import leading_cell
from tune_lung.results.row_rules import has_good_rows, trials_of
from tune_lung.results.schema import SCHEMA_VERSION, table_schema
from tune_lung.space import Cell, SearchSpace

_MOST_LETTERS = 200
"""Of a run's name; a folder's has no more than 255 bytes."""
_NULLABLE = {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """One run as it was read."""

    paths: RunPaths
    """Where it lies."""
    manifest: dict[str, Any]
    """What it is."""
    trials: pd.DataFrame
    """One row per trial."""
    epochs: pd.DataFrame
    """One row per trial and epoch."""
    decisions: pd.DataFrame
    """One row per trial and rung."""
    images: pd.DataFrame
    """One row per file found."""
    predictions: pd.DataFrame
    """One row per tested trial and test image."""
    validation_predictions: pd.DataFrame
    """One row per trial and validation image."""
    explanations: pd.DataFrame
    """One row per explained prediction."""
    profile: pd.DataFrame
    """One row per trial, epoch and part of its time, and the run's own; empty unless the search was asked for it."""
    damaged: tuple[str, ...]
    """Parts that could not be read, such as `epochs/3f2a.parquet`."""
    foreign: tuple[str, ...] = ()
    """Files among the parts that are none of the run, such as `epochs/3f2a (conflicted copy).parquet`: they are left alone."""

    def __repr__(self) -> str:
        """Say in a line what it is and how far it came."""
        trials = f"{len(self.trials)} trials" if len(self.trials) != 1 else "1 trial"
        best = self._leading_cell()
        told = [str(self.manifest["status"]), trials, *([] if best is None else [f"best cell '{in_one_line(best)}'"])]
        return f"<Run '{self.name}': {', '.join(told)}{'; synthetic X-rays' if self.synthetic else ''}>"

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.paths.root

    def cells(self) -> tuple[Cell, ...]:
        """Enumerate the cells of the run's space; none where another version wrote it, then the trials alone tell their cells."""
        try:
            return SearchSpace.from_json(self.manifest["space"]).cells()
        except InputError:
            return ()

    @property
    def best_cell(self) -> str:
        """The cell whose best point has the highest selection score on validation, as the mean of its repeats.

        Raises:
            InputError: No trial has one.
        """
        best = self._leading_cell()
        if best is None:
            raise InputError(f"No trial of '{self.name}' has a selection score, so that no cell is the best.")
        return best

    def _leading_cell(self) -> str | None:
        return leading_cell(self.trials, [cell.name for cell in self.cells()])

    @property
    def name(self) -> str:
        """The run's name, as it may be shown."""
        return in_one_line(self.manifest["name"], most=_MOST_LETTERS)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of the network's outputs."""
        return tuple(self.manifest["data"]["classes"])

    @property
    def synthetic(self) -> bool:
        """Whether the images are phantoms: its numbers say nothing of medicine."""
        return bool(self.manifest["data"]["synthetic"])

    @property
    def notes_of_numbers(self) -> list[str]:
        """Say, where not all trials were computed alike, that they were not; every report tells it."""
        note = note_of_other_numbers(self.manifest)
        return [] if note is None else [note]


def read_run(root: Path, *, only: Container[str] = TABLES) -> Run:
    """Read a run, finished or not.

    Args:
        root: The run's folder.
        only: Tables to read; the others come without rows.

    Returns:
        The run; a part that cannot be read is left out and named in `damaged`, a file that is no part of it in `foreign`.

    Raises:
        InputError: The folder is no run, its manifest is damaged, or a newer version wrote it.
    """
    paths = RunPaths(Path(root))
    damaged: list[str] = []
    manifest = read_manifest(paths, damaged)
    if manifest["schema_version"] > SCHEMA_VERSION:
        raise InputError(
            f"'{root}' was written by a newer tune_lung (tables of version {manifest['schema_version']}, this one reads up to"
            f" {SCHEMA_VERSION}). Update tune_lung."
        )
    classes = manifest["data"]["classes"]
    tables = {name: _read_table(name, paths.parts(name) if name in only else [], classes, damaged) for name in TABLES}
    foreign = tuple(f"{name}/{path.name}" for name in TABLES if name in only for path in paths.foreign_parts(name))
    return Run(paths=paths, manifest=manifest, damaged=tuple(damaged), foreign=foreign, **tables)


def plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Turn a table's rows into plain values by column name, moments among them; what is null is left out."""
    rows = [{str(name): _plain(value) for name, value in row.items()} for row in frame.to_dict("records")]
    return [{name: value for name, value in row.items() if isinstance(value, list) or not pd.isna(value)} for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.to_pydatetime() if isinstance(value, pd.Timestamp) else value


def in_order_of_proposal(trials: pd.DataFrame) -> list[dict[str, Any]]:
    """List the rows of a table `trials`, as `plain_rows` gives them, in the order in which the trials were proposed.

    Trials of runs that did not note it come last, by their ids.
    """
    return sorted(plain_rows(trials), key=lambda row: (row.get("proposed_order", math.inf), row["trial_id"]))


def _read_table(name: str, parts_found: Sequence[Path], classes: Sequence[str], damaged: list[str]) -> pd.DataFrame:
    schema = table_schema(name, classes)
    table, bad = read_parts(parts_found, schema)
    if not has_good_rows(name, table, classes):  # all at once, for that is cheap; which part it is matters only now
        found = {path: read_parts([path], schema)[0] for path in parts_found if path not in bad}
        for path in _bad_parts(name, found, classes):
            bad.append(path)
            del found[path]
        table = pa.concat_tables([schema.empty_table(), *found.values()])
    damaged += [f"{name}/{path.name}" for path in bad]
    frame: pd.DataFrame = _ordered(table).to_pandas(types_mapper=_NULLABLE.get)
    return frame


def _bad_parts(name: str, found: Mapping[Path, pa.Table], classes: Sequence[str]) -> list[Path]:
    """List the parts with rows that no search writes, and of several with rows of one trial, such as copies, all but one."""
    bad = [path for path, rows in found.items() if not has_good_rows(name, rows, classes)]
    trials = {path: trials_of(name, rows) for path, rows in found.items() if path not in bad}
    seen: set[str] = set()
    for path in sorted(trials, key=lambda path: (path.stem not in trials[path], path.name)):
        if not seen.isdisjoint(trials[path]):
            bad.append(path)
        seen.update(trials[path])
    return bad


def _ordered(table: pa.Table) -> pa.Table:
    """Order rows: decisions as they were taken; others by trial, those of one as they were written.

    Which trials share a part is an accident.
    """
    order = next((name for name in ("decision", "trial_id") if name in table.column_names), None)
    return table if order is None else table.take(pc.sort_indices(table[order]))
