"""From what is known: an earlier run's trials as the studies of a new search learn from them. It knows no Ray.

A score can be learnt from where the new search would train the same: same images, same weights. Another level of scores
would mislead a sampler, which takes old points for all good or all bad. So where images or weights were others, each cell's
best point is tried first and its score is measured anew.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

from optuna.trial import TrialState
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from tune_lung.config import BUDGET_FIELDS, RunConfig, checked_value
from tune_lung.errors import InputError, shortened
from tune_lung.families.family import PointValue
from tune_lung.files import DamagedFileError
from tune_lung.results.reader import Run, in_order_of_proposal, plain_rows
from tune_lung.results.schema import TrialStatus
from tune_lung.shapes import ListOf, Moment, Number, Text, WrongShapeError, require_shape
from tune_lung.space import Cell, SearchSpace
from tune_lung.space_changes import space_changes
from tune_lung.strategy import Objective, Strategy, recorded_objectives
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.proposals.studies import KnownTrial, Values, objective_values, outcome_of, outcome_of_repeats

MOST_LESSONS_BYTES = 64 * 2**20
"""Size of the largest file of lessons that is read: a million epochs take as much."""
_MAY_DIFFER = (*BUDGET_FIELDS, "precision", "weights")
"""Fixed fields that do not keep a search from learning: the budget, how numbers are computed, where backbones start."""


def require_compatible(earlier: Run, space: SearchSpace, strategy: Strategy, run: RunConfig) -> None:
    """Refuse an earlier run whose points or scores mean something else than the new search's.

    Budget, precision, first points, weights and images may differ.

    Args:
        earlier: The run to learn from.
        space: What is tried now.
        strategy: How it is searched now.
        run: What all trials share now.

    Raises:
        InputError: Nothing is sampled, or something differs; the text names the first such field with both values.
    """
    if space.is_grid:
        raise InputError(f"--warm-start: '{space.name}' samples nothing; each of its {len(space.cells())} cells is run.")
    for field, there, here in _differences(earlier, space, strategy, run):
        raise InputError(
            f"--warm-start: {shortened(field)} is {shortened(str(there))} in '{earlier.name}' and {shortened(str(here))} here."
            " Make them the same, or start without it."
        )


def known_trials(earlier: Run, space: SearchSpace, strategy: Strategy, setup: SearchSetup) -> list[KnownTrial]:
    """Read the points that an earlier run has finished.

    Args:
        earlier: The run to learn from; tables `trials` and `epochs` are enough.
        space: What is tried now.
        strategy: How it is searched now.
        setup: Says what each point would train now.

    Returns:
        Every finished point that the new search would train the same, told as the mean of its repeats, in the order of their
        proposal; of the others each cell's best one, marked as not comparable.

    Raises:
        InputError: The run is not compatible.
    """
    require_compatible(earlier, space, strategy, setup.run)
    points = _finished_points(earlier, space, setup)
    comparable = [point for point in points if point.is_comparable]
    best_of_others = _best_of_each_cell([point for point in points if not point.is_comparable])
    scores = _scores_by_trial(earlier)
    return [point.known(strategy.objectives, scores) for point in (*comparable, *best_of_others)]


def lessons_as_json(known: Sequence[KnownTrial]) -> dict[str, Any]:
    """Lay out what a search is taught, so that it can go on without the earlier run."""
    trials = [
        {
            "cell": trial.cell.name,
            "values": {name: list(value) if isinstance(value, tuple) else value for name, value in trial.values.items()},
            "state": trial.state.name,
            "objective_values": None if trial.objective_values is None else list(trial.objective_values),
            "scores": [[epoch, score] for epoch, score in trial.scores.items()],
            "started": None if trial.started is None else trial.started.isoformat(),
            "ended": None if trial.ended is None else trial.ended.isoformat(),
            "is_comparable": trial.is_comparable,
        }
        for trial in known
    ]
    return {"trials": trials}


def lessons_from_json(content: Mapping[str, Any], space: SearchSpace, strategy: Strategy) -> list[KnownTrial]:
    """Read back what `lessons_as_json` laid out.

    Args:
        content: As it was read.
        space: What is tried.
        strategy: How it is searched.

    Raises:
        DamagedFileError: It is nothing that a search of this space can be taught.
    """
    try:
        lessons = require_shape(_LESSONS, content)["trials"]
        cells = {cell.name: cell for cell in space.cells()}
        return [_known(lesson, cells, strategy) for lesson in lessons]
    except (WrongShapeError, InputError) as error:
        raise DamagedFileError(f"What the search was taught cannot be read ({error}).") from error


class _Lesson(TypedDict):
    """One finished trial."""

    cell: Text
    values: dict[str, Any]
    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    objective_values: list[Number] | None
    scores: ListOf[Annotated[list[Number], Field(min_length=2, max_length=2)]]
    """Pairs of an epoch and its score."""
    started: NotRequired[Moment | None]
    ended: NotRequired[Moment | None]
    is_comparable: bool


class _Lessons(TypedDict):
    """What `lessons_as_json` gives."""

    trials: ListOf[_Lesson]


_LESSONS = TypeAdapter(_Lessons)


def _known(lesson: _Lesson, cells: Mapping[str, Cell], strategy: Strategy) -> KnownTrial:
    cell, state = cells.get(lesson["cell"]), TrialState[lesson["state"]]
    values = {name: checked_value(name, value) for name, value in lesson["values"].items()}
    if cell is None or not cell.may_sample(values):
        raise InputError("a point lies in no cell")
    numbers, scores = lesson["objective_values"], {int(epoch): score for epoch, score in lesson["scores"]}
    if (len(numbers) if numbers is not None else 0) != (len(strategy.objectives) if state is TrialState.COMPLETE else 0):
        raise InputError("a trial has not a number for each objective")
    if any(not epoch.is_integer() or epoch < 1 for epoch, _ in lesson["scores"]):
        raise InputError("an epoch is none")
    return KnownTrial(
        cell=cell,
        values=values,
        state=state,
        objective_values=None if numbers is None else tuple(numbers),
        scores=scores,
        started=lesson.get("started"),
        ended=lesson.get("ended"),
        is_comparable=lesson["is_comparable"],
    )


def lesson(known: Sequence[KnownTrial], earlier: Run) -> list[str]:
    """Say in a few lines what a search takes from an earlier run.

    Args:
        known: From `known_trials`.
        earlier: The run that they are from.
    """
    num_comparable = sum(trial.is_comparable for trial in known)
    lines = []
    if num_comparable or not known:
        lines.append(f"Learning from {num_comparable} finished points of '{earlier.name}'; none of them runs again")
    if num_comparable < len(known):
        lines.append(
            f"'{earlier.name}' had other images or weights: no score of it is learnt from, but each cell tries its best point"
            f" first ({len(known) - num_comparable} cells)"
        )
    if earlier.damaged:
        lines.append(f"Not learnt from, since damaged: {', '.join(earlier.damaged)}")
    return lines


@dataclass(frozen=True, kw_only=True)
class _Point:
    """A finished point of the earlier run."""

    cell: Cell
    values: Values
    rows: Sequence[Mapping[str, Any]]
    """Its trials, one for each repeat."""

    is_comparable: bool
    """Whether the new search would train the same."""

    def score(self) -> float | None:
        """Average the selection score of its completed trials; None without any."""
        scores = [row["selection_score"] for row in self.rows if _is_scored(row)]
        return sum(scores) / len(scores) if scores else None

    def known(self, objectives: Sequence[Objective], scores: Mapping[str, Mapping[int, float]]) -> KnownTrial:
        """Tell it as a study hears of it; seeds are not compared, so with repeats there are no scores by epoch."""
        outcomes = [outcome_of(TrialStatus(row["status"]), objective_values(row, objectives)) for row in self.rows]
        state, values = outcome_of_repeats(outcomes)
        starts, ends = ([row[name] for row in self.rows if name in row] for name in ("started", "ended"))
        return KnownTrial(
            cell=self.cell,
            values=self.values,
            state=state,
            objective_values=values,
            scores=scores.get(self.rows[0]["trial_id"], {}) if len(self.rows) == 1 else {},
            started=min(starts, default=None),
            ended=max(ends, default=None),
            is_comparable=self.is_comparable,
        )


def _finished_points(earlier: Run, space: SearchSpace, setup: SearchSetup) -> list[_Point]:
    """Group the trials by cell and sampled values, in the order of their proposal.

    A point of which a trial still runs is not finished.
    """
    cells = {cell.name: cell for cell in space.cells()}
    rows_by_point: dict[tuple[str, tuple[PointValue, ...]], list[dict[str, Any]]] = defaultdict(list)
    for row in in_order_of_proposal(earlier.trials):
        cell = cells.get(row["cell"])
        if cell is not None and cell.axes.keys() <= row.keys():
            values = {name: checked_value(name, row[name]) for name in cell.axes}
            if not cell.may_sample(values):
                raise InputError(
                    f"--warm-start: trial {row['trial_id']} of '{earlier.name}' lies outside that run's own space. Its tables are"
                    " not those of one search: start without it."
                )
            rows_by_point[cell.name, tuple(values.values())].append(row)
    points = []
    for (name, sampled), rows in rows_by_point.items():
        values = dict(zip(cells[name].axes, sampled, strict=True))
        if all(row["status"] != TrialStatus.RUNNING for row in rows):
            same = _trains_the_same(cells[name], values, rows[0], setup)
            points.append(_Point(cell=cells[name], values=values, rows=rows, is_comparable=same))
    return points


def _trains_the_same(cell: Cell, values: Values, row: Mapping[str, Any], setup: SearchSetup) -> bool:
    """Whether the new search would train what the row's trial was, but for the precision."""
    precision = {"precision": row["precision"]} if "precision" in row else {}
    return bool(setup.plan_trial(cell.name, cell.with_values(values) | precision).point_id == row["point_id"])


