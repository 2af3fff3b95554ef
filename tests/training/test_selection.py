"""The selection score."""

import pytest

from tune_lung.metrics import METRICS
from tune_lung.training.selection import selection_score

EVERY_RECALL = [*(metric.column for metric in METRICS if metric.direction == "max"), "val_recall:COVID"]


def score_of(value: float, *, loss: float, select_by: str) -> float:
    return selection_score({"val_loss": loss, select_by: value}, select_by=select_by)


@pytest.mark.parametrize("select_by", EVERY_RECALL)
def test_equal_recalls_are_ordered_by_loss(select_by: str) -> None:
    assert score_of(0.8, loss=0.5, select_by=select_by) > score_of(0.8, loss=0.6, select_by=select_by)
    assert score_of(0.8, loss=0.5, select_by=select_by) == 0.8 - 1e-5 * 0.5


@pytest.mark.parametrize("select_by", EVERY_RECALL)
def test_a_better_recall_wins_whatever_the_loss(select_by: str) -> None:
    # one image in 10,000 moves recall by 1e-4; the loss can move the score by 1e-5 x 10 = 1e-4 at most
    assert score_of(0.8002, loss=1e9, select_by=select_by) > score_of(0.8, loss=0.0, select_by=select_by)


def test_selecting_by_loss_prefers_the_lower_one() -> None:
    assert selection_score({"val_loss": 0.8}, select_by="val_loss") > selection_score({"val_loss": 0.9}, select_by="val_loss")


def test_what_is_not_defined_is_no_score() -> None:
    with pytest.raises(ValueError, match="val_recall:COVID is not defined"):
        selection_score({"val_loss": 0.8, "val_macro_recall": 0.5}, select_by="val_recall:COVID")
