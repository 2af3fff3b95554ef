"""Runs as Optuna's own files, for the tools that read them, and such files as runs. It knows no Ray.

One sqlite file holds one run as one study: every trial's params on the space's axes, its state, objectives and, with a
single objective, the selection score of each epoch. All other columns of the table `trials` are user attributes, so that
the file alone makes the run's trials again. Nothing is ever unpickled: sqlite files are read, and no other storage.
"""

import json
import os
import sqlite3
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NotRequired, Self, get_type_hints

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter
from sqlalchemy.pool import NullPool
from typing_extensions import TypedDict

from tune_lung.config import FIELD_TYPES, checked_value
from tune_lung.errors import InputError, did_you_mean
from tune_lung.files import plain_json, whole_file
from tune_lung.metrics import columns_on_validation
from tune_lung.results.imported import ForeignSearch, ForeignTrial, RecordedRun, RecordedTrial, as_field, run_of
from tune_lung.results.ledger import Row
from tune_lung.results.manifest import require_manifest
from tune_lung.results.reader import Run, in_order_of_proposal, plain_rows
from tune_lung.results.schema import SCHEMA_VERSION, TrialStatus, table_schema
from tune_lung.scratch import ScratchFolder
from tune_lung.shapes import Count, ListOf, Moment, Text, WrongShapeError, require_shape
from tune_lung.space import Choice, Grid, IntRange, LogUniform, SampledAxis, SearchSpace, Uniform
from tune_lung.strategy import Objective, recorded_objectives
from tune_lung.tuning.proposals.database_copies import sound_copy
from tune_lung.tuning.proposals.studies import as_parameter, distribution_of, objective_values, optuna_moment, outcome_of

_MANIFEST = "tune_lung_manifest"
"""The study's user attribute that says that we wrote it, and from what run."""
_STATUSES = {
    TrialState.COMPLETE: TrialStatus.COMPLETED,
    TrialState.PRUNED: TrialStatus.STOPPED,
    TrialState.FAIL: TrialStatus.FAILED,
}
_MOST_BYTES = 4 * 10**9
_LARGEST_BOUND = 2**31


def export_study(run: Run, path: Path) -> Counter[TrialState]:
    """Write a run as one Optuna study.

    Args:
        run: The run; tables `trials` and `epochs` are enough.
        path: The sqlite file; it must not exist.

    Returns:
        Trials written by state. Those that still run are left out.

    Raises:
        InputError: The file exists, or cannot be written.
    """
    if os.path.lexists(path):
        raise InputError(f"The file '{path.name}' exists already. Give another name or remove it.")
    trials = _frozen_trials(run)
    try:
        with whole_file(path) as unfinished, _storage(unfinished) as storage:
            _write_study(storage, run, trials)
    except OSError as error:
        raise InputError(f"The file '{path.name}' cannot be written: {error.strerror}.") from error
    return Counter(trial.state for trial in trials)


def read_study(path: Path, name: str | None = None) -> RecordedRun:
    """Read a study from a sqlite file, our own or anybody's.

    The file itself is left as it is: a copy is read. Of a study that we wrote come back the manifest, the trials and each
    epoch's selection score; images, predictions and decisions are not in it.

    Args:
        path: The sqlite file.
        name: Which study; None takes the only one.

    Raises:
        InputError: It is no file of Optuna's, it holds no such study or several, or nothing in it can be read as a trial.
    """
    try:
        with ScratchFolder() as folder, _storage(sound_copy(path, folder.path)) as storage:
            found = _FoundStudy.of(optuna.load_study(study_name=_study_name(storage, path, name), storage=storage))
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"'{path.name}' is no sqlite file of Optuna that can be read (nested too deep).") from error
    except RuntimeError as error:  # what Optuna says of tables of another version
        raise InputError(
            f"'{path.name}' was written by another Optuna than {optuna.__version__}. Bring a copy of it up to date with"
            " 'optuna storage upgrade', or install the newer Optuna."
        ) from error
    except Exception as error:  # of a stranger's tables Optuna and SQLAlchemy raise whatever they stumble over
        raise InputError(f"'{path.name}' is no sqlite file of Optuna that can be read ({type(error).__name__}).") from error
    try:
        return _foreign_run(found) if found.manifest is None else _own_run(found.manifest, found.trials)
    except WrongShapeError as error:
        raise InputError(f"The study in '{path.name}' is none that can be read ({error}).") from error


