"""The selection score."""

from tune_lung.training.selection import selection_score


def test_equal_recalls_are_ordered_by_loss() -> None:
    scores = [
        selection_score(val_loss=loss, val_macro_recall=0.8, val_micro_recall=0.9, select_by="val_macro_recall")
        for loss in (0.5, 0.6)
    ]
    assert scores[0] > scores[1]


def test_a_better_recall_wins_whatever_the_loss() -> None:
    # one image in 10,000 moves recall by 1e-4; the loss can move the score by 1e-5 x 10 = 1e-4 at most
    better = selection_score(val_loss=1e9, val_macro_recall=0.8002, val_micro_recall=0.9, select_by="val_macro_recall")
    worse = selection_score(val_loss=0.0, val_macro_recall=0.8, val_micro_recall=0.9, select_by="val_macro_recall")
    assert better > worse


def test_selecting_by_loss_prefers_the_lower_one() -> None:
    low, high = (
        selection_score(val_loss=loss, val_macro_recall=0.5, val_micro_recall=0.5, select_by="val_loss") for loss in (0.8, 0.9)
    )
    assert low > high