def _best_of_each_cell(points: Sequence[_Point]) -> list[_Point]:
    best: dict[str, tuple[float, _Point]] = {}
    for point in points:
        score, name = point.score(), point.cell.name
        if score is not None and (name not in best or score > best[name][0]):
            best[name] = score, point
    return [point for _, point in best.values()]


def _is_scored(row: Mapping[str, Any]) -> bool:
    return row["status"] == TrialStatus.COMPLETED and "selection_score" in row


def _scores_by_trial(earlier: Run) -> dict[str, dict[int, float]]:
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for row in plain_rows(earlier.epochs):
        if "selection_score" in row:
            scores[row["trial_id"]][row["epoch"]] = row["selection_score"]
    return scores


def _differences(earlier: Run, space: SearchSpace, strategy: Strategy, run: RunConfig) -> Iterator[tuple[str, object, object]]:
    """Name what keeps the search from learning from a run: the field, its value there, its value here."""
    for name in ("protocol", "image_size", "select_by"):
        there, here = earlier.manifest[name], getattr(run, name)
        if there is not None and there != here:  # null: an imported run does not know it
            yield name, there, here
    then = recorded_objectives(earlier.manifest)
    if then != strategy.objectives:
        yield "objective", _shown(then), _shown(strategy.objectives)
    yield from space_changes(SearchSpace.from_json(earlier.manifest["space"]), space, may_differ=_MAY_DIFFER)


def _shown(objectives: Sequence[Objective]) -> str:
    return ",".join(f"{objective.column}:{objective.direction}" for objective in objectives)
