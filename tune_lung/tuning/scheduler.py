"""The bridge to Ray's scheduling: a stopping rule judges each epoch, and every decision is written down."""

from collections.abc import Callable
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune_lung.results.schema import StopReason, TrialStatus, Verdict
from tune_lung.space import SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.tuning.driver_only import DriverOnly
from tune_lung.tuning.outcome import failure_of, last_epoch
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.rungs import Asha, MedianStopping, StoppingRule, rung_epochs


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
        is_out_of_time: Callable[[], bool],
    ) -> None:
        """Bind a rule to a search.

        Args:
            rule: Judges trials; None stops none.
            recorder: Writes decisions down.
            group_of: Names the trials that a cell's trials are compared with, by the cell's name.
            is_out_of_time: Whether every trial ends with the epoch it is in.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._rule, self._recorder, self._group_of, self._is_out_of_time = rule, recorder, group_of, is_out_of_time

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Judge one epoch of a trial that could go on."""
        if failure_of(result) is not None:
            return TrialScheduler.STOP
        if self._rule is not None:
            row = last_epoch(result)
            decisions = self._rule.judge(trial.trial_id, self._group(trial), row["epoch"], row["best_score"])
            self._recorder.add_decisions(trial.trial_id, decisions)
            if any(decision.verdict is Verdict.STOP for decision in decisions):
                return self._stopped(trial, StopReason(self._rule.stop_reason))
        return self._stopped(trial, StopReason.TIME) if self._is_out_of_time() else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        """Let a trial that ran to its own end stand in the rungs it did not reach."""
        status, _ = self._recorder.ending_of(trial.trial_id, result)
        if self._rule is not None and status is TrialStatus.COMPLETED:
            decisions = self._rule.completed(trial.trial_id, self._group(trial), last_epoch(result)["best_score"])
            self._recorder.add_decisions(trial.trial_id, decisions)

    def _group(self, trial: Trial) -> str:
        return self._group_of(trial.config["cell"])

    def _stopped(self, trial: Trial, reason: StopReason) -> str:
        self._recorder.note_stop(trial.trial_id, reason)
        return TrialScheduler.STOP


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
    if strategy.scheduler == "none":
        return None
    if strategy.scheduler == "median":
        return MedianStopping(grace_epochs=strategy.grace_epochs)
    return Asha(rungs_of(strategy, max_epochs=max_epochs), reduction_factor=strategy.reduction_factor)


def judged_epochs(strategy: Strategy, *, max_epochs: int) -> frozenset[int]:
    """List the epochs at which a strategy's scheduler compares trials."""
    if strategy.scheduler == "median":
        return frozenset(range(1, max_epochs + 1))  # its running means are made of every epoch
    return frozenset(rungs_of(strategy, max_epochs=max_epochs))


def rungs_of(strategy: Strategy, *, max_epochs: int) -> tuple[int, ...]:
    """List the epochs at which a strategy's scheduler compares trials; none without ASHA, or where grace covers all."""
    if strategy.scheduler != "asha" or strategy.grace_epochs > max_epochs:
        return ()
    return rung_epochs(grace_epochs=strategy.grace_epochs, max_epochs=max_epochs, reduction_factor=strategy.reduction_factor)
