"""The rivals, each driven step by step as a Ray Tune run drives it, without Ray's cluster."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Protocol

from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.tabulated import TabulatedProblem
from tune_lung.families.family import PointValue
from tune_lung.results.schema import Verdict
from tune_lung.space import Cell, Choice, IntRange, LogUniform, SampledAxis
from tune_lung.strategy import SamplerName, SchedulerName, Strategy
from tune_lung.tuning.proposals.studies import Proposal, Studies
from tune_lung.tuning.scheduler import rule_of

METRIC = "selection_score"


class Method(Protocol):
    """One search: it proposes trials and hears of them, by their numbers, counted from 0 in the order of their proposal."""

    def propose(self) -> tuple[Cell, Mapping[str, PointValue]] | None:
        """Propose the next trial: its cell and a value for each of the cell's sampled axes; None for no more."""

    def report(self, trial: int, epoch: int, score: float, *, is_last: bool) -> bool:
        """Hear of an epoch.

        Args:
            trial: The trial.
            epoch: Counted from 1.
            score: Finite.
            is_last: Whether the trial ends here by itself.

        Returns:
            Whether the trial goes on.
        """

    def fail(self, trial: int) -> None:
        """Hear that a trial failed."""


class TuneLung:
    """Our studies and our stopping rule, told what `StudySearch` and `RungScheduler` tell them."""

    def __init__(self, problem: TabulatedProblem, strategy: Strategy, *, seed: int) -> None:
        """Start a search.

        Args:
            problem: What is searched.
            strategy: Who proposes and who is stopped.
            seed: The search's.
        """
        self._studies = Studies(problem.space, strategy, seed=seed)
        self._rule = rule_of(strategy, max_epochs=problem.max_epochs)
        self._proposals: list[Proposal] = []
        self._best: dict[int, float] = {}

    def propose(self) -> tuple[Cell, Mapping[str, PointValue]] | None:
        """Ask the studies."""
        proposal = self._studies.propose()
        if proposal is None:
            return None
        self._proposals.append(proposal)
        return proposal.cell, proposal.point

    def report(self, trial: int, epoch: int, score: float, *, is_last: bool) -> bool:
        """Judge by the best epoch so far; a trial that is stopped is pruned, one at its end complete."""
        best = self._best[trial] = max(score, self._best.get(trial, score))
        if is_last:
            self._complete(trial, best)
            return False
        self._studies.observe(self._proposals[trial].number, epoch, score)
        if self._is_stopped(trial, epoch, best):
            self._studies.tell(self._proposals[trial].number, TrialState.PRUNED)
            return False
        return True

    def fail(self, trial: int) -> None:
        """Tell the study."""
        self._studies.tell(self._proposals[trial].number, TrialState.FAIL)

    def _is_stopped(self, trial: int, epoch: int, best: float) -> bool:
        if self._rule is None:
            return False
        decisions = self._rule.judge(str(trial), self._proposals[trial].cell.name, epoch, best)
        return any(decision.verdict is Verdict.STOP for decision in decisions)

    def _complete(self, trial: int, best: float) -> None:
        proposal = self._proposals[trial]
        if self._rule is not None:
            self._rule.completed(str(trial), proposal.cell.name, best)
        self._studies.tell(proposal.number, TrialState.COMPLETE, [best])


class StockRay:
    """Ray's OptunaSearch and ASHA scheduler with their defaults, called as Ray's TuneController calls them.

    The space is written as Ray's users write it; a grid, which OptunaSearch refuses, as a choice. The result that stops a trial
    does not reach the searcher as a result, but ends the trial with its score as the final value.
    """

    def __init__(self, problem: TabulatedProblem, *, seed: int) -> None:
        """Start a search; arguments as `TuneLung` takes them."""
        self._cells = problem.space.cells()
        self._search = OptunaSearch(seed=seed)
        self._search.set_search_properties(METRIC, "max", _ray_space(problem))
        self._scheduler: Any = AsyncHyperBandScheduler(metric=METRIC, mode="max", max_t=problem.max_epochs)
        self._num_trials = 0

    def propose(self) -> tuple[Cell, Mapping[str, PointValue]] | None:
        """Ask OptunaSearch, and find the cell it chose."""
        trial = self._num_trials
        self._num_trials += 1
        values = self._search.suggest(str(trial)) or {}
        self._scheduler.on_trial_add(None, _as_ray_trial(trial))
        cell = next(cell for cell in self._cells if all(values[name] == value for name, value in cell.grid.items()))
        return cell, values

    def report(self, trial: int, epoch: int, score: float, *, is_last: bool) -> bool:
        """Ask the scheduler first; the searcher hears of the epoch when the trial goes on."""
        result = {"training_iteration": epoch, METRIC: score}
        decision = self._scheduler.on_trial_result(None, _as_ray_trial(trial), result)
        if decision == TrialScheduler.CONTINUE:
            self._search.on_trial_result(str(trial), result)
            if not is_last:
                return True
        self._scheduler.on_trial_complete(None, _as_ray_trial(trial), result)
        self._search.on_trial_complete(str(trial), result=result)
        return False

    def fail(self, trial: int) -> None:
        """Tell both; a trainable that raised."""
        self._scheduler.on_trial_error(None, _as_ray_trial(trial))
        self._search.on_trial_complete(str(trial), error=True)


def _as_ray_trial(trial: int) -> Any:
    return SimpleNamespace(trial_id=str(trial))


def _ray_space(problem: TabulatedProblem) -> dict[str, Any]:
    (arm,) = problem.space.arms
    grid = {name: tune.choice(list(axis.values)) for name, axis in arm.grid_axes().items()}
    return grid | {name: _ray_domain(axis) for name, axis in arm.sampled_axes().items()}


def _ray_domain(axis: SampledAxis) -> Any:
    if isinstance(axis, Choice):
        return tune.choice(list(axis.values))
    if isinstance(axis, IntRange):  # Ray's bounds leave `high` out, but for its steps
        return tune.randint(axis.low, axis.high + 1) if axis.step == 1 else tune.qrandint(axis.low, axis.high, axis.step)
    return tune.loguniform(axis.low, axis.high) if isinstance(axis, LogUniform) else tune.uniform(axis.low, axis.high)


def _tune_lung(sampler: SamplerName | None, scheduler: SchedulerName | None) -> Callable[[TabulatedProblem, int], Method]:
    def start(problem: TabulatedProblem, seed: int) -> Method:
        samples = len(problem.configurations)  # more than a budget of epochs lets it start
        strategy = Strategy.for_space(problem.space, sampler=sampler, scheduler=scheduler, samples=samples)
        return TuneLung(problem, strategy, seed=seed)

    return start


OURS, UNSTOPPED = "tune_lung", "random"
METHODS: Mapping[str, Callable[[TabulatedProblem, int], Method]] = {
    OURS: _tune_lung(None, None),
    "OptunaSearch + ASHA": lambda problem, seed: StockRay(problem, seed=seed),
    "random + ASHA": _tune_lung("random", "asha"),
    UNSTOPPED: _tune_lung("random", "none"),
}
"""How each rival is started, given the problem and a seed; ours with the options that a user gets without asking."""