class _TrialShape(TypedDict):
    """What Optuna gives of a trial."""

    number: Count
    params: dict[str, Any]
    values: list[float] | None
    intermediate_values: dict[Count, float]
    user_attrs: dict[str, Any]


_TRIALS = TypeAdapter(ListOf[_TrialShape])
_METRIC_NAMES = TypeAdapter(list[Text])


class _Moments(TypedDict):
    """The moments that a row of ours has; in a study's attributes they are texts."""

    started: NotRequired[Moment]
    ended: NotRequired[Moment]


_MOMENTS = TypeAdapter(_Moments)


@dataclass(frozen=True, kw_only=True)
class _FoundStudy:
    """A study as it was read, its file closed."""

    name: str
    directions: Sequence[StudyDirection]
    metric_names: Sequence[str]
    manifest: Mapping[str, Any] | None
    """Of the run that it was exported from; None for somebody else's study."""
    trials: Sequence[FrozenTrial]

    @classmethod
    def of(cls, study: optuna.Study) -> Self:
        """Read all of it.

        Raises:
            WrongShapeError: Its trials hold what no trial does.
        """
        trials = study.get_trials(deepcopy=False)
        require_shape(_TRIALS, [{name: getattr(trial, name) for name in get_type_hints(_TrialShape)} for trial in trials])
        metric_names = require_shape(_METRIC_NAMES, study.metric_names or [])
        manifest = study.user_attrs.get(_MANIFEST)
        if manifest is not None:
            manifest = plain_json(json.dumps(manifest), name="the study's manifest")
            require_manifest(manifest)
        return cls(
            name=str(study.study_name),
            directions=study.directions,
            metric_names=metric_names,
            manifest=manifest,
            trials=trials,
        )


def study_distributions(space: SearchSpace) -> tuple[dict[str, BaseDistribution], ...]:
    """Say from where each arm's axes take their values, so that one study can hold all arms.

    Optuna wants a param to keep its kind throughout a study, and a categorical one all its choices: listed values are
    united over the arms, and a range stands for both where one arm lists what another samples.

    Returns:
        Distributions by field name, a mapping for each arm, in its order.
    """
    axes_by_arm: list[dict[str, Grid | SampledAxis]] = [{**arm.grid_axes(), **arm.sampled_axes()} for arm in space.arms]
    axes_by_name: dict[str, list[Grid | SampledAxis]] = {}
    for axes in axes_by_arm:
        for name, axis in axes.items():
            axes_by_name.setdefault(name, []).append(axis)
    united = {name: _united(name, axes) for name, axes in axes_by_name.items()}
    return tuple(
        {name: united[name] or distribution_of(axis) for name, axis in axes.items()}  # type: ignore[arg-type]
        for axes in axes_by_arm
    )


def _united(name: str, axes: Sequence[Grid | SampledAxis]) -> BaseDistribution | None:
    """Give the distribution that all arms share; None where each can keep its own range."""
    if all(isinstance(axis, Grid | Choice) for axis in axes):
        choices = dict.fromkeys(as_parameter(checked_value(name, value)) for axis in axes for value in _ends(axis))
        return CategoricalDistribution(tuple(choices))
    if len({type(axis) for axis in axes}) == 1:
        return None
    numbers = [value for axis in axes for value in _ends(axis)]
    if FIELD_TYPES[name] is int:
        return IntDistribution(min(numbers), max(numbers))
    is_log = min(numbers) > 0 and any(isinstance(axis, LogUniform) for axis in axes)
    return FloatDistribution(min(numbers), max(numbers), log=is_log)


def _ends(axis: Grid | SampledAxis) -> tuple[Any, ...]:
    return axis.values if isinstance(axis, Grid) else axis.ends()


