"""Which trials go on: pure rules over scores, without Ray.

A rule hears every epoch of every trial in the order in which they arrive, and answers with the decisions it took. The
same arrivals give the same decisions, so that a ledger's decisions can be checked, and rules rebuilt from it.

References:
    Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, Algorithm 2 (ASHA), in the variant
    that stops a trial instead of pausing it.
    Golovin et al., "Google Vizier: A Service for Black-Box Optimization", KDD 2017, section 3.2.2 (median stopping).
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tune_lung.results.schema import StopReason, Verdict

_LEAST_RIVALS = 3
"""Trials that must have stood at an epoch before the median of them stops another."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a rule decided about one trial at one rung."""

    trial: str
    """The trial."""
    group: str
    """The trials it was compared with: those of the same group."""
    rung_epoch: int
    """The rung."""
    value: float
    """The trial's best score by then."""
    cutoff: float | None
    """Score it had to reach; None while it had too few rivals."""
    verdict: Verdict
    """What was decided."""


class StoppingRule(Protocol):
    """Decides at each epoch whether a trial goes on."""

    stop_reason: StopReason
    """How the ledger names its stops."""

    @property
    def judged_epochs(self) -> frozenset[int]:
        """Epochs that it has to hear of as they end: their state is saved, and they are reported at once."""

    @property
    def compared_epochs(self) -> Sequence[int]:
        """Epochs at which it may end a trial, in rising order."""

    @property
    def foreseen_epochs(self) -> Sequence[int]:
        """Those of them whose stops a forecast can replay, by ranks alone; empty where what it saves is not foreseen."""

    @property
    def restored_epochs(self) -> Sequence[int]:
        """Those of them at which a resumed search takes lost decisions again, by the trials' epochs."""

    def judge(self, trial: str, group: str, epoch: int, score: float) -> list[Decision]:
        """Hear a trial's best score by an epoch.

        Args:
            trial: The trial.
            group: The trials it is compared with.
            epoch: Counted from 1; a trial's epochs rise.
            score: Its best score by then, finite.

        Returns:
            The decisions taken; the trial ends when one of them says stop.
        """

    def completed(self, trial: str, group: str, score: float) -> list[Decision]:
        """Hear that a trial has run to its own end: its best score stands in the rungs it did not reach."""

    def remember(self, trial: str, group: str, best_scores: Mapping[int, float], decided: Mapping[int, float]) -> None:
        """Take a trial of an earlier attempt for judged.

        Args:
            trial: The trial.
            group: The trials it is compared with.
            best_scores: Its best score by each epoch that is known.
            decided: The score it was judged by, by the epoch of each decision about it.
        """


def rung_epochs(*, grace_epochs: int, max_epochs: int, reduction_factor: int) -> tuple[int, ...]:
    """List the epochs at which ASHA compares trials.

    Args:
        grace_epochs: Epochs before the first comparison; at least 1.
        max_epochs: Epochs of a trial that is never stopped; at least `grace_epochs`.
        reduction_factor: One trial in this many goes on (eta in the paper); at least 2.

    Returns:
        The rungs in rising order, `max_epochs` left out: nothing is decided there.

    Raises:
        ValueError: An argument is out of its range.

    References:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, Algorithm 2.
    """
    if grace_epochs < 1:
        raise ValueError(f"grace_epochs must be at least 1, not {grace_epochs}.")
    if max_epochs < grace_epochs:
        raise ValueError(f"max_epochs must be at least grace_epochs ({grace_epochs}), not {max_epochs}.")
    if reduction_factor < 2:
        raise ValueError(f"reduction_factor must be at least 2, not {reduction_factor}.")
    rungs = []
    epoch = grace_epochs
    while epoch < max_epochs:
        rungs.append(epoch)
        epoch *= reduction_factor
    return tuple(rungs)


def asha_cutoff(rivals: list[float], *, reduction_factor: int) -> float | None:
    """Compute the score that belongs to the best 1 / reduction_factor of a rung.

    Args:
        rivals: Scores that stood at the rung before.
        reduction_factor: One trial in this many goes on; at least 2.

    Returns:
        Their (1 - 1 / reduction_factor) quantile, linear between neighbours; None without rivals.
    """
    return float(np.quantile(rivals, 1 - 1 / reduction_factor)) if rivals else None


