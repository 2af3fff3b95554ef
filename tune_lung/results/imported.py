"""What another tool recorded, as a run of our own: what its source does not say stays null."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_lung.config import FIELD_TYPES, Point, RunConfig, TrialConfig, checked_value, model_of, point_id
from tune_lung.errors import InputError, shortened
from tune_lung.families.family import PointValue
from tune_lung.metrics import columns_on_validation
from tune_lung.results.beginning import MOST_NAME_BYTES, begin_run, require_free
from tune_lung.results.ledger import Ledger, Row
from tune_lung.results.manifest import DataFacts, SearchFacts, new_manifest, require_manifest
from tune_lung.results.parts import DamagedPartError, read_part
from tune_lung.results.row_rules import require_rows
from tune_lung.results.schema import StopReason, TrialStatus, table_schema
from tune_lung.space import Arm, Choice, SampledAxis, SearchSpace, Uniform
from tune_lung.strategy import Strategy

_NEVER_AN_AXIS = ("model", "max_epochs")


@dataclass(frozen=True, kw_only=True)
class RecordedTrial:
    """One trial as the ledger takes it."""

    row: Row
    """Its row of the table `trials`."""
    epochs: tuple[Row, ...]
    """Its rows of the table `epochs`, without its id."""


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run read from elsewhere."""

    manifest: Mapping[str, Any]
    """What it is."""
    trials: tuple[RecordedTrial, ...]
    """Its trials."""
    notes: tuple[str, ...] = ()
    """What was left out or ignored, a line each."""


@dataclass(frozen=True, kw_only=True)
class ForeignTrial:
    """A trial of a search that was not ours."""

    name: str
    """What its source calls it; unique there."""
    params: Mapping[str, Any]
    """What was tried, under the source's names."""
    status: TrialStatus
    """How it ended."""
    score: float | None = None
    """What it is ranked by, more is better; None takes the best epoch's."""
    measured: Row
    """Columns of `trials` that its source measured under the same names."""
    epochs: tuple[Row, ...]
    """Rows of `epochs`, rising, each with `epoch` and as much else as is known."""


@dataclass(frozen=True, kw_only=True)
class ForeignSearch:
    """A search that was not ours."""

    name: str
    """What its source calls it."""
    source: str
    """Kind of source, such as `Optuna study`."""
    trials: tuple[ForeignTrial, ...]
    """Its ended trials."""
    axes: Mapping[str, SampledAxis]
    """Where fields were drawn from, as far as the source says it."""
    select_by: str
    """What the score is made of, in the source's words."""
    started_utc: str | None
    """When it began, ISO 8601; None where nothing says it."""
    notes: tuple[str, ...] = ()
    """What was left out on reading, a line each."""


def run_of(search: ForeignSearch) -> RecordedRun:
    """Bring a foreign search to our words: params become fields of a trial where their names are the same.

    A search of networks and fields is told apart by `model` alone; without it, fields mean the handcrafted CNN's, as in a
    space. A field that the source does not name stays null.

    Raises:
        InputError: No trial can be built from its params.
    """
    built: list[tuple[ForeignTrial, Point]] = []
    refused: list[str] = []
    for trial in search.trials:
        try:
            built.append((trial, _checked_point(trial.params)))
        except InputError as error:
            refused.append(str(error))
    if not built:
        why = refused[0] if refused else "It has no ended trial."
        raise InputError(f"Nothing in the {search.source} '{search.name}' can be read as a trial of tune_lung. {why}")
    space = SearchSpace(arms=_arms([point for _, point in built], search.axes), name=search.name)
    repeats: Counter[str] = Counter()
    trials = []
    for trial, point in built:
        row = _row(search, trial, point)
        trials.append(RecordedTrial(row={**row, "repeat": repeats[row["point_id"]]}, epochs=trial.epochs))
        repeats[row["point_id"]] += 1
    return RecordedRun(
        manifest=_manifest(search, space),
        trials=tuple(trials),
        notes=(*search.notes, *_notes(search, [point for _, point in built], refused)),
    )


def write_run(recorded: RecordedRun, root: Path, *, is_named: bool = True) -> Path:
    """Write a run as our own searches write it; the folder appears whole or not at all.

    Args:
        recorded: What to write.
        root: The run's folder; its name becomes the run's.
        is_named: Whether the user chose the name; else a number is added where it is taken.

    Returns:
        The run's folder.

    Raises:
        InputError: The folder exists, or the tables cannot hold what was read.
    """
    if is_named:
        require_free(root)
    try:
        require_manifest({**recorded.manifest, "name": root.name})
        ledger, ownership = begin_run(root, recorded.manifest, lambda ledger: _write_trials(recorded, ledger), is_named=is_named)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, DamagedPartError) as error:
        raise InputError(f"What was read is no run of tune_lung: {shortened(str(error))}") from error
    ownership.release()
    return ledger.paths.root


def _write_trials(recorded: RecordedRun, ledger: Ledger) -> None:
    for trial in recorded.trials:
        ledger.paths.part("predictions", trial.row["trial_id"])  # refuses an id that cannot name a file
        ledger.write_trial(trial.row)
        if trial.epochs:
            ledger.write_epochs(trial.row["trial_id"], trial.epochs)
    _require_readable(ledger)


