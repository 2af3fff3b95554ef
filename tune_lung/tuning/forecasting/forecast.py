"""What a search will take: its trials, rungs, epochs and time. Plain arithmetic; nothing is trained and nobody is asked."""

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from tune_lung.config import TrialConfig
from tune_lung.families.family import PointValue
from tune_lung.randomness import derive_seed
from tune_lung.results.schema import Verdict
from tune_lung.space import Cell, LogUniform, SampledAxis
from tune_lung.strategy import Strategy
from tune_lung.training.fit import SECONDS_BETWEEN_LAST
from tune_lung.tuning.scheduler import rule_of
from tune_lung.tuning.stopping_rules import StoppingRule

_SAMPLES_PER_CELL = 5
_REPLAYED_TRIALS = 2000


@dataclass(frozen=True, kw_only=True)
class CellPlan:
    """What is tried in one cell."""

    cell: Cell
    """The cell."""
    num_points: int
    """Points it is given."""
    samples: tuple[dict[str, PointValue], ...]
    """A few points that stand for all of them: the only one of a grid's cell, else some spread over its axes."""


@dataclass(frozen=True, kw_only=True)
class ForeseenTrial:
    """One trial to come, standing at one of its cell's samples."""

    cell: str
    """Name of its cell."""
    point: Mapping[str, PointValue]
    """What it trains, as far as its cost goes."""
    repeat: int
    """Number of the repeat, from 0."""
    trial: TrialConfig
    """The point, checked."""


@dataclass(frozen=True, kw_only=True)
class RungForecast:
    """What is to be expected at one rung."""

    epoch: int
    """Where trials are compared."""
    num_compared: float
    """Trials that come to it, on average."""
    num_going_on: float
    """Those of them that go on."""


@dataclass(frozen=True, kw_only=True)
class EpochForecast:
    """How many epochs each trial of a search will run."""

    least: tuple[int, ...]
    """If every trial ends as early as patience or the first comparison can end it."""
    expected: tuple[float, ...]
    """On average."""
    most: tuple[int, ...]
    """If every trial runs all its epochs."""
    rungs: tuple[RungForecast, ...]
    """What is expected at each rung; none where ASHA does not run."""


@dataclass(frozen=True, kw_only=True)
class TrialCost:
    """Seconds and bytes of one trial, as a probe measured them, for all images of the run."""

    start_seconds: float
    """From its start to its first epoch, features apart."""
    features_seconds: float
    """Computing the features of its frozen prefix, once; 0 where they are not used."""
    features_to_build: tuple[str | None, ...]
    """Names of those features by repeat; None where they are not used, or there already."""
    features_bytes: int
    """Disk that they take; 0 where they are not used."""
    epoch_seconds: float
    """A training pass."""
    validation_seconds: float
    """A validation pass."""
    best_seconds: float
    """Keeping a better epoch, its network and its predictions; never without saving the state."""
    last_seconds: float
    """Saving the state to go on from."""
    test_seconds: float
    """The sealed evaluation."""
    memory_bytes: int
    """Most memory of its process so far."""
    gpu_memory_bytes: int
    """Memory of the GPU, all images or features and the process's context included; 0 without one."""
    gpu_bytes: int
    """All memory of that GPU; 0 without one."""

    def seconds(self, epochs: float) -> float:
        """Add up a trial of so many epochs, features apart."""
        pass_seconds = self.epoch_seconds + self.validation_seconds
        num_saved = 1 + epochs * min(1.0, pass_seconds / SECONDS_BETWEEN_LAST)
        return self.start_seconds + epochs * pass_seconds + num_saved * (self.best_seconds + self.last_seconds)


def plan_cells(cells: Iterable[Cell], strategy: Strategy) -> tuple[CellPlan, ...]:
    """Say what each cell is given: never more points than there are."""
    plans = []
    for cell in cells:
        there_are, wanted = cell.num_values(), strategy.num_points(cell)
        num_points = wanted if there_are is None else min(wanted, there_are)
        plans.append(CellPlan(cell=cell, num_points=num_points, samples=_samples(cell, min(num_points, _SAMPLES_PER_CELL))))
    return tuple(plans)


def foresee_trials(plans: Sequence[CellPlan], strategy: Strategy) -> tuple[ForeseenTrial, ...]:
    """List the trials in the order in which they start: a point of each cell in turn, its repeats one after another."""
    trials = []
    for number in range(max(plan.num_points for plan in plans)):
        for plan in plans:
            if number >= plan.num_points:
                continue
            point = plan.samples[number % len(plan.samples)]
            trial = TrialConfig.from_point(point)
            trials += [
                ForeseenTrial(cell=plan.cell.name, point=point, repeat=repeat, trial=trial) for repeat in range(strategy.repeats)
            ]
    return tuple(trials)