class Asha:
    """Asynchronous successive halving over integer rungs."""

    stop_reason = StopReason.ASHA

    def __init__(self, rungs: tuple[int, ...], *, reduction_factor: int) -> None:
        """Start with empty rungs.

        Args:
            rungs: From `rung_epochs`.
            reduction_factor: One trial in this many goes on; at least 2.
        """
        self.rungs, self._reduction_factor = rungs, reduction_factor
        self.judged_epochs = frozenset(rungs)
        self.compared_epochs = self.foreseen_epochs = self.restored_epochs = rungs
        self._scores: dict[tuple[str, int], list[float]] = defaultdict(list)
        self._passed: dict[str, int] = defaultdict(int)

    def judge(self, trial: str, group: str, epoch: int, score: float) -> list[Decision]:
        """Compare a trial at every rung it has come to; a trial below the cutoff ends."""
        decisions = []
        for rung in self._reached(trial, epoch):
            cutoff = asha_cutoff(self._scores[group, rung], reduction_factor=self._reduction_factor)
            verdict = Verdict.STOP if cutoff is not None and score < cutoff else Verdict.CONTINUE
            decisions.append(self._stand(trial, group, rung, score, cutoff, verdict))
            if verdict is Verdict.STOP:
                break
        return decisions

    def completed(self, trial: str, group: str, score: float) -> list[Decision]:
        """Let the trial's best score stand in the rungs it did not reach."""
        missed = self._reached(trial, max(self.rungs, default=0))
        return [self._stand(trial, group, rung, score, None, Verdict.STAND) for rung in missed]

    def remember(self, trial: str, group: str, best_scores: Mapping[int, float], decided: Mapping[int, float]) -> None:  # noqa: ARG002 - only rungs count
        """Let the trial stand at its rungs with the scores it had."""
        for rung, score in decided.items():
            self._scores[group, rung].append(score)
            self._passed[trial] = max(self._passed[trial], rung)

    def _reached(self, trial: str, epoch: int) -> list[int]:
        return [rung for rung in self.rungs if self._passed[trial] < rung <= epoch]

    def _stand(self, trial: str, group: str, rung: int, score: float, cutoff: float | None, verdict: Verdict) -> Decision:
        self._scores[group, rung].append(score)
        self._passed[trial] = rung
        return Decision(trial=trial, group=group, rung_epoch=rung, value=score, cutoff=cutoff, verdict=verdict)


class MedianStopping:
    """Ends a trial whose best score is below the median of the others' running means at the same epoch."""

    stop_reason = StopReason.MEDIAN

    def __init__(self, *, grace_epochs: int, max_epochs: int) -> None:
        """Start without trials.

        Args:
            grace_epochs: Epochs before the first comparison; at least 1.
            max_epochs: Epochs of a trial that is never stopped.
        """
        self._grace_epochs = grace_epochs
        self.judged_epochs = frozenset(range(1, max_epochs + 1))  # its running means are made of every epoch
        self.compared_epochs: Sequence[int] = range(grace_epochs, max_epochs + 1)
        self.foreseen_epochs: Sequence[int] = ()  # whether a trial is below a mean of means hangs on more than ranks
        self.restored_epochs: Sequence[int] = ()
        self._scores: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))

    def judge(self, trial: str, group: str, epoch: int, score: float) -> list[Decision]:
        """Compare a trial at every epoch after the grace, once."""
        is_known = epoch in self._scores[group][trial]
        self._scores[group][trial][epoch] = score
        if is_known or epoch < self._grace_epochs:
            return []
        rivals = [
            statistics.fmean(value for at, value in scores.items() if at <= epoch)
            for name, scores in self._scores[group].items()
            if name != trial and max(scores) >= epoch
        ]
        cutoff = statistics.median(rivals) if len(rivals) >= _LEAST_RIVALS else None
        verdict = Verdict.STOP if cutoff is not None and score < cutoff else Verdict.CONTINUE
        return [Decision(trial=trial, group=group, rung_epoch=epoch, value=score, cutoff=cutoff, verdict=verdict)]

    def completed(self, trial: str, group: str, score: float) -> list[Decision]:  # noqa: ARG002 - it leaves its epochs
        """Leave the trial's epochs as they are: it stands at no later one."""
        return []

    def remember(self, trial: str, group: str, best_scores: Mapping[int, float], decided: Mapping[int, float]) -> None:
        """Take its scores by the epochs it was judged at, and by those of its grace."""
        grace = {epoch: score for epoch, score in best_scores.items() if epoch < self._grace_epochs}
        self._scores[group][trial] |= {**grace, **decided}
