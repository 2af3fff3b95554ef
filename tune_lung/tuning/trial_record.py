"""One trial as the driver knows it, and all that earlier attempts at a search left. Plain values, no framework."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self

from tune_lung.families.registry import family_of
from tune_lung.metrics import columns_on_validation, is_on_validation, metrics_on_test
from tune_lung.results.schema import FailureKind, StopReason, TimePart, TrialStatus, Verdict
from tune_lung.tuning.cluster import Resources
from tune_lung.tuning.plan import TrialPlan
from tune_lung.tuning.stopping_rules import Decision

FACT_COLUMNS = ("total_params", "trainable_params", "mult_adds", "device", "prefix_seconds")
"""What a trial's reports say of its network, its device and its features."""


@dataclass
class TrialRecord:
    """One trial as the driver knows it."""

    plan: TrialPlan
    """What is trained."""
    resources: Resources
    """What it gets, or got."""
    status: TrialStatus = TrialStatus.RUNNING
    """Where it stands."""
    stop_reason: StopReason | None = None
    """What ended it."""
    failure: str | None = None
    """One line on why it failed."""
    failure_kind: FailureKind | None = None
    """What sort of failure that was."""
    attempts: int = 1
    """How often it was started."""
    failures: Counter[FailureKind] = field(default_factory=Counter)
    """Failed attempts by kind, since the search began or went on."""
    unfit_nodes: set[str] = field(default_factory=set)
    """Nodes, by Ray's names, that could not train it."""
    proposed_order: int = 0
    """Place of its proposal among all proposals and ends."""
    ended_order: int | None = None
    """Place of its end among the same."""
    started: datetime | None = None
    """Moment, UTC, at which a worker was first ready for it; None where none was, or nobody noted it."""
    has_unnoted_start: bool = False
    """Whether an earlier attempt may have started it and not noted when, as those of older versions."""
    ended: datetime | None = None
    """Moment, UTC, of its last end; None while it runs."""
    slot: int | None = None
    """Number of the slot that it ran in last."""
    concurrent_trials: int | None = None
    """Trials that ran at the same time at most, itself included."""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    """Its rows of the table `epochs`."""
    decisions: list[dict[str, Any]] = field(default_factory=list)
    """Its rows of the table `decisions`."""
    has_unwritten_decisions: bool = False
    """Whether decisions were taken since the last write."""
    profile: list[dict[str, Any]] = field(default_factory=list)
    """Its rows of the table `profile`; empty unless the search was asked for it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Parameters, multiply-adds, device, seconds spent on prefix features."""
    test_scores: dict[str, float] = field(default_factory=dict)
    """Columns of the sealed evaluation."""
    moments: list[float] = field(default_factory=lambda: [time.monotonic()])
    """Monotonic moments of its start and of the end of each epoch trained since; a report's last is taken to end with it."""
    newest_epoch: int | None = None
    """The epoch it told last since it was started; None before the first."""
    flushed_at: float = 0.0
    """Monotonic moment of the last write."""

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the best epoch so far; the earlier one of equals."""
        return max(self.epochs, key=lambda row: (row["selection_score"], -row["epoch"]), default=None)

    @property
    def epoch_seconds_mean(self) -> float | None:
        """Mean time of a training pass, the first epoch left out; None before the second, but of what has no epochs."""
        has_epochs = family_of(self.plan.trial.network.model).has_epochs
        later = [row["epoch_seconds"] for row in self.epochs[has_epochs:]]
        return sum(later) / len(later) if later else None

    @property
    def stopped_at(self) -> int | None:
        """Epoch of the rung at which the scheduler has stopped it; None while it goes on."""
        return next((row["rung_epoch"] for row in self.decisions if row["verdict"] == Verdict.STOP), None)

    @property
    def has_all_epochs_to_its_stop(self) -> bool:
        """Whether the scheduler has stopped it with its last epoch."""
        return self.stopped_at is not None and self.stopped_at == len(self.epochs)

    def known_epochs(self, judged_epochs: Iterable[int]) -> int:
        """Count the epochs that need not be told again: those before the first that is still to be judged."""
        decided = {row["rung_epoch"] for row in self.decisions}
        untold = [epoch for epoch in judged_epochs if epoch not in decided]
        untold += [] if self.stopped_at is None else [self.stopped_at]  # told again, it is stopped again
        return min([len(self.epochs), *(epoch - 1 for epoch in untold)])

    def start_again(self) -> None:
        """Take note of one more start."""
        self.status, self.stop_reason, self.failure, self.failure_kind = TrialStatus.RUNNING, None, None, None
        self.ended = self.ended_order = None
        self.attempts += 1
        self.newest_epoch = None
        self.moments = [time.monotonic()]

    def starts_in(self, slot: int, *, moment: datetime) -> None:
        """Take note of the slot whose worker is ready for it."""
        self.slot = slot
        if not self.has_unnoted_start:
            self.started = self.started or moment

    def runs_beside(self, num_running: int) -> None:
        """Take note of how many trials run now, itself included."""
        self.concurrent_trials = max(num_running, self.concurrent_trials or 0)

    def add_epochs(self, rows: Sequence[dict[str, Any]], *, told_again: int = 0, moment: datetime | None = None) -> None:
        """Take note of the epochs of a report, which has just come.

        Those trained again take the place of the old one by one, so that no row is missing if they are not all trained again.

        Args:
            rows: Rows of the table `epochs`, in their order.
            told_again: So many of them, the first, were trained before this start: they ended when they did then.
            moment: When the report came, UTC; None where nobody noted it.
        """
        by_epoch = {row["epoch"]: row for row in self.epochs}
        now, since_end, ends = time.monotonic(), 0.0, []
        for row in reversed(rows[told_again:]):
            ends.append(now - since_end)
            by_epoch[row["epoch"]] = row | {"ended": moment and moment - timedelta(seconds=since_end)}
            since_end += row["epoch_seconds"] + row["validation_seconds"]
        for row in rows[:told_again]:
            by_epoch[row["epoch"]] = row | {"ended": by_epoch.get(row["epoch"], {}).get("ended")}
        self.epochs = [by_epoch[epoch] for epoch in sorted(by_epoch)]
        self.newest_epoch = rows[-1]["epoch"]
        self.moments += reversed(ends)

    def add_decision(self, decision: Decision, *, number: int) -> None:
        """Take note of what a stopping rule decided, as the run's decision of that number."""
        self.has_unwritten_decisions = True
        self.decisions.append(
            {
                "decision": number,
                "trial_id": self.plan.trial_id,
                "cell": self.plan.cell,
                "rung_epoch": decision.rung_epoch,
                "value": decision.value,
                "cutoff": decision.cutoff,
                "verdict": decision.verdict,
            }
        )

    def end(self, status: TrialStatus, stop_reason: StopReason, *, order: int, moment: datetime | None = None) -> None:
        """Take note of the trial's end: with the epoch it has told last, whatever an earlier attempt had after it.

        Where time ended it while it was trained again, what is known of it stays: it goes on with more time, from where it is.

        Args:
            status: How it ended.
            stop_reason: Why.
            order: Its place among all proposals and ends.
            moment: When, UTC; None where nobody noted it.
        """
        self.status, self.stop_reason, self.ended_order, self.ended = status, stop_reason, order, moment
        if self.newest_epoch is not None and stop_reason is not StopReason.TIME:
            self.epochs = [row for row in self.epochs if row["epoch"] <= self.newest_epoch]

    @classmethod
    def from_row(cls, row: Mapping[str, Any], plan: TrialPlan) -> Self:
        """Read back what `row` laid out; epochs, decisions and the profile are tables of their own.

        Args:
            row: Columns by name; one that is missing is null, or unknown to the version that wrote it.
            plan: The trial, worked out from the same row.
        """
        tested = [metric.test_column for metric in metrics_on_test() if metric.test_column in row]
        return cls(
            plan=plan,
            resources=Resources(cpus_per_trial=row["cpus"], gpus_per_trial=row["gpus"], max_concurrent=1),
            status=TrialStatus(row["status"]),
            stop_reason=StopReason(row["stop_reason"]) if "stop_reason" in row else None,
            failure=row.get("failure"),
            failure_kind=FailureKind(row["failure_kind"]) if "failure_kind" in row else None,
            attempts=row["attempts"],
            proposed_order=row.get("proposed_order", 0),
            ended_order=row.get("ended_order"),
            started=row.get("started"),
            has_unnoted_start="started" not in row,
            ended=row.get("ended"),
            slot=row.get("slot"),
            concurrent_trials=row.get("concurrent_trials"),
            facts={name: row.get(name) for name in FACT_COLUMNS},
            test_scores={name: row[name] for name in tested},
        )

    def row(self) -> dict[str, Any]:
        """Lay the trial out as its row of the table `trials`; `from_row` reads it back."""
        plan, best = self.plan, self.best or {}
        weights = plan.weights
        kept = {name: value for name, value in best.items() if is_on_validation(name)}  # those of the classes among them
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
            "failure_kind": self.failure_kind,
            "attempts": self.attempts,
            "proposed_order": self.proposed_order,
            "ended_order": self.ended_order,
            "started": self.started,
            "ended": self.ended,
            "epochs_run": len(self.epochs),
            "best_epoch": best.get("epoch"),
            "selection_score": best.get("selection_score"),
            **dict.fromkeys(columns_on_validation()),
            **kept,
            **self.test_scores,
            **self.facts,
            "epoch_seconds_mean": self.epoch_seconds_mean,
            "prefix_cached": self.facts.get("prefix_seconds") is not None,
            "cpus": self.resources.cpus_per_trial,
            "gpus": self.resources.gpus_per_trial,
            "concurrent_trials": self.concurrent_trials,
            "slot": self.slot,
        }


@dataclass(frozen=True, kw_only=True)
class EarlierAttempts:
    """What the attempts before left in a run's ledger."""

    records: Sequence[TrialRecord] = ()
    """Every trial that they started, in the order of their proposal."""
    settled: Sequence[TrialRecord] = ()
    """Those of them that had been stopped when a kill came before it was in their row."""
    loose_decisions: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Decisions about trials whose own row is lost, by trial."""
    num_decisions: int = 0
    """Decisions taken."""
    order: int = 0
    """Proposals and ends counted."""
    num_anew: int = 0
    """Trials that had ended and go on, and are trained from their start, for the state that they ended with was not kept."""
    own_seconds: Mapping[TimePart, float] = field(default_factory=dict)
    """Where the run's own time went, as far as it was written down."""
