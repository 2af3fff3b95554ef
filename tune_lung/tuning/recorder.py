"""The driver's account of a search: what every trial has shown so far, written to the ledger as it comes in."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from tune_lung.results.ledger import Ledger
from tune_lung.results.schema import StopReason, TimePart, TrialStatus
from tune_lung.strategy import Objective
from tune_lung.tuning.cluster import Resources
from tune_lung.tuning.driver_only import DriverOnly
from tune_lung.tuning.outcome import DIED_SILENTLY, EPOCHS, failure_of, last_epoch
from tune_lung.tuning.plan import SearchSetup, TrialPlan
from tune_lung.tuning.rungs import Decision

_SECONDS_BETWEEN_FLUSHES = 10.0
_EPOCH_COLUMNS = (
    "epoch",
    "train_loss",
    "val_loss",
    "val_macro_recall",
    "val_micro_recall",
    "selection_score",
    "epoch_seconds",
    "validation_seconds",
    "images_per_second",
    "learning_rate",
)
_FACT_COLUMNS = ("total_params", "trainable_params", "mult_adds", "device", "prefix_seconds")

_log = logging.getLogger(__name__)


@dataclass
class TrialRecord:
    """One trial as the driver knows it."""

    plan: TrialPlan
    """What is trained."""
    status: TrialStatus = TrialStatus.RUNNING
    """Where it stands."""
    stop_reason: StopReason | None = None
    """What ended it."""
    failure: str | None = None
    """One line on why it failed."""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    """Its rows of the table `epochs`."""
    decisions: list[dict[str, Any]] = field(default_factory=list)
    """Its rows of the table `decisions`."""
    profile: list[dict[str, Any]] = field(default_factory=list)
    """Its rows of the table `profile`; empty unless the search was asked for it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Parameters, multiply-adds, device, seconds spent on prefix features."""
    test_scores: dict[str, float] = field(default_factory=dict)
    """Columns of the sealed evaluation."""
    moments: list[float] = field(default_factory=lambda: [time.monotonic()])
    """Monotonic moments of its start and of each epoch's end; the last one of a report is taken to end with it."""
    flushed_at: float = 0.0
    """Monotonic moment of the last write."""

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the best epoch so far; the earlier one of equals."""
        return max(self.epochs, key=lambda row: (row["selection_score"], -row["epoch"]), default=None)

    @property
    def epoch_seconds_mean(self) -> float | None:
        """Mean time of a training pass, the first epoch left out; None before the second."""
        later = [row["epoch_seconds"] for row in self.epochs[1:]]
        return sum(later) / len(later) if later else None

    def add_epochs(self, rows: Sequence[dict[str, Any]]) -> None:
        """Take note of the epochs of a report, which has just come."""
        moment, ends = time.monotonic(), []
        for row in reversed(rows):
            ends.append(moment)
            moment -= row["epoch_seconds"] + row["validation_seconds"]
        self.epochs += rows
        self.moments += reversed(ends)

    def end(self, status: TrialStatus, stop_reason: StopReason, failure: str | None = None) -> None:
        """Take note of the trial's end."""
        self.status, self.stop_reason, self.failure = status, stop_reason, failure

    def row(self, resources: Resources) -> dict[str, Any]:
        """Lay the trial out as its row of the table `trials`."""
        plan, best = self.plan, self.best or {}
        weights = plan.weights
        kept = ("selection_score", "val_loss", "val_macro_recall", "val_micro_recall")
        return {
            "trial_id": plan.trial_id,
            "point_id": plan.point_id,
            "cell": plan.cell,
            "repeat": plan.repeat,
            **plan.trial.columns(),
            "weights_name": weights.name if weights else None,
            "weights_sha256": weights.sha256 if weights else None,
            "trial_seed": plan.trial_seed,
            "status": self.status,
            "stop_reason": self.stop_reason,
            "failure": self.failure,
            "attempts": 1,
            "epochs_run": len(self.epochs),
            "best_epoch": best.get("epoch"),
            **{name: best.get(name) for name in kept},
            **self.test_scores,
            **self.facts,
            "epoch_seconds_mean": self.epoch_seconds_mean,
            "prefix_cached": self.facts.get("prefix_seconds") is not None,
            "cpus": resources.cpus_per_trial,
            "gpus": resources.gpus_per_trial,
            "concurrent_trials": resources.max_concurrent,
        }