@contextmanager
def _storage(path: Path) -> Iterator[RDBStorage]:
    """Open a sqlite file, whatever its name holds, and close it for good."""
    # Not by URL: a name with '?' or '%' would be taken apart.
    storage = RDBStorage("sqlite://", engine_kwargs={"creator": lambda: _connection(path), "poolclass": NullPool})
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _connection(path: Path) -> sqlite3.Connection:
    """Open a file that counts only when it is whole: no commit needs to wait for the disk."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=MEMORY")
    connection.execute("PRAGMA synchronous=OFF")
    return connection


def _write_study(storage: RDBStorage, run: Run, trials: Sequence[FrozenTrial]) -> None:
    objectives = _objectives(run)
    study = optuna.create_study(
        storage=storage,
        study_name=run.name,
        directions=[StudyDirection.MAXIMIZE if one.sign > 0 else StudyDirection.MINIMIZE for one in objectives],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([objective.column for objective in objectives])
    study.set_user_attr(_MANIFEST, run.manifest)
    study.add_trials(trials)


def _frozen_trials(run: Run) -> list[FrozenTrial]:
    """Make a trial of each row that does not run any more, in the order of their proposal."""
    space, objectives = SearchSpace.from_json(run.manifest["space"]), _objectives(run)
    distributions_by_arm = study_distributions(space)
    distributions_by_cell = {cell.name: distributions_by_arm[cell.arm] for cell in space.cells()}
    epochs = {str(trial_id): plain_rows(own) for trial_id, own in run.epochs.groupby("trial_id")}
    run_started = datetime.fromisoformat(run.manifest["started_utc"])
    return [
        _frozen_trial(
            row,
            objectives,
            distributions_by_cell.get(row["cell"], {}),
            epochs.get(row["trial_id"], []) if len(objectives) == 1 else [],
            run_started,
        )
        for row in in_order_of_proposal(run.trials)
        if row["status"] != TrialStatus.RUNNING
    ]


def _frozen_trial(
    row: Row,
    objectives: Sequence[Objective],
    distributions: Mapping[str, BaseDistribution],
    epochs: Sequence[Row],
    run_started: datetime,
) -> FrozenTrial:
    """Lay a row out as Optuna keeps a trial.

    Optuna wants moments of each: one that has none, as those of older versions, starts with the run and takes as long as its
    training passes.
    """
    state, values = outcome_of(TrialStatus(row["status"]), objective_values(row, objectives))
    params = {name: as_parameter(checked_value(name, row[name])) for name in distributions if name in row}
    try:
        trial = optuna.trial.create_trial(
            state=state,
            values=values,
            params=params,
            distributions={name: distributions[name] for name in params},
            user_attrs={name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()},
            intermediate_values={epoch["epoch"]: epoch["selection_score"] for epoch in epochs if "selection_score" in epoch},
        )
    except ValueError as error:
        raise InputError(
            f"Trial {row['trial_id']} of the run lies outside the run's own space: it is none of its search."
        ) from error
    started = row.get("started", run_started)
    ended = row.get("ended", started + timedelta(seconds=row.get("epochs_run", 0) * row.get("epoch_seconds_mean", 0)))
    trial.datetime_start, trial.datetime_complete = optuna_moment(started), optuna_moment(ended)
    return trial


def _objectives(run: Run) -> tuple[Objective, ...]:
    return recorded_objectives(run.manifest)


def _study_name(storage: RDBStorage, path: Path, name: str | None) -> str:
    names = optuna.get_all_study_names(storage)
    if not names:
        raise InputError(f"'{path.name}' holds no study of Optuna.")
    if name is not None and name not in names:
        raise InputError(f"'{path.name}' holds no study '{name}'. {did_you_mean(name, names)}")
    if name is None and len(names) > 1:
        raise InputError(f"'{path.name}' holds {len(names)} studies. Choose one with --study: {', '.join(sorted(names))}.")
    return name or names[0]


def _own_run(manifest: Mapping[str, Any], trials: Sequence[FrozenTrial]) -> RecordedRun:
    if manifest["schema_version"] > SCHEMA_VERSION:
        raise InputError(
            f"The study was written by a newer tune_lung (tables of version {manifest['schema_version']}). Update it."
        )
    ours = [trial for trial in trials if "trial_id" in trial.user_attrs]
    recorded = tuple(
        RecordedTrial(
            row=_own_row(trial.user_attrs, manifest),
            epochs=tuple({"epoch": epoch, "selection_score": score} for epoch, score in trial.intermediate_values.items()),
        )
        for trial in ours
    )
    num_others = len(trials) - len(ours)
    notes = (f"Left out {num_others} of {len(trials)} trials that tune_lung did not write",) if num_others else ()
    return RecordedRun(manifest=manifest, trials=recorded, notes=notes)


def _own_row(attributes: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Read back a row of the table `trials`; what the manifest's version did not measure is left out."""
    row = {name: attributes[name] for name in table_schema("trials", manifest["data"]["classes"]).names if name in attributes}
    if manifest["schema_version"] < 3:  # it held what was asked for
        row.pop("concurrent_trials", None)
    return row | require_shape(_MOMENTS, row)


