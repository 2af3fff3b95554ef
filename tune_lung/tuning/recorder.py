"""The driver's account of a search: what every trial has shown so far, written to the ledger as it comes in."""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from ray.tune import Callback
from ray.tune.experiment import Trial

from tune_lung.errors import InputError, NoRoomError, SupersededError, is_no_room
from tune_lung.metrics import Metric, metric_of
from tune_lung.results.ledger import Ledger
from tune_lung.results.schema import FailureKind, StopReason, TimePart, TrialStatus, table_schema
from tune_lung.strategy import Objective
from tune_lung.tuning.cluster import Resources, nodes_at
from tune_lung.tuning.driver_only import DriverOnly
from tune_lung.tuning.failures import (
    CURABLE,
    FIRST_FAILURES_THAT_END_A_SEARCH,
    HOPELESS,
    MOST_FAILURES,
    Failure,
    address_in,
    has_traceback,
    is_for_another_owner,
    is_for_lack_of_room,
    kind_of,
    line_of,
    without_paths,
)
from tune_lung.tuning.plan import SearchSetup, TrialPlan
from tune_lung.tuning.proposals.studies import objective_values
from tune_lung.tuning.reports import EPOCHS, failure_of, last_epoch
from tune_lung.tuning.retention import Retention
from tune_lung.tuning.slots import Slots
from tune_lung.tuning.stopping_rules import Decision
from tune_lung.tuning.trial_record import FACT_COLUMNS, EarlierAttempts, TrialRecord

_SECONDS_BETWEEN_FLUSHES = 10.0
_SECONDS_BETWEEN_LOOKS = 1.0
"""A driver that another has superseded ends within so long, whatever its trials do."""
_NOT_REPORTED = ("trial_id", "ended")
"""Columns of the table `epochs` that no worker tells."""

_log = logging.getLogger(__name__)


class SearchHaltedError(Exception):
    """The first trials have all failed with what the others would meet too; the text says what to do."""


