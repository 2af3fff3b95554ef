"""Optuna's side of a search: what is proposed, and what the studies are told of it. It knows no Ray.

Optuna learns from trials that are told truly: one that ran to its end is COMPLETE with its values, one that the scheduler
stopped is PRUNED and keeps its intermediate values, one that failed or diverged is FAIL; none is left RUNNING.
"""

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState

from tune_lung.families.family import PointValue
from tune_lung.randomness import derive_seed
from tune_lung.results.schema import TrialStatus
from tune_lung.space import Cell, Choice, IntRange, LogUniform, SampledAxis, SearchSpace, first_values
from tune_lung.strategy import Objective, SamplerName, Strategy

Values: TypeAlias = Mapping[str, PointValue]
"""One value for each sampled axis of a cell."""
Outcome: TypeAlias = tuple[TrialState, tuple[float, ...] | None]
"""How a study is told that a trial ended, with one number for each objective where it is COMPLETE."""

_STATES = {
    TrialStatus.COMPLETED: TrialState.COMPLETE,
    TrialStatus.STOPPED: TrialState.PRUNED,
    TrialStatus.FAILED: TrialState.FAIL,
}

_MOST_PROPOSALS_OF_KNOWN_POINTS = 8
_MOST_LISTED = 1_000_000
_STARTUP_TRIALS = 10
_LARGEST_POPULATION, _SMALLEST_POPULATION, _LEAST_GENERATIONS = 50, 8, 5

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One point to train."""

    number: int
    """Counted from 0 over the whole search; what happens to it is told by this number."""
    cell: Cell
    """Where it belongs."""
    point: Mapping[str, PointValue]
    """A value for every field that the cell's arm names."""


@dataclass(frozen=True, kw_only=True)
class KnownTrial:
    """A finished trial of an earlier search, to learn from."""

    cell: Cell
    """Where it belongs."""
    values: Values
    """What was sampled."""
    state: TrialState
    """How it ended."""
    objective_values: tuple[float, ...] | None
    """What it gave, one number for each objective; None where it failed or was stopped."""
    scores: Mapping[int, float]
    """Its selection score by epoch."""
    started: datetime | None = None
    """When it started first, UTC; None where nobody noted it."""
    ended: datetime | None = None
    """When it ended last, UTC."""
    is_comparable: bool = True
    """Whether the search would train the same; False where images or weights were others and numbers mean something else."""


@dataclass
class _Asked:
    """A proposal that is under way, or was told: every trial that stands for it."""

    study: optuna.Study
    trials: list[Trial] = field(default_factory=list)
    outcome: tuple[TrialState, Sequence[float] | None] | None = None


