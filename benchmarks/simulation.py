"""A search over a table, epoch by epoch: several trials run at a time, and every epoch takes equally long."""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from benchmarks.methods import Method
from benchmarks.tabulated import Configuration, TabulatedProblem, Untried


@dataclass
class _Trial:
    number: int
    configuration: Configuration
    epochs: int = 0
    """Epochs trained so far."""


class _Search:
    """A method at work on a table."""

    def __init__(self, method: Method, problem: TabulatedProblem) -> None:
        self._method, self._untried = method, Untried(problem)
        self._num_trials = 0
        self.best = -math.inf
        """The best score seen so far, without trials that will fail."""

    def start_trial(self) -> _Trial | None:
        """Start what the method proposes; None when it proposes no more, or the table is tried."""
        proposal = self._method.propose()
        configuration = None if proposal is None else self._untried.take(*proposal)
        if configuration is None:
            return None
        self._num_trials += 1
        return _Trial(self._num_trials - 1, configuration)

    def train_epoch(self, trial: _Trial) -> bool:
        """Replay a trial's next epoch; returns whether the trial goes on."""
        curve = trial.configuration.curve
        score = curve[trial.epochs]
        trial.epochs += 1
        if not math.isfinite(score):
            self._method.fail(trial.number)
            return False
        if not trial.configuration.fails:
            self.best = max(self.best, score)
        return self._method.report(trial.number, trial.epochs, score, is_last=trial.epochs == len(curve))


def simulate(method: Method, problem: TabulatedProblem, *, num_workers: int, num_epochs: int) -> np.ndarray:
    """Search a table.

    The workers report in turn, one epoch each; a worker whose trial ends starts the method's next proposal at once, which
    then reports in its place. A method without another proposal leaves its worker idle.

    Args:
        method: Proposes and stops.
        problem: What is searched.
        num_workers: Trials at a time, at least 1.
        num_epochs: Epochs over all trials, at least 1, after which the search ends whatever runs.

    Returns:
        The best score seen after each of the epochs; shape (num_epochs,).
    """
    search = _Search(method, problem)
    running = deque(trial for _ in range(num_workers) if (trial := search.start_trial()) is not None)
    best: list[float] = []
    while running and len(best) < num_epochs:
        trial = running.popleft()
        goes_on = search.train_epoch(trial)
        best.append(search.best)
        following = trial if goes_on else search.start_trial()
        if following is not None:
            running.append(following)
    return np.pad(best, (0, num_epochs - len(best)), mode="edge")
