"""How long a search still takes: what is left of it, put on its slots with the times that its trials have shown so far."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from tune_lung.config import TrialConfig
from tune_lung.families.registry import family_of
from tune_lung.learners.learner import Setting
from tune_lung.learners.registry import learner_of
from tune_lung.results.schema import TrialStatus
from tune_lung.space import Cell, SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.tuning.forecasting.forecast import foresee_trials, plan_cells, seconds_on_slots
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.trial_record import TrialRecord


@dataclass(frozen=True)
class _Pace:
    """What a trial's time goes into, on the clock that a person watches: work, waiting and saving together."""

    start_seconds: float
    """From its start to its first epoch."""
    epoch_seconds: float
    """An epoch, up to its report."""


class TimeLeft:
    """Foresees a search's time from the trials seen so far; the budget alone bounds it, for what comes may be slower.

    Without a scheduler every trial is taken to run all its epochs. With one, a trial is expected
    to run as long as those that ran longer than it has run, on average, and a trial to come as long as one of those
    started. A cell that has not been seen is taken to be as slow for its work as the slowest one seen of its family; the
    handcrafted CNN's wide layers take longer for the same work than a ResNet's.
    """

    def __init__(self, cells: Iterable[Cell], strategy: Strategy, *, work: Mapping[str, float]) -> None:
        """Foresee the trials of a search.

        Args:
            cells: What is tried, in the order in which it is taken up.
            strategy: Who is stopped, how many trials there are, and how long they may take together.
            work: What one image costs in each cell, by its name and in any unit, as `work_of_cells` counts it.
        """
        self._foreseen = foresee_trials(plan_cells(cells, strategy), strategy)
        self._family = {trial.cell: family_of(trial.trial.network.model).name for trial in self._foreseen}
        self._stops_trials = strategy.scheduler != "none"
        self._budget_seconds = strategy.time_budget_seconds
        self._work = work

    @property
    def num_trials(self) -> int:
        """Trials of the whole search."""
        return len(self._foreseen)

    def text(self, records: Sequence[TrialRecord], *, slots: int, elapsed_seconds: float, now: float) -> str:
        """Say how long it still takes; the arguments are those of `seconds`."""
        seconds = self.seconds(records, slots=slots, elapsed_seconds=elapsed_seconds, now=now)
        budget = self._budget_left(elapsed_seconds)
        if budget == 0:
            return "time budget spent"
        if seconds is None:
            return "time left not known yet"
        return f"{'at most' if seconds == budget else 'about'} {duration(seconds)} left"

    def seconds(self, records: Sequence[TrialRecord], *, slots: int, elapsed_seconds: float, now: float) -> float | None:
        """Compute how long it still takes.

        Args:
            records: Every trial started so far.
            slots: Trials at once, at least 1.
            elapsed_seconds: Since the search began.
            now: The present moment, monotonic.

        Returns:
            Seconds, never more than what is left of the time budget; None before the first epoch of a search without one.
        """
        paces = _paces(records)
        budget = self._budget_left(elapsed_seconds)
        if not paces:
            return budget
        running = [record for record in records if record.status is TrialStatus.RUNNING]
        lengths = [len(record.epochs) for record in records if record.status is not TrialStatus.RUNNING]
        durations = [self._seconds_of_running(record, lengths, paces, now) for record in running]
        share = fmean(self._expected_epochs(record, lengths) / record.plan.trial.max_epochs for record in records)
        durations += self._seconds_of_waiting(records, share, paces)
        seconds = seconds_on_slots(durations, max(slots, len(running)))
        return seconds if budget is None else min(seconds, budget)

    def _budget_left(self, elapsed_seconds: float) -> float | None:
        return None if self._budget_seconds is None else max(0.0, self._budget_seconds - elapsed_seconds)

    def _seconds_of_running(self, record: TrialRecord, lengths: Sequence[int], paces: Mapping[str, _Pace], now: float) -> float:
        pace, num_epochs = self._pace(record.plan.cell, paces), len(record.epochs)
        epochs_left = self._expected_epochs(record, lengths) - num_epochs
        start = 0.0 if num_epochs else pace.start_seconds
        return max(0.0, start + epochs_left * pace.epoch_seconds - (now - record.moments[-1]))

    def _seconds_of_waiting(self, records: Sequence[TrialRecord], share: float, paces: Mapping[str, _Pace]) -> list[float]:
        """Time each trial to come, in the order in which they start, if it runs a share of all its epochs."""
        num_started = Counter(record.plan.cell for record in records)
        durations = []
        for trial in self._foreseen:
            if num_started[trial.cell]:
                num_started[trial.cell] -= 1
                continue
            pace = self._pace(trial.cell, paces)
            epochs = trial.trial.max_epochs * (share if self._stops_trials else 1.0)
            durations.append(pace.start_seconds + epochs * pace.epoch_seconds)
        return durations

    def _expected_epochs(self, record: TrialRecord, lengths: Sequence[int]) -> float:
        """Expect how many epochs a started trial will have run, from the lengths of those that have ended."""
        num_epochs, most = len(record.epochs), record.plan.trial.max_epochs
        if record.status is not TrialStatus.RUNNING:
            return num_epochs
        longer = [length for length in lengths if length > num_epochs] if self._stops_trials else []
        return min(most, fmean(longer)) if longer else most

    def _pace(self, cell: str, paces: Mapping[str, _Pace]) -> _Pace:
        if cell in paces:
            return paces[cell]
        alike = {seen: pace for seen, pace in paces.items() if self._family[seen] == self._family[cell]} or paces
        slowest = max(pace.epoch_seconds / self._work[seen] for seen, pace in alike.items())
        return _Pace(max(pace.start_seconds for pace in alike.values()), slowest * self._work[cell])


def work_of_cells(space: SearchSpace, setup: SearchSetup, *, num_classes: int) -> dict[str, float]:
    """Foresee what an epoch of each cell's largest model spends on one image, in multiply-adds, as if nothing were frozen."""
    setting, work = Setting.of(setup.run, num_classes=num_classes), {}
    for cell in space.cells():
        *_, largest = cell.probes()
        trial = TrialConfig.from_point(largest)
        work[cell.name] = float(learner_of(trial.network.model).epoch_work(trial, setting))
    return work


def duration(seconds: float) -> str:
    """Write a time for people, in its two largest units, such as `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _paces(records: Sequence[TrialRecord]) -> dict[str, _Pace]:
    """Average the pace of each cell's trials that have reported an epoch."""
    seen = defaultdict(list)
    for record in records:
        if len(record.moments) > 1:
            seen[record.plan.cell].append(_pace_of(record))
    return {
        cell: _Pace(fmean(pace.start_seconds for pace in paces), fmean(pace.epoch_seconds for pace in paces))
        for cell, paces in seen.items()
    }


def _pace_of(record: TrialRecord) -> _Pace:
    started_at, first_at, last_at = record.moments[0], record.moments[1], record.moments[-1]
    num_later, last = len(record.moments) - 2, record.epochs[-1]
    epoch = (last_at - first_at) / num_later if num_later else last["epoch_seconds"] + last["validation_seconds"]
    return _Pace(max(0.0, first_at - started_at - epoch), epoch)