def _require_readable(ledger: Ledger) -> None:
    """See that nothing was written that its readers would pass over."""
    for table in ("trials", "epochs"):
        for part in ledger.paths.parts(table):
            require_rows(table, read_part(part, table_schema(table, ledger.classes)), ledger.classes)


def folder_name(name: str) -> str:
    """Turn any name into one that a run's folder can have."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:MOST_NAME_BYTES] or "imported"


def best_epoch_of(epochs: Sequence[Row]) -> Row:
    """Return the row with the best selection score, the earlier one of equals; empty without any."""
    scored = [row for row in epochs if _is_finite(row.get("selection_score"))]
    return max(scored, key=lambda row: (row["selection_score"], -row["epoch"]), default={})


def _checked_point(params: Mapping[str, Any]) -> Point:
    point = {name: as_field(name, value) for name, value in params.items() if name in FIELD_TYPES and value is not None}
    if not point:
        named = shortened(", ".join(params)) or "it has none"
        raise InputError(f"None of its parameters ({named}) is a field of a trial: {', '.join(FIELD_TYPES)}.")
    TrialConfig.from_point(point)
    return point


def as_field(name: str, value: Any) -> PointValue:
    """Read a value as a field's type: lists may stand as JSON text, whole numbers as floats."""
    if FIELD_TYPES[name] is tuple and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InputError(f"{name} must be a list of whole numbers, not {shortened(repr(value))}.") from None
    if FIELD_TYPES[name] is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    return checked_value(name, value)


def _row(search: ForeignSearch, trial: ForeignTrial, point: Point) -> dict[str, Any]:
    best = best_epoch_of(trial.epochs)
    built = TrialConfig.from_point(point)
    identity = point_id(built, RunConfig(), weights_sha256=None, data_fingerprint="")
    return {
        "trial_id": _digest(search.source, search.name, trial.name),
        "point_id": identity,
        "cell": built.network.model,
        "model": built.network.model,
        **point,
        "status": trial.status,
        "stop_reason": StopReason.FAILURE if trial.status is TrialStatus.FAILED else None,
        "failure": f"The {search.source} says that it failed." if trial.status is TrialStatus.FAILED else None,
        "epochs_run": len(trial.epochs) or None,
        "best_epoch": best.get("epoch"),
        **{name: best.get(name) for name in ("selection_score", *columns_on_validation())},
        **trial.measured,
        **({} if trial.score is None else {"selection_score": trial.score}),
    }


def _digest(*names: str) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]


def _arms(points: Sequence[Point], axes: Mapping[str, SampledAxis]) -> tuple[Arm, ...]:
    """Make an arm of each network, over the fields that its points name."""
    arms = []
    for model in dict.fromkeys(map(model_of, points)):
        own = [point for point in points if model_of(point) == model]
        names = dict.fromkeys(name for point in own for name in point if name not in _NEVER_AN_AXIS)
        tried = {name: axes.get(name) or _axis_of_values([point[name] for point in own if name in point]) for name in names}
        arms.append(Arm(model=model, **tried))
    return tuple(arms)


def _axis_of_values(values: Sequence[Any]) -> Any:
    """Say what was tried of a field whose axis is not known: the one value, the range of reals, or the values seen."""
    distinct = sorted(set(values))
    if len(distinct) == 1:
        return distinct[0]
    return Uniform(distinct[0], distinct[-1]) if isinstance(distinct[0], float) else Choice(*distinct)


def _manifest(search: ForeignSearch, space: SearchSpace) -> dict[str, Any]:
    manifest = new_manifest(
        SearchFacts(
            space=space, strategy=Strategy(sampler="random", scheduler="none", samples=None), sampler_options={}, run=RunConfig()
        ),
        name=search.name,
        arguments=[],
        data=DataFacts(fingerprint="", synthetic=False, classes=(), counts=dict.fromkeys(("train", "validation", "test"), 0)),
        weights={},
    )
    unknown = dict.fromkeys(("protocol", "image_size", "seed", "git_commit"))
    return {
        **manifest,
        **unknown,
        "strategy": {**manifest["strategy"], "sampler": None, "scheduler": None},
        "data": {**manifest["data"], "fingerprint": None},
        "select_by": search.select_by,
        "started_utc": search.started_utc or manifest["started_utc"],
        "status": "completed",
        "imported_from": f"{search.source} '{search.name}'",
    }


def _notes(search: ForeignSearch, points: Sequence[Point], refused: Sequence[str]) -> list[str]:
    ignored = dict.fromkeys(name for trial in search.trials for name in trial.params if name not in FIELD_TYPES)
    notes = []
    if ignored:
        notes.append(f"Ignored, as no field of a trial has the name: {shortened(', '.join(ignored))}")
    if refused:
        notes.append(f"Left out {len(refused)} of {len(search.trials)} trials that cannot be built: {refused[0]}")
    if not any("model" in point for point in points):
        notes.append("No trial names its model: fields are taken for those of the handcrafted CNN")
    return notes


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
