"""Plain patience."""

from tune_lung.training.early_stopping import EarlyStopping


def epochs_until_spent(scores: list[float], patience: int) -> int:
    """Feed scores until patience is spent; return the last epoch."""
    stopping = EarlyStopping(patience=patience)
    for epoch, score in enumerate(scores, start=1):
        stopping.is_best(epoch, score)
        if stopping.is_spent(epoch):
            return epoch
    return 0


def test_patience_counts_from_the_best_epoch() -> None:
    assert epochs_until_spent([0.1, 0.5, 0.4, 0.4, 0.4, 0.9], patience=3) == 5


def test_a_tie_keeps_the_earlier_epoch() -> None:
    assert epochs_until_spent([0.5, 0.5, 0.5, 0.9], patience=2) == 3


def test_a_better_score_starts_patience_anew() -> None:
    assert epochs_until_spent([0.1, 0.0, 0.2, 0.1, 0.3], patience=2) == 0