class Recorder(DriverOnly, Callback):
    """Keeps one record per trial and writes it to the ledger at most every 10 s, and at the trial's end."""

    def __init__(self, ledger: Ledger, setup: SearchSetup, resources: Resources) -> None:
        """Start with no trial.

        Args:
            ledger: The run's ledger.
            setup: Works out each trial's identity.
            resources: What every trial gets.
        """
        self._ledger, self._setup, self._resources = ledger, setup, resources
        self._record_by_ray_id: dict[str, TrialRecord] = {}
        self._stop_reasons: dict[str, StopReason] = {}
        self._num_decisions = 0

    @property
    def records(self) -> list[TrialRecord]:
        """Every trial started so far, in the order of their start."""
        return list(self._record_by_ray_id.values())

    def running(self) -> list[TrialRecord]:
        """The trials that have started and not ended."""
        return [record for record in self.records if record.status is TrialStatus.RUNNING]

    def leader(self) -> TrialRecord | None:
        """The trial with the best selection score so far, failed ones left out; the earlier one of equals."""
        scored = [record for record in self.records if record.best is not None and record.status is not TrialStatus.FAILED]
        return max(scored, key=lambda record: record.best["selection_score"], default=None)  # type: ignore[index]

    def record_of(self, ray_id: str) -> TrialRecord | None:
        """Return a trial's record by Ray's name for it; None before its start."""
        return self._record_by_ray_id.get(ray_id)

    def row_of(self, record: TrialRecord) -> dict[str, Any]:
        """Lay a record out as its row of the table `trials`."""
        return record.row(self._resources)

    def busy_seconds(self) -> float:
        """Add up the time that trials worked, as their profiles say."""
        return math.fsum(row["seconds"] for record in self.records for row in record.profile if row["part"] != TimePart.IDLE)

    def note_stop(self, ray_id: str, reason: StopReason) -> None:
        """Take note that the scheduler stops a trial with the epoch it has just reported."""
        self._stop_reasons[ray_id] = reason

    def add_decisions(self, ray_id: str, decisions: Sequence[Decision]) -> None:
        """Add what a stopping rule decided about a trial."""
        record = self._record_by_ray_id[ray_id]
        for decision in decisions:
            self._num_decisions += 1
            record.decisions.append(
                {
                    "decision": self._num_decisions,
                    "trial_id": record.plan.trial_id,
                    "cell": record.plan.cell,
                    "rung_epoch": decision.rung_epoch,
                    "value": decision.value,
                    "cutoff": decision.cutoff,
                    "verdict": decision.verdict,
                }
            )

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
            return TrialStatus.COMPLETED, StopReason(stop_reason)
        return TrialStatus.STOPPED, self._stop_reasons.get(ray_id, StopReason.TIME)

    def values_of(self, ray_id: str, objectives: Sequence[Objective]) -> tuple[float, ...] | None:
        """Read a trial's objectives at its best epoch.

        Returns:
            One number for each; None where one was not measured.
        """
        row = self.row_of(self._record_by_ray_id[ray_id])
        values = [row.get(objective.column) for objective in objectives]
        measured = tuple(float(value) for value in values if value is not None and math.isfinite(value))
        return measured if len(measured) == len(objectives) else None

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Open the trial's record."""
        config = trial.config
        record = TrialRecord(plan=self._setup.plan_trial(config["cell"], config["point"], config["repeat"]))
        self._record_by_ray_id[trial.trial_id] = record
        self._write(record)

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any) -> None:
        """Add the epochs' rows; a diverged epoch has none."""
        record = self._record_by_ray_id[trial.trial_id]
        if failure_of(result) is not None:
            return
        record.facts = {name: last_epoch(result)[name] for name in _FACT_COLUMNS}
        record.add_epochs([{name: row[name] for name in _EPOCH_COLUMNS} for row in result[EPOCHS]])
        record.profile += [
            {"epoch": row["epoch"], "part": part, "seconds": seconds}
            for row in result[EPOCHS]
            for part, seconds in row["seconds_by_part"].items()
        ]
        if time.monotonic() - record.flushed_at >= _SECONDS_BETWEEN_FLUSHES:
            self._write(record)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Close the record: run to its end, diverged, or stopped by the scheduler."""
        record = self.record_of(trial.trial_id)
        if record is None:  # taken out of the queue before its start
            return
        failure = failure_of(trial.last_result)
        record.end(*self.ending_of(trial.trial_id, trial.last_result), failure)
        self._write(record)
        # Ray keeps every ended trial, with averages of its numbers that nobody asks for: 4 KB each.
        trial.run_metadata.metric_n_steps.clear()
        trial.run_metadata.metric_analysis.clear()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Close the record of a trial that raised, and log its traceback for whoever mends it."""
        record = self._record_by_ray_id[trial.trial_id]
        text = _error_text(trial)
        record.end(TrialStatus.FAILED, StopReason.FAILURE, text.splitlines()[-1])
        _log.error("Trial %s (%s) failed:\n%s", record.plan.trial_id, record.plan.cell, text)
        self._write(record)

    def add_test_scores(self, trial_id: str, scores: dict[str, float]) -> None:
        """Add the sealed evaluation's columns to a trial's row."""
        record = next(record for record in self.records if record.plan.trial_id == trial_id)
        record.test_scores = scores
        self._write(record)

    def flush(self) -> None:
        """Write every unfinished trial as it stands."""
        for record in self.running():
            self._write(record)

    def _write(self, record: TrialRecord) -> None:
        if record.epochs:
            self._ledger.write_epochs(record.plan.trial_id, record.epochs)
        if record.decisions:
            self._ledger.write_decisions(record.decisions)
        if record.profile:
            self._ledger.write_profile(record.plan.trial_id, record.profile)
        self._ledger.write_trial(self.row_of(record))
        record.flushed_at = time.monotonic()


def _error_text(trial: Trial) -> str:
    """Read the traceback that Ray keeps as plain text; its pickled twin is left alone."""
    path = Path(trial.error_file) if trial.error_file else None
    return path.read_text(encoding="utf-8").strip() if path and path.is_file() else DIED_SILENTLY
