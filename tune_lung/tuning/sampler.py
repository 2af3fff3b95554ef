"""The bridge to Ray: its searcher asks our studies, and they are told what really happened."""

import time
from collections import deque
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from tune_lung.results.schema import TrialStatus
from tune_lung.strategy import Strategy
from tune_lung.tuning.driver_only import DriverOnly
from tune_lung.tuning.outcome import EPOCHS, METRIC, failure_of
from tune_lung.tuning.proposals.studies import Outcome, Proposal, Studies, outcome_of, outcome_of_repeats
from tune_lung.tuning.recorder import Recorder


class StudySearch(DriverOnly, Searcher):
    """Hands Ray the studies' proposals, each once per repeat, and tells them how it ended.

    Ray's own OptunaSearch holds one study, tells every trial that did not raise as COMPLETE with its last value, and
    leaves a trial whose value is not finite RUNNING for ever.
    """

    def __init__(self, studies: Studies, strategy: Strategy, recorder: Recorder) -> None:
        """Start with nothing proposed.

        Args:
            studies: Propose points.
            strategy: Repeats, objectives and time budget.
            recorder: Knows what each trial gave.
        """
        super().__init__()  # without a metric: rows are read, not what Ray would look for
        self._studies, self._strategy, self._recorder = studies, strategy, recorder
        self._started_at = time.monotonic()
        self._next_repeats: deque[tuple[Proposal, int]] = deque()
        self._number_by_trial: dict[str, int] = {}
        self._ended: dict[int, list[Outcome]] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Propose the next trial: its cell, its point and the number of its repeat.

        Returns:
            The trial's configuration; `Searcher.FINISHED` when there is no other point, or no time.
        """
        if not self._next_repeats:
            proposal = None if self.is_out_of_time() else self._studies.propose()
            if proposal is None:
                return Searcher.FINISHED
            self._next_repeats.extend((proposal, repeat) for repeat in range(self._strategy.repeats))
        proposal, repeat = self._next_repeats.popleft()
        self._number_by_trial[trial_id] = proposal.number
        return {"cell": proposal.cell.name, "point": dict(proposal.point), "repeat": repeat}

    def is_out_of_time(self) -> bool:
        """Whether the time budget is spent."""
        budget = self._strategy.time_budget_seconds
        return budget is not None and time.monotonic() - self._started_at >= budget

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report epochs' scores as intermediate values; with repeats there are none, for seeds are not compared."""
        if failure_of(result) is None:
            self._observe(self._number_by_trial[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take note of a trial's end; the study is told when every repeat of the point has ended."""
        number = self._number_by_trial.pop(trial_id, None)
        if number is None:  # told before
            return
        status, _ = self._recorder.ending_of(trial_id, None if error else result)
        if status is TrialStatus.STOPPED and result:
            self._observe(number, result)  # Ray keeps the result that stopped a trial from its searcher
        values = self._recorder.values_of(trial_id, self._strategy.objectives) if status is TrialStatus.COMPLETED else None
        ended = self._ended.setdefault(number, [])
        ended.append(outcome_of(status, values))
        if len(ended) == self._strategy.repeats:
            self._studies.tell(number, *outcome_of_repeats(self._ended.pop(number)))

    def _observe(self, number: int, result: dict[str, Any]) -> None:
        for row in result[EPOCHS] if self._strategy.repeats == 1 else ():
            self._studies.observe(number, row["epoch"], row[METRIC])

    def save(self, checkpoint_path: str) -> None:
        """Write nothing of the studies: Ray's state files are never read back, the ledger is what a run goes on from."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a run goes on from its ledger."""
        raise NotImplementedError("A search goes on from its ledger, never from Ray's files.")