class Studies:
    """Proposes the points of a space, each at most once, and learns from what became of them."""

    def __init__(
        self,
        space: SearchSpace,
        strategy: Strategy,
        *,
        seed: int,
        known: Iterable[KnownTrial] = (),
        cells: Sequence[Cell] | None = None,
    ) -> None:
        """Open a study for each cell, or each arm, as the space says.

        Args:
            space: What is tried.
            strategy: Sampler, points per cell and objectives.
            seed: Root of the samplers' seeds.
            known: Finished trials of earlier searches. Comparable ones are learnt from and their points are not proposed
                again; of the others only the values are taken, to be tried first.
            cells: The space's cells in the order in which they are taken up; None for the space's own.
        """
        self._space, self._strategy, self._seed = space, strategy, seed
        known = tuple(known)
        # With the seed of a cold start, a random sampler would draw the points that are known already.
        self._warmth = (len(known),) if known else ()
        self._studies: dict[str, optuna.Study] = {}
        self._distributions_by_arm: dict[int, dict[str, BaseDistribution]] = {}
        self._asked: list[_Asked] = []
        self._by_point: dict[str, _Asked] = {}
        self._exhausted: set[str] = set()
        self.cells = tuple(space.cells() if cells is None else cells)
        """The cells in the order in which they are taken up."""
        cells = self.cells
        self._first = {cell.name: deque(_listed_values(cell, space, strategy)) for cell in cells}
        counts = {cell.name: strategy.num_points(cell) for cell in cells}
        # Sample by sample over all cells, so that a search cut short has given each cell as much as any other.
        self._waiting = deque(cell for sample in range(max(counts.values())) for cell in cells if sample < counts[cell.name])
        for trial in known:
            self._learn(trial)

    @property
    def studies(self) -> tuple[optuna.Study, ...]:
        """Every study that has been asked or told."""
        return tuple(self._studies.values())

    @property
    def num_waiting(self) -> int:
        """Points still to be proposed."""
        return len(self._waiting)

    def propose(self) -> Proposal | None:
        """Give the next point.

        Returns:
            A point that no earlier proposal and no known trial has; None when every cell has had its share, or has no
            other point left.
        """
        while self._waiting:
            cell = self._waiting.popleft()
            if cell.name not in self._exhausted:
                proposal = self._propose_in(cell)
                if proposal is not None:
                    return proposal
                self._exhausted.add(cell.name)
        return None

    def correct(self, proposal: Proposal, values: Values) -> Proposal:
        """Put a point that an earlier attempt proposed in the place of one that was drawn otherwise, as another version draws.

        Args:
            proposal: The last one given; it is forgotten.
            values: What the earlier attempt sampled in its cell.
        """
        asked, cell = self._asked[proposal.number], proposal.cell
        for trial in asked.trials:
            asked.study.tell(trial, state=TrialState.FAIL)
        del self._by_point[_point_key(cell, {name: proposal.point[name] for name in cell.axes})]
        asked.trials = [self._ask(cell, values)[0]]
        self._by_point[_point_key(cell, values)] = asked
        return Proposal(number=proposal.number, cell=cell, point=cell.with_values(values))

    def propose_again(self, cell: Cell, values: Values) -> Proposal:
        """Propose a point that an earlier attempt proposed and this one would not, such as of a cell that has had its share."""
        return self._register(cell, values, self._ask(cell, values)[0])

    def observe(self, number: int, epoch: int, score: float) -> None:
        """Report a finite score of one epoch, from 1; searches for several objectives take none."""
        if self._strategy.has_one_objective:
            for trial in self._asked[number].trials:
                trial.report(score, epoch)

    def tell(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        """Say how a proposal ended.

        Args:
            number: The proposal's.
            state: COMPLETE, PRUNED or FAIL.
            values: One finite number for each objective; for COMPLETE only.
        """
        asked = self._asked[number]
        asked.outcome = (state, values)
        for trial in asked.trials:
            asked.study.tell(trial, values, state=state)

    def _propose_in(self, cell: Cell) -> Proposal | None:
        for _ in range(_MOST_PROPOSALS_OF_KNOWN_POINTS):
            listed = self._first[cell.name].popleft() if self._first[cell.name] else {}
            trial, values = self._ask(cell, listed)
            twin = self._by_point.get(_point_key(cell, values))
            if twin is None:
                return self._register(cell, values, trial)
            self._share(trial, twin)
        unseen = self._unseen(cell)
        return None if unseen is None else self._register(cell, unseen, self._ask(cell, unseen)[0])

    def _ask(self, cell: Cell, fixed: Values) -> tuple[Trial, Values]:
        study = self._study_of(cell)
        parameters = {name: as_parameter(value) for name, value in (dict(cell.grid) | dict(fixed)).items()}
        if parameters:
            study.enqueue_trial(parameters)
        trial = study.ask(fixed_distributions=self._distributions(cell))
        values = {name: _from_parameter(axis, trial.params[name]) for name, axis in cell.axes.items()}
        return trial, values

    def _register(self, cell: Cell, values: Values, trial: Trial) -> Proposal:
        asked = _Asked(study=self._study_of(cell), trials=[trial])
        self._asked.append(asked)
        self._by_point[_point_key(cell, values)] = asked
        return Proposal(number=len(self._asked) - 1, cell=cell, point=cell.with_values(values))

    def _share(self, trial: Trial, twin: _Asked) -> None:
        """Let a proposal of a known point stand for the same training: it is told what that one gives."""
        if twin.outcome is None:
            twin.trials.append(trial)
        else:
            state, values = twin.outcome
            twin.study.tell(trial, values, state=state)

    def _unseen(self, cell: Cell) -> Values | None:
        """Draw a point that was not proposed yet, all equal; None where there is none."""
        generator = np.random.default_rng(derive_seed(self._seed, "unseen", cell.name, len(self._asked)))
        number = cell.num_values()
        if number is None:
            raise RuntimeError(f"The sampler proposes the same point again and again in cell '{cell.name}'.")
        if number > _MOST_LISTED:
            return self._drawn_unseen(cell, generator)
        left = [values for values in cell.all_values() or () if _point_key(cell, values) not in self._by_point]
        return left[generator.integers(len(left))] if left else None

    def _drawn_unseen(self, cell: Cell, generator: np.random.Generator) -> Values:
        """Draw until a point comes that was not proposed: there are far more than a search proposes."""
        listed = {name: axis.all_values() or () for name, axis in cell.axes.items()}
        while True:
            values = {name: own[int(generator.integers(len(own)))] for name, own in listed.items()}
            if _point_key(cell, values) not in self._by_point:
                return values

    def _learn(self, trial: KnownTrial) -> None:
        if not trial.is_comparable:
            self._first[trial.cell.name].appendleft(trial.values)
            return
        distributions = self._distributions(trial.cell)
        values = dict(trial.cell.grid) | dict(trial.values)
        study = self._study_of(trial.cell)
        learnt = optuna.trial.create_trial(
            state=trial.state,
            values=None if trial.objective_values is None else list(trial.objective_values),
            params={name: as_parameter(values[name]) for name in distributions},
            distributions=distributions,
            intermediate_values=dict(trial.scores) if self._strategy.has_one_objective else {},
        )
        if trial.started is not None and trial.ended is not None:
            learnt.datetime_start, learnt.datetime_complete = optuna_moment(trial.started), optuna_moment(trial.ended)
        study.add_trial(learnt)
        self._by_point[_point_key(trial.cell, trial.values)] = _Asked(study=study, outcome=(trial.state, trial.objective_values))

    def _study_of(self, cell: Cell) -> optuna.Study:
        name = self._study_name(cell)
        if name not in self._studies:
            seed = derive_seed(self._seed, "sampler", name, *self._warmth) % 2**32
            directions = [
                StudyDirection.MAXIMIZE if one.sign > 0 else StudyDirection.MINIMIZE for one in self._strategy.objectives
            ]
            self._studies[name] = optuna.create_study(
                study_name=name, sampler=make_sampler(self._strategy, seed=seed), directions=directions
            )
        return self._studies[name]

    def _study_name(self, cell: Cell) -> str:
        return f"arm {cell.arm + 1}" if self._is_shared else cell.name

    @property
    def _is_shared(self) -> bool:
        return self._space.study == "arm" or self._space.is_grid

    def _distributions(self, cell: Cell) -> dict[str, BaseDistribution]:
        """Say what its study knows of a cell: the sampled axes and, where cells share a study, the grid's."""
        if cell.arm not in self._distributions_by_arm:  # once: every trial of a study keeps the one it was asked with
            grid = self._space.arms[cell.arm].grid_axes() if self._is_shared else {}
            enumerated = {
                name: CategoricalDistribution([as_parameter(value) for value in axis.values]) for name, axis in grid.items()
            }
            sampled = {name: distribution_of(axis) for name, axis in cell.axes.items()}
            self._distributions_by_arm[cell.arm] = enumerated | sampled
        return self._distributions_by_arm[cell.arm]


def sampler_options(strategy: Strategy) -> dict[str, Any]:
    """List every option of the strategy's sampler that decides what it proposes, as the manifest records them."""
    if strategy.sampler == "tpe":
        return {
            "n_startup_trials": _STARTUP_TRIALS,
            "n_ei_candidates": 24,
            "multivariate": False,
            "group": False,
            "constant_liar": True,
        }
    if strategy.sampler == "gp":
        return {"n_startup_trials": _STARTUP_TRIALS, "deterministic_objective": False}
    if strategy.sampler == "nsga2":
        population = min(_LARGEST_POPULATION, max(_SMALLEST_POPULATION, (strategy.samples or 0) // _LEAST_GENERATIONS))
        return {"population_size": population, "mutation_prob": None, "crossover_prob": 0.9, "swapping_prob": 0.5}
    return {}


def make_sampler(strategy: Strategy, *, seed: int) -> BaseSampler:
    """Make a study's sampler with the options of `sampler_options`.

    Args:
        strategy: Names the sampler.
        seed: 0 to 2**32 - 1.
    """
    kinds: dict[SamplerName, Any] = {
        "tpe": TPESampler,
        "gp": GPSampler,
        "nsga2": NSGAIISampler,
        "random": RandomSampler,
        "exhaustive": RandomSampler,  # never asked: every point there is has been enqueued
    }
    return kinds[strategy.sampler](seed=seed, **sampler_options(strategy))  # type: ignore[no-any-return]


def distribution_of(axis: SampledAxis) -> BaseDistribution:
    """Write an axis as an Optuna distribution."""
    if isinstance(axis, Choice):
        return CategoricalDistribution([as_parameter(value) for value in axis.values])
    if isinstance(axis, IntRange):
        return IntDistribution(axis.low, axis.high, step=axis.step)
    return FloatDistribution(axis.low, axis.high, log=isinstance(axis, LogUniform))


def optuna_moment(moment: datetime) -> datetime:
    """Write a moment as Optuna keeps it: in UTC, without a zone."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def as_parameter(value: PointValue) -> CategoricalChoiceType:
    """Write a value as Optuna takes it: a list as JSON text."""
    return json.dumps(value) if isinstance(value, list | tuple) else value


def objective_values(row: Mapping[str, Any], objectives: Sequence[Objective]) -> tuple[float, ...] | None:
    """Read a trial's number for each objective from its row of the table `trials`.

    Returns:
        The numbers; None where one was not measured.
    """
    values = [row.get(objective.column) for objective in objectives]
    measured = tuple(float(value) for value in values if value is not None and math.isfinite(value))
    return measured if len(measured) == len(objectives) else None


def outcome_of(status: TrialStatus, values: tuple[float, ...] | None) -> Outcome:
    """Say how a trial ended as a study is told it.

    Args:
        status: How it ended; not `running`.
        values: Its number for each objective; None where one was not measured: nothing can be learnt from it then.
    """
    if status is not TrialStatus.COMPLETED:
        return _STATES[status], None
    return (TrialState.FAIL, None) if values is None else (TrialState.COMPLETE, values)


def outcome_of_repeats(outcomes: Sequence[Outcome]) -> Outcome:
    """Make one outcome of a point's repeats: the mean of those that completed; without any, how the first one ended."""
    completed = [values for _, values in outcomes if values is not None]
    if not completed:
        return outcomes[0]
    return TrialState.COMPLETE, tuple(sum(column) / len(completed) for column in zip(*completed, strict=True))


def _from_parameter(axis: SampledAxis, parameter: Any) -> PointValue:
    if isinstance(axis, Choice):
        return next(value for value in axis.values if as_parameter(value) == parameter)  # type: ignore[no-any-return]
    return parameter  # type: ignore[no-any-return]


def _point_key(cell: Cell, values: Values) -> str:
    return json.dumps([cell.name, dict(values)], sort_keys=True)


def _listed_values(cell: Cell, space: SearchSpace, strategy: Strategy) -> Iterable[Values]:
    """List what is to be tried in a cell before the sampler proposes: first points, or every point there is."""
    if strategy.sampler == "exhaustive":
        return cell.all_values() or ()
    found = (first_values(cell, point) for point in space.first_points)
    return [values for values in found if values is not None]