def _foreign_run(study: _FoundStudy) -> RecordedRun:
    ended = [trial for trial in study.trials if trial.state in _STATUSES]
    moments = [trial.datetime_start for trial in ended if isinstance(trial.datetime_start, datetime)]
    names = study.metric_names
    num_unfinished = len(study.trials) - len(ended)
    notes = [f"Left out {num_unfinished} of {len(study.trials)} trials that have not ended"] if num_unfinished else []
    if len(study.directions) > 1:
        notes.append(f"The study has {len(study.directions)} objectives: trials are ranked by the first")
    search = ForeignSearch(
        name=study.name,
        source="Optuna study",
        trials=tuple(_foreign_trial(trial, study.directions[0], names) for trial in ended),
        axes=_axes(ended),
        select_by=names[0] if names else "the study's value",
        started_utc=_moment(min(moments)) if moments else None,
        notes=tuple(notes),
    )
    return run_of(search)


def _moment(naive: datetime) -> str | None:
    """Write a moment of Optuna's in UTC; None for one that no clock has shown."""
    return naive.astimezone(UTC).isoformat(timespec="seconds") if 1970 < naive.year < 9000 else None


def _foreign_trial(trial: FrozenTrial, direction: StudyDirection, metric_names: Sequence[str]) -> ForeignTrial:
    sign = -1 if direction is StudyDirection.MINIMIZE else 1
    steps = sorted(trial.intermediate_values)
    shift = max(0, 1 - min(steps, default=1))  # our epochs count from 1
    values = trial.values or []
    return ForeignTrial(
        name=str(trial.number),
        params=trial.params,
        status=_STATUSES[trial.state],
        score=sign * values[0] if values else None,
        measured={name: value for name, value in zip(metric_names, values, strict=False) if name in columns_on_validation()},
        epochs=tuple({"epoch": step + shift, "selection_score": sign * trial.intermediate_values[step]} for step in steps),
    )


def _axes(trials: Sequence[FrozenTrial]) -> dict[str, SampledAxis]:
    """Read axes from the distributions of params that are fields; where they changed on the way, the widest counts."""
    found: dict[str, list[BaseDistribution]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            if name in FIELD_TYPES and distribution not in found.setdefault(name, []):
                found[name].append(distribution)
    axes = {name: _axis_of(name, distributions) for name, distributions in found.items()}
    return {name: axis for name, axis in axes.items() if axis is not None}


def _axis_of(name: str, distributions: Sequence[Any]) -> SampledAxis | None:
    """Write distributions as an axis of a field; None where they are of another kind than the field, or leave no choice."""
    if all(isinstance(one, CategoricalDistribution) for one in distributions):
        return _choice_of(name, [value for one in distributions for value in one.choices])
    if any(isinstance(one, CategoricalDistribution) for one in distributions):
        return None
    low, high = min(one.low for one in distributions), max(one.high for one in distributions)
    if not -_LARGEST_BOUND < low < high < _LARGEST_BOUND:
        return None
    if FIELD_TYPES[name] is float:
        return (LogUniform if all(one.log for one in distributions) else Uniform)(float(low), float(high))
    if FIELD_TYPES[name] is not int or not all(isinstance(one, IntDistribution) for one in distributions):
        return None
    return IntRange(low, high, step=distributions[0].step if len(distributions) == 1 else 1)


def _choice_of(name: str, values: Sequence[Any]) -> Choice | None:
    try:
        distinct = tuple(dict.fromkeys(as_field(name, value) for value in values))
    except InputError:
        return None
    return Choice(*distinct) if len(distinct) > 1 else None
