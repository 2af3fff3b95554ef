"""What a search keeps of its trials' checkpoints: it is told of every trial that begins or ends, and removes what may go.

What belongs to training goes when a trial has ended for good, its network when it leads no more. Nothing goes before the row
on the disk says why: neither what a trial goes on from before the row of its end, nor a network before the row of the trial
that takes its place. So a kill at any moment leaves all that the rows promise; what it leaves beside that goes at the next
start. A frozen part that no network names any more goes before the first trial begins or when the last has ended.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tune_lung.results.layout import KeepName, RunPaths
from tune_lung.results.leaders import Leaders, may_go_on
from tune_lung.strategy import Strategy
from tune_lung.training.checkpoints import Checkpoints, frozen_parts_named
from tune_lung.training.frozen_parts import FrozenParts
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.trial_record import TrialRecord

_log = logging.getLogger(__name__)


class Retention:
    """Removes checkpoints for the one driver that owns a run."""

    def __init__(self, keep: KeepName, strategy: Strategy, setup: SearchSetup) -> None:
        """Begin without trials.

        Args:
            keep: `leaders`, `best` for every trial's network, or `all` for what training goes on from too.
            strategy: Its objectives and repeats say who leads.
            setup: Knows the run, and whether this driver still owns it.
        """
        self._keep, self._setup = keep, setup
        self._leaders = Leaders(strategy.objectives, repeats=strategy.repeats)
        self._is_stuck = False

    def note(self, record: TrialRecord) -> None:
        """Take note that a trial has begun or ended, and remove what is needed no more; its row is on the disk.

        Raises:
            SupersededError: Another driver owns the run now.
        """
        plan, freed = record.plan, self._leaders.note(record.row())
        for trial_id in freed:
            self._remove(trial_id, is_leader=False)
        if plan.trial_id not in freed and not may_go_on(record.status, record.stop_reason):
            self._remove(plan.trial_id, is_leader=True)

    def tidy(self, records: Iterable[TrialRecord]) -> None:
        """Remove what is needed no more of any trial: what a kill, a late worker, or a wider `--keep` left.

        While no trial runs.

        Args:
            records: Every trial.

        Raises:
            SupersededError: Another driver owns the run now.
        """
        records = list(records)
        for record in records:
            self._leaders.note(record.row())
        for record in records:
            if not may_go_on(record.status, record.stop_reason):
                self._remove(record.plan.trial_id, is_leader=self._leaders.keeps(record.plan.cell, record.plan.point_id))
        self._remove_frozen_parts()

    def _remove(self, trial_id: str, *, is_leader: bool) -> None:
        if self._keep == "all":
            return
        checkpoints = Checkpoints(RunPaths(self._setup.run_root).checkpoints(trial_id), self._setup.check_attempt)
        with self._if_the_disk_lets_go():
            checkpoints.remove(keep_best=is_leader or self._keep == "best")

    def _remove_frozen_parts(self) -> None:
        paths = RunPaths(self._setup.run_root)
        if self._keep == "all" or paths.all_checkpoints.is_symlink() or not paths.frozen_parts.is_dir():
            return
        with self._if_the_disk_lets_go():
            FrozenParts(paths.frozen_parts, self._setup.check_attempt).remove_all_but(frozen_parts_named(paths.all_checkpoints))

    @contextmanager
    def _if_the_disk_lets_go(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._is_stuck:
                _log.warning("Checkpoints that are needed no more cannot be removed: %s. They stay.", error.strerror)
            self._is_stuck = True
