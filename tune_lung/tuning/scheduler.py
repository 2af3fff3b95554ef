"""The bridge to Ray's scheduling: a stopping rule judges each epoch, and every decision is written down."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, assert_never

from ray.tune import PlacementGroupFactory
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune_lung.results.schema import StopReason, TrialStatus
from tune_lung.space import SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.tuning.cluster import placement_elsewhere
from tune_lung.tuning.driver_only import DriverOnly
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.reports import failure_of, last_epoch
from tune_lung.tuning.stopping_rules import Asha, MedianStopping, StoppingRule, rung_epochs
from tune_lung.tuning.trial_record import EarlierAttempts, TrialRecord


class RungScheduler(DriverOnly, FIFOScheduler):
    """Starts trials in the order they come, and stops those that a rule gives up.

    Ray's ASHAScheduler counts by default in its own iterations, places rungs at fractions, never stops a trial whose
    value is not finite, and keeps its decisions to itself.
    """

    def __init__(
        self,
        rule: StoppingRule | None,
        recorder: Recorder,
        *,
        group_of: Callable[[str], str],
        earlier: EarlierAttempts | None = None,
    ) -> None:
        """Bind a rule to a search.

        Args:
            rule: Judges trials; None stops none.
            recorder: Writes decisions down.
            group_of: Names the trials that a cell's trials are compared with, by the cell's name.
            earlier: What the rule is to know of earlier attempts.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._rule, self._recorder, self._group_of = rule, recorder, group_of
        if rule is not None and earlier is not None:
            _remember(rule, earlier, group_of)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Choose the first trial that waits for a slot; one whose own worker starts has found its slot.

        Tune gives the chosen trial the worker that another trial has just left, and ends the one that starts for it: a node
        that has come would never be done preparing its images while shorter trials end elsewhere.
        """
        controller = tune_controller._tune_controller

        def has_slot(trial: Trial) -> bool:
            worker = controller._trial_to_actor.get(trial)
            return worker is not None and bool(controller._actor_manager.is_actor_started(worker))

        trials: list[Trial] = tune_controller.get_trials()
        return next((trial for trial in trials if trial.status == Trial.PENDING and not has_slot(trial)), None)

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """Keep a trial that is tried again away from nodes that were unfit for it, where another one has room."""
        unfit = self._recorder.unfit_nodes_for(trial.config)
        placement: PlacementGroupFactory = trial.placement_group_factory  # type: ignore[assignment] # set before this call
        elsewhere = placement_elsewhere(placement, unfit) if unfit else None
        if elsewhere is not None:
            trial.update_resources(elsewhere)

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Judge one epoch of a trial that could go on; what was decided once stays so."""
        if failure_of(result) is not None:
            return TrialScheduler.STOP
        if self._rule is None:
            return TrialScheduler.CONTINUE
        row, record = last_epoch(result), self._record_of(trial)
        decisions = self._rule.judge(record.plan.trial_id, self._group(trial), row["epoch"], row["best_score"])
        self._recorder.add_decisions(trial.trial_id, decisions)
        if record.stopped_at is not None and row["epoch"] >= record.stopped_at:
            self._recorder.note_stop(trial.trial_id, StopReason(self._rule.stop_reason))
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        """Let a trial that ran to its own end stand in the rungs it did not reach."""
        status, _ = self._recorder.ending_of(trial.trial_id, result)
        if self._rule is not None and status is TrialStatus.COMPLETED:
            trial_id = self._record_of(trial).plan.trial_id
            decisions = self._rule.completed(trial_id, self._group(trial), last_epoch(result)["best_score"])
            self._recorder.add_decisions(trial.trial_id, decisions)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Have the failure sorted before the searcher asks whether the trial is tried again."""
        self._recorder.note_error(trial)

    def _record_of(self, trial: Trial) -> TrialRecord:
        record = self._recorder.record_of(trial.trial_id)
        if record is None:
            raise RuntimeError(f"Ray's trial {trial.trial_id} reports without having started.")
        return record

    def _group(self, trial: Trial) -> str:
        return self._group_of(trial.config["cell"])


def _remember(rule: StoppingRule, earlier: EarlierAttempts, group_of: Callable[[str], str]) -> None:
    for record in earlier.records:
        best_scores = dict(zip((row["epoch"] for row in record.epochs), _running_best(record.epochs), strict=True))
        decided = {row["rung_epoch"]: row["value"] for row in record.decisions}
        rule.remember(record.plan.trial_id, group_of(record.plan.cell), best_scores, decided)
    for trial_id, rows in earlier.loose_decisions.items():
        rule.remember(trial_id, group_of(rows[0]["cell"]), {}, {row["rung_epoch"]: row["value"] for row in rows})


def _running_best(rows: Iterable[Mapping[str, Any]]) -> Iterator[float]:
    return accumulate((row["selection_score"] for row in rows), max)


def groups_of(space: SearchSpace) -> Callable[[str], str]:
    """Name the trials that a cell's trials are compared with, by the cell's name: all of a grid's, else those of the cell."""
    return (lambda _: "all cells") if space.is_grid else (lambda cell: cell)


def rule_of(strategy: Strategy, *, max_epochs: int) -> StoppingRule | None:
    """Make a strategy's stopping rule.

    Args:
        strategy: Names the scheduler and its numbers.
        max_epochs: Most epochs of any trial.

    Returns:
        The rule; None where every trial runs to its own end.
    """
    match strategy.scheduler:
        case "none":
            return None
        case "median":
            return MedianStopping(grace_epochs=strategy.grace_epochs, max_epochs=max_epochs)
        case "asha":
            grace = strategy.grace_epochs
            rungs = (  # none where grace covers all
                rung_epochs(grace_epochs=grace, max_epochs=max_epochs, reduction_factor=strategy.reduction_factor)
                if grace <= max_epochs
                else ()
            )
            return Asha(rungs, reduction_factor=strategy.reduction_factor)
        case unknown:
            assert_never(unknown)


def judged_epochs(strategy: Strategy, *, max_epochs: int) -> frozenset[int]:
    """List the epochs that a strategy's stopping rule has to hear of as they end."""
    rule = rule_of(strategy, max_epochs=max_epochs)
    return frozenset() if rule is None else rule.judged_epochs