def foresee_epochs(
    trials: Sequence[ForeseenTrial], strategy: Strategy, *, group_of: Callable[[str], str], seed: int = 0
) -> EpochForecast:
    """Foresee how long trials run, by replaying the stopping rule.

    In a replay nothing tells the trials apart: each has its place in the ranking, and its best epoch, by chance. A best
    epoch anywhere from first to last, all equal, is what the paper saw (13 runs of at most 100 epochs with patience 20:
    71 on average; so drawn: 68). A rule that foresees nothing is taken to stop nothing.

    Args:
        trials: In the order of their start.
        strategy: Its scheduler and numbers.
        group_of: Names the trials that a cell's trials are compared with, by the cell's name.
        seed: Of the replays.
    """
    max_epochs = max(trial.trial.max_epochs for trial in trials)
    rule = rule_of(strategy, max_epochs=max_epochs)
    rungs = () if rule is None else rule.foreseen_epochs
    first_comparison = math.inf if rule is None else min(rule.compared_epochs, default=math.inf)
    generator = np.random.default_rng(derive_seed(seed, "forecast"))
    num_replays = math.ceil(_REPLAYED_TRIALS / len(trials))
    replays = [
        _replay(trials, rule_of(strategy, max_epochs=max_epochs) if rungs else None, group_of, generator)
        for _ in range(num_replays)
    ]
    verdicts = [verdict for replay in replays for verdict in replay.verdicts]
    return EpochForecast(
        least=tuple(int(min(t.trial.max_epochs, t.trial.patience + 1, first_comparison)) for t in trials),
        expected=tuple(fmean(column) for column in zip(*(replay.epochs for replay in replays), strict=True)),
        most=tuple(trial.trial.max_epochs for trial in trials),
        rungs=tuple(
            RungForecast(
                epoch=rung,
                num_compared=sum(at == rung for at, _ in verdicts) / num_replays,
                num_going_on=sum(at == rung and verdict is Verdict.CONTINUE for at, verdict in verdicts) / num_replays,
            )
            for rung in rungs
        ),
    )


def search_seconds(
    trials: Sequence[ForeseenTrial],
    epochs: Sequence[float],
    cost_of: Callable[[ForeseenTrial], TrialCost],
    *,
    slots: int,
    worker_seconds: float,
) -> float:
    """Add up a search: its workers' start, its trials on the slots, and the sealed evaluation of each cell's best point.

    Args:
        trials: In the order of their start.
        epochs: How many each runs.
        cost_of: What each costs.
        slots: Trials at once.
        worker_seconds: From asking for a worker to its first line of work.

    Returns:
        Seconds from the first trial's start to the last evaluation's end.
    """
    built: set[str | None] = {None}
    durations = []
    for trial, num_epochs in zip(trials, epochs, strict=True):
        cost = cost_of(trial)
        features = cost.features_to_build[trial.repeat]
        durations.append(cost.seconds(num_epochs) + (0.0 if features in built else cost.features_seconds))
        built.add(features)
    tested = {(trial.cell, trial.repeat): cost_of(trial).test_seconds for trial in trials}
    return 2 * worker_seconds + seconds_on_slots(durations, slots) + seconds_on_slots(tested.values(), slots)


def seconds_on_slots(durations: Iterable[float], slots: int) -> float:
    """Time work on slots, each piece beginning in its turn as soon as a slot is free."""
    free_at = [0.0] * slots
    for duration in durations:
        heapq.heapreplace(free_at, free_at[0] + duration)
    return max(free_at)


@dataclass(frozen=True, kw_only=True)
class _Replay:
    """One search in which chance decides who is good."""

    epochs: list[int]
    """Epochs of each trial."""
    verdicts: list[tuple[int, Verdict]]
    """Each comparison's rung and outcome."""


def _replay(
    trials: Sequence[ForeseenTrial], rule: StoppingRule | None, group_of: Callable[[str], str], generator: np.random.Generator
) -> _Replay:
    replay = _Replay(epochs=[], verdicts=[])
    for number, foreseen in enumerate(trials):
        trial, group, score = foreseen.trial, group_of(foreseen.cell), float(generator.random())
        own_end = min(trial.max_epochs, int(generator.integers(1, trial.max_epochs + 1)) + trial.patience)
        decisions = rule.judge(str(number), group, own_end - 1, score) if rule is not None else []
        replay.verdicts.extend((decision.rung_epoch, decision.verdict) for decision in decisions)
        if decisions and decisions[-1].verdict is Verdict.STOP:
            replay.epochs.append(decisions[-1].rung_epoch)
            continue
        replay.epochs.append(own_end)
        if rule is not None:
            rule.completed(str(number), group, score)
    return replay


def _samples(cell: Cell, count: int) -> tuple[dict[str, PointValue], ...]:
    """Spread points over a cell's axes: every axis is cut into as many equal parts, and each part's middle is used once."""
    generator = np.random.default_rng(derive_seed(0, "samples", cell.name))
    shares = {name: (generator.permutation(count) + 0.5) / count for name in cell.axes}
    return tuple(
        cell.with_values({name: _value_at(axis, float(shares[name][number])) for name, axis in cell.axes.items()})
        for number in range(count)
    )


def _value_at(axis: SampledAxis, share: float) -> PointValue:
    """Give the value below which a share, 0 to under 1, of an axis lies."""
    values = axis.all_values()
    if values is not None:
        return values[int(share * len(values))]
    low, high = axis.ends()
    if isinstance(axis, LogUniform):
        return float(low * (high / low) ** share)
    return float(low + share * (high - low))
