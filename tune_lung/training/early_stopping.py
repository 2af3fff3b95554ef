"""Plain patience: a trial ends when its selection score has not risen for a number of epochs."""

import math
from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """Keeps the best epoch so far; its three values are all that a resume needs."""

    patience: int
    """Epochs without a better score after which the trial ends, at least 1."""
    best_epoch: int = 0
    """Epoch of the best score so far, counted from 1; 0 before the first."""
    best_score: float = -math.inf
    """The best score so far."""

    def is_best(self, epoch: int, score: float) -> bool:
        """Take note of an epoch's score; a tie keeps the earlier epoch.

        Returns:
            Whether this epoch is the best so far.
        """
        if score <= self.best_score:
            return False
        self.best_epoch, self.best_score = epoch, score
        return True

    def is_spent(self, epoch: int) -> bool:
        """Say whether patience has run out after this epoch."""
        return epoch - self.best_epoch >= self.patience
