"""The selection score: the one number that decides best epoch, early stop, kept checkpoint and leader."""

from collections.abc import Mapping

from tune_lung.metrics import metric_of

_TIE_WEIGHT = 1e-5
_LOSS_CAP = 10.0


def selection_score(measured: Mapping[str, float], *, select_by: str) -> float:
    """Score one epoch on the validation images; higher is better.

    Args:
        measured: What was measured, by column; among it `val_loss`, finite, in nats.
        select_by: The column that counts.

    Returns:
        Where more of it is better, as of every recall, its value less 1e-5 x min(val_loss, 10), so that equal values are
        ordered by loss; where less is better, as of `val_loss`, its negative.

    Raises:
        ValueError: What counts is not defined for these images.
    """
    if select_by not in measured:
        raise ValueError(f"{select_by} is not defined for these validation images.")
    if metric_of(select_by).direction == "min":
        return -measured[select_by]
    return measured[select_by] - _TIE_WEIGHT * min(measured["val_loss"], _LOSS_CAP)