class Recorder(DriverOnly, Callback):
    """Keeps one record per trial and writes it to the ledger: at least every 10 s, after each decision, and at its end."""

    def __init__(
        self,
        ledger: Ledger,
        setup: SearchSetup,
        resources: Resources,
        *,
        earlier: EarlierAttempts | None = None,
        retention: Retention | None = None,
        slots: Slots | None = None,
    ) -> None:
        """Start with what earlier attempts left.

        Args:
            ledger: The run's ledger.
            setup: Works out each trial's identity.
            resources: What every trial gets.
            earlier: What they left; None at a run's beginning.
            slots: Where trials run; None for those of `resources`.
            retention: Removes checkpoints that are needed no more; None removes none.
        """
        self._ledger, self._setup, self._resources = ledger, setup, resources
        self.slots = slots or Slots(resources)
        """Where trials run."""
        self._retention = retention
        self._busy_seconds = 0.0
        earlier = earlier or EarlierAttempts()
        self._records = {record.plan.trial_id: record for record in earlier.records}
        self._loose_decisions = earlier.loose_decisions
        self._num_decisions, self._order = earlier.num_decisions, earlier.order
        self._record_by_ray_id: dict[str, TrialRecord] = {}
        self._stop_reasons: dict[str, StopReason] = {}
        self._failures: dict[str, Failure] = {}
        self._ended_with: list[FailureKind | None] = []
        self._looked_at = -math.inf
        self.halted_by: Exception | None = None
        """Why the whole search cannot go on."""
        for record in (*earlier.settled, *(record for record in earlier.records if record.has_unwritten_decisions)):
            self._write(record)

    @property
    def records(self) -> list[TrialRecord]:
        """Every trial started so far, in the order of their proposal."""
        return list(self._records.values())

    def so_far(self) -> EarlierAttempts:
        """Give all that is known, as what a search goes on from."""
        return EarlierAttempts(
            records=self.records,
            loose_decisions=self._loose_decisions,
            num_decisions=self._num_decisions,
            order=self._order,
        )

    def tidy(self) -> None:
        """Remove the checkpoints that are needed no more of any trial.

        Raises:
            SupersededError: Another driver owns the run now.
        """
        if self._retention is not None:
            self._retention.tidy(self.records)

    def running(self) -> list[TrialRecord]:
        """The trials whose workers are there and at work, in the order of their proposal."""
        at_work = {id(self._record_by_ray_id[ray_id]) for ray_id in self.slots.running}
        return [record for record in self.records if id(record) in at_work]

    def leader(self) -> TrialRecord | None:
        """The trial with the best selection score so far, failed ones left out; the earlier one of equals."""
        scored = [record for record in self.records if record.best is not None and record.status is not TrialStatus.FAILED]
        return max(scored, key=lambda record: record.best["selection_score"], default=None)  # type: ignore[index]

    @property
    def selected(self) -> Metric:
        """What trials are ranked by: the selection score is made of it."""
        return metric_of(self._setup.run.select_by)

    def record_of(self, ray_id: str) -> TrialRecord | None:
        """Return a trial's record by Ray's name for it; None before its start."""
        return self._record_by_ray_id.get(ray_id)

    def plan_of(self, config: Mapping[str, Any]) -> TrialPlan:
        """Work out which trial a configuration of the sampler bridge is."""
        return self._setup.plan_trial(config["cell"], config["point"], config["repeat"])

    def config_of(self, cell: str, point: Mapping[str, Any], repeat: int) -> dict[str, Any]:
        """Lay out a trial as its worker takes it: the next proposal, or one that goes on."""
        config = {"cell": cell, "point": dict(point), "repeat": repeat}
        record = self._records.get(self.plan_of(config).trial_id)
        if record is None:
            return config | {"known_epochs": 0, "proposed_order": self._next_order()}
        known = record.known_epochs(self._setup.judged_epochs)
        return config | {"known_epochs": known, "proposed_order": record.proposed_order}

    def busy_seconds(self) -> float:
        """Add up the time that trials worked in this attempt, as their profiles say."""
        return self._busy_seconds

    def note_stop(self, ray_id: str, reason: StopReason) -> None:
        """Take note that the scheduler stops a trial with the epoch it has just reported."""
        self._stop_reasons[ray_id] = reason

    def add_decisions(self, ray_id: str, decisions: Sequence[Decision]) -> None:
        """Add what a stopping rule decided about a trial."""
        record = self._record_by_ray_id[ray_id]
        for decision in decisions:
            self._num_decisions += 1
            record.add_decision(decision, number=self._num_decisions)

    def ending_of(self, ray_id: str, result: Mapping[str, Any] | None) -> tuple[TrialStatus, StopReason]:
        """Name status and reason of a trial that goes on no more.

        Args:
            ray_id: Ray's name for it.
            result: Its last result; None where it raised.
        """
        if result is None or failure_of(result) is not None:
            return TrialStatus.FAILED, StopReason.FAILURE
        stop_reason = last_epoch(result)["stop_reason"]
        if stop_reason:
            reason = StopReason(stop_reason)
            return (TrialStatus.STOPPED if reason is StopReason.TIME else TrialStatus.COMPLETED), reason
        return TrialStatus.STOPPED, self._stop_reasons.get(ray_id, StopReason.TIME)

    def values_of(self, ray_id: str, objectives: Sequence[Objective]) -> tuple[float, ...] | None:
        """Read a trial's objectives at its best epoch.

        Returns:
            One number for each; None where one was not measured.
        """
        return objective_values(self._record_by_ray_id[ray_id].row(), objectives)

    def note_error(self, trial: Trial) -> Failure:
        """Sort the failure of a trial that raised or whose worker is gone, and decide whether it is tried again.

        Raises:
            NoRoomError: A disk is full: the search cannot go on.
            SupersededError: Another driver owns the run now.
        """
        self._check_owner()
        record = self._begun(trial)
        text = _error_text(trial)
        if is_for_another_owner(text):
            self._halt(SupersededError(_message_of(text)))
        if is_for_lack_of_room(text):
            self._halt(NoRoomError("A worker found no room left on its disk. Free some, and go on with --resume."))
        silent_seconds = time.monotonic() - record.moments[-1]
        kind = kind_of(text, silent_seconds=silent_seconds, hang_seconds=self._setup.hang_seconds)
        record.failures[kind] += 1
        is_final = record.failures[kind] >= MOST_FAILURES.get(kind, 1)
        self._failures[trial.trial_id] = failure = Failure(kind, line_of(kind, text), is_final)
        if kind is FailureKind.UNFIT_NODE:
            record.unfit_nodes |= nodes_at(address_in(text))
        if has_traceback(kind) and is_final:
            _log.error("Trial %s (%s) failed:\n%s", record.plan.trial_id, record.plan.cell, without_paths(text))
        return failure

    def failure_of(self, ray_id: str) -> Failure | None:
        """Return what `note_error` found of a trial; None where it did not fail so."""
        return self._failures.get(ray_id)

    def unfit_nodes_for(self, config: Mapping[str, Any]) -> frozenset[str]:
        """Name the nodes, as Ray does, that were unfit for a trial in earlier attempts."""
        record = self._records.get(self.plan_of(config).trial_id)
        return frozenset() if record is None else frozenset(record.unfit_nodes)

    def retried(self) -> Counter[FailureKind]:
        """Count the failed attempts after which a trial was tried again."""
        return Counter(failure.kind for failure in self._failures.values() if not failure.is_final)

    def on_step_begin(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        """Look now and then who owns the run: Ray comes by many times a second, though nothing is reported.

        Raises:
            SupersededError: Another driver does.
        """
        if time.monotonic() - self._looked_at >= _SECONDS_BETWEEN_LOOKS:
            self._check_owner()
            self._looked_at = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        """Look how many slots there are."""
        self.slots.num_live()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Open the trial's record, or take it up again: its worker answers."""
        record = self._begun(trial)
        record.starts_in(self.slots.take(trial.trial_id), moment=datetime.now(UTC))
        num_running = len(self.slots.running)
        for ray_id in self.slots.running:
            self._record_by_ray_id[ray_id].runs_beside(num_running)
        self._write(record)
        self._retain(record)

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any) -> None:
        """Add the epochs' rows; a diverged epoch has none."""
        self._check_owner()  # before trackers hear of it
        record = self._record_by_ray_id[trial.trial_id]
        if failure_of(result) is not None:
            return
        self._name_damaged(record, result)
        record.facts = {name: last_epoch(result)[name] for name in FACT_COLUMNS}
        told_again = sum(row.get("is_told_again", False) for row in result[EPOCHS])
        columns = [name for name in table_schema("epochs", self._ledger.classes).names if name not in _NOT_REPORTED]
        rows = [{name: row.get(name) for name in columns} for row in result[EPOCHS]]
        record.add_epochs(rows, told_again=told_again, moment=datetime.now(UTC))
        parts = [
            {"epoch": row["epoch"], "part": part, "seconds": seconds}
            for row in result[EPOCHS]
            for part, seconds in row["seconds_by_part"].items()
        ]
        record.profile += parts
        self._busy_seconds += math.fsum(row["seconds"] for row in parts if row["part"] != TimePart.IDLE)
        # A decision is written before the next one is taken: whoever goes on from the ledger finds every rival it was taken by.
        if record.has_unwritten_decisions or time.monotonic() - record.flushed_at >= _SECONDS_BETWEEN_FLUSHES:
            self._write(record)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Close the record: run to its end, diverged, or stopped by the scheduler."""
        self.slots.leave(trial.trial_id)
        record = self.record_of(trial.trial_id)
        if record is None:  # taken out of the queue before its start
            return
        record.failure = failure_of(trial.last_result)
        record.failure_kind = None if record.failure is None else FailureKind.DIVERGED
        self._end(record, *self.ending_of(trial.trial_id, trial.last_result))
        # Ray keeps every ended trial, with averages of its numbers that nobody asks for: 4 KB each.
        trial.run_metadata.metric_n_steps.clear()
        trial.run_metadata.metric_analysis.clear()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Close the record of a trial that is given up; leave that of one that is tried again.

        Raises:
            SearchHaltedError: The first trials have all failed with what the others would meet too.
        """
        self.slots.leave(trial.trial_id)
        record, failure = self._begun(trial), self._failures.get(trial.trial_id) or self.note_error(trial)
        if not failure.is_final:
            self._write(record)
            return
        record.failure, record.failure_kind = failure.text, failure.kind
        self._end(record, TrialStatus.FAILED, StopReason.FAILURE)
        if len(self._ended_with) == FIRST_FAILURES_THAT_END_A_SEARCH and HOPELESS.issuperset(self._ended_with):
            going_on = "go on with --resume" if failure.kind in CURABLE else "begin a new run"
            self._halt(
                SearchHaltedError(
                    f"The first {FIRST_FAILURES_THAT_END_A_SEARCH} trials all failed, the last with {failure.text}. The log above"
                    f" has its traceback. Mend it, and {going_on}."
                )
            )

    def add_test_scores(self, trial_id: str, scores: dict[str, float]) -> None:
        """Add the sealed evaluation's columns to a trial's row."""
        record = self._records[trial_id]
        record.test_scores = scores
        self._write(record)

    def flush(self) -> None:
        """Write every unfinished trial of this attempt as it stands."""
        begun = {id(record) for record in self._record_by_ray_id.values()}
        for record in self.records:
            if record.status is TrialStatus.RUNNING and id(record) in begun:
                self._write(record)

    def _begun(self, trial: Trial) -> TrialRecord:
        """Find a trial's record; make it, or take it up again, where this is the trial's start."""
        if trial.trial_id not in self._record_by_ray_id:
            plan = self.plan_of(trial.config)
            record = self._records.get(plan.trial_id)
            if record is None:
                order = trial.config["proposed_order"]
                loose = self._loose_decisions.get(plan.trial_id, [])
                record = TrialRecord(plan=plan, resources=self._resources, proposed_order=order, decisions=loose)
                self._records[plan.trial_id] = record
            else:
                record.start_again()
                record.resources = self._resources
            self._record_by_ray_id[trial.trial_id] = record
        return self._record_by_ray_id[trial.trial_id]

    def _end(self, record: TrialRecord, status: TrialStatus, stop_reason: StopReason) -> None:
        record.end(status, stop_reason, order=self._next_order(), moment=datetime.now(UTC))
        self._ended_with.append(record.failure_kind)
        self._write(record)
        self._retain(record)

    def _next_order(self) -> int:
        self._order += 1
        return self._order

    def _name_damaged(self, record: TrialRecord, result: Mapping[str, Any]) -> None:
        names = [name for row in result[EPOCHS] for name in row.get("damaged_checkpoints", ())]
        if names:
            told = " and ".join(names)
            _log.warning("Trial %s (%s): damaged and passed over: checkpoint %s.", record.plan.trial_id, record.plan.cell, told)

    def _halt(self, error: Exception) -> NoReturn:
        self.halted_by = error
        raise error

    def _check_owner(self) -> None:
        with self._halting():
            self._ledger.check_writer()

    def _retain(self, record: TrialRecord) -> None:
        """Remove what is needed no more now that the trial's row is on the disk."""
        if self._retention is not None:
            with self._halting():
                self._retention.note(record)

    def _write(self, record: TrialRecord) -> None:
        with self._halting():
            if record.epochs:
                self._ledger.write_epochs(record.plan.trial_id, record.epochs)
            if record.decisions:
                self._ledger.write_decisions(record.decisions)
            if record.profile:
                self._ledger.write_profile(record.plan.trial_id, record.profile)
            self._ledger.write_trial(record.row())
        record.has_unwritten_decisions = False
        record.flushed_at = time.monotonic()

    @contextmanager
    def _halting(self) -> Iterator[None]:
        """Let the whole search end where the ledger cannot be written, or must not be."""
        try:
            yield
        except SupersededError as error:
            self._halt(error)
        except OSError as error:
            if is_no_room(error):
                self._halt(NoRoomError("No room left for the run's tables. Free some, and go on with --resume."))
            self._halt(InputError(f"The run's tables cannot be written: {error.strerror}. Mend that, and go on with --resume."))


def _message_of(text: str) -> str:
    """Return what a traceback's last line says, without the name of the error."""
    return text.strip().splitlines()[-1].partition(": ")[2]


def _error_text(trial: Trial) -> str:
    """Read the traceback that Ray keeps as plain text; its pickled twin is left alone."""
    path = Path(trial.error_file) if trial.error_file else None
    return path.read_text(encoding="utf-8", errors="replace").strip() if path and path.is_file() else ""
