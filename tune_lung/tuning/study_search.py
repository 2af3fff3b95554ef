"""The bridge to Ray: its searcher asks our studies, and they are told what really happened."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from tune_lung.results.schema import FailureKind, TrialStatus
from tune_lung.strategy import Strategy
from tune_lung.tuning.driver_only import DriverOnly
from tune_lung.tuning.failures import Failure
from tune_lung.tuning.proposals.studies import Outcome, Proposal, Studies, outcome_of, outcome_of_repeats
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.reports import EPOCHS, METRIC, failure_of
from tune_lung.tuning.resume import replay
from tune_lung.tuning.trial_record import TrialRecord


class StudySearch(DriverOnly, Searcher):
    """Hands Ray the studies' proposals, each once per repeat, and tells them how it ended.

    Ray's own OptunaSearch holds one study, tells every trial that did not raise as COMPLETE with its last value, and
    leaves a trial whose value is not finite RUNNING for ever.
    """

    def __init__(
        self,
        studies: Studies,
        strategy: Strategy,
        recorder: Recorder,
        *,
        searched_seconds: Callable[[], float] | None = None,
        earlier: Iterable[TrialRecord] = (),
    ) -> None:
        """Start where earlier attempts ended.

        Args:
            studies: Propose points.
            strategy: Repeats, objectives and time budget.
            recorder: Knows what each trial gave.
            searched_seconds: Tells how much time was spent; None counts from now.
            earlier: Every trial of earlier attempts.
        """
        super().__init__()  # without a metric: rows are read, not what Ray would look for
        self._studies, self._strategy, self._recorder = studies, strategy, recorder
        started_at = time.monotonic()
        self._searched_seconds = searched_seconds or (lambda: time.monotonic() - started_at)
        self._open: dict[str, _Started] = {}
        """What Ray was given and has not ended, by Ray's name."""
        self._last_observed: dict[int, int] = defaultdict(int)
        replayed = replay(studies, strategy, recorder, earlier)
        self._ended: dict[int, list[Outcome]] = replayed.ended
        self._next: deque[_Started] = deque(_Started(*one) for one in replayed.unfinished)
        """What comes before new proposals: trials that go on or are tried again, repeats of a point."""
        self._alone: deque[_Started] = deque()
        """Trials that met the end of memory: they come when nothing else runs."""
        for number, epoch in replayed.observed.items():
            self._last_observed[number] = epoch

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Propose the next trial: its cell, its point, the number of its repeat, and what is known of it.

        Returns:
            The trial's configuration; None while it depends on trials that run; `Searcher.FINISHED` when there is no other
            point, or no time.
        """
        if self._recorder.halted_by is not None or self.is_out_of_time():
            return Searcher.FINISHED
        if not self._may_open_another():
            return None
        is_alone_next = not self._next and not self._propose_next() and bool(self._alone)
        if not self._next and (self._open or not is_alone_next):
            return None if self._open else Searcher.FINISHED
        if any(started.is_alone for started in self._open.values()):
            return None
        started = (self._alone if is_alone_next else self._next).popleft()
        self._open[trial_id] = started
        proposal = started.proposal
        return self._recorder.config_of(proposal.cell.name, proposal.point, started.repeat)

    def _may_open_another(self) -> bool:
        """Whether a proposal would know enough: what is proposed while few have ended knows little of them.

        Where every point is tried anyway all may wait, so that a cluster sees at once how much there is to do.
        """
        return self._strategy.sampler == "exhaustive" or len(self._open) < self._recorder.slots.most_open()

    def is_out_of_time(self) -> bool:
        """Whether the time budget is spent."""
        budget = self._strategy.time_budget_seconds
        return budget is not None and self._searched_seconds() >= budget

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report epochs' scores as intermediate values; with repeats there are none, for seeds are not compared."""
        if failure_of(result) is None:
            self._observe(self._open[trial_id].proposal.number, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take note of a trial's end; the study is told when every repeat of the point has ended."""
        started = self._open.pop(trial_id, None)
        if started is None:  # told before
            return
        failure = self._recorder.failure_of(trial_id) if error else None
        if failure is not None and not failure.is_final:
            self._try_again(started, failure)
            return
        number = started.proposal.number
        status, _ = self._recorder.ending_of(trial_id, None if error else result)
        if result and failure_of(result) is None:
            self._observe(number, result)  # Ray keeps the last result from its searcher
        values = self._recorder.values_of(trial_id, self._strategy.objectives) if status is TrialStatus.COMPLETED else None
        ended = self._ended.setdefault(number, [])
        ended.append(outcome_of(status, values))
        if len(ended) == self._strategy.repeats:
            self._studies.tell(number, *outcome_of_repeats(self._ended.pop(number)))

    def _propose_next(self) -> bool:
        """Take up the next point, if there is one."""
        proposal = self._studies.propose()
        if proposal is not None:
            self._next.extend(_Started(proposal, repeat) for repeat in range(self._strategy.repeats))
        return proposal is not None

    def _try_again(self, started: "_Started", failure: Failure) -> None:
        if failure.kind is FailureKind.OUT_OF_MEMORY:
            self._alone.append(replace(started, is_alone=True))
        else:
            self._next.append(started)

    def _observe(self, number: int, result: dict[str, Any]) -> None:
        for row in result[EPOCHS] if self._strategy.repeats == 1 else ():
            if row["epoch"] > self._last_observed[number]:
                self._last_observed[number] = row["epoch"]
                self._studies.observe(number, row["epoch"], row[METRIC])

    def save(self, checkpoint_path: str) -> None:
        """Write nothing of the studies: Ray's state files are never read back, the ledger is what a run goes on from."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a run goes on from its ledger."""
        raise NotImplementedError("A search goes on from its ledger, never from Ray's files.")


@dataclass(frozen=True)
class _Started:
    """A trial as it is handed to Ray."""

    proposal: Proposal
    """Its point."""
    repeat: int
    """The number of its repeat."""
    is_alone: bool = False
    """Whether nothing else may run beside it."""
