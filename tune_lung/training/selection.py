"""The selection score: the one number that decides best epoch, early stop, kept checkpoint and leader."""

from tune_lung.config import SelectBy

_TIE_WEIGHT = 1e-5
_LOSS_CAP = 10.0


def selection_score(*, val_loss: float, val_macro_recall: float, val_micro_recall: float, select_by: SelectBy) -> float:
    """Score one epoch on the validation images; higher is better.

    Args:
        val_loss: Finite validation loss, in nats.
        val_macro_recall: Mean of the class recalls, 0 to 1.
        val_micro_recall: Share of images answered right, 0 to 1.
        select_by: The column that counts.

    Returns:
        The recall less 1e-5 x min(val_loss, 10), so that equal recalls are ordered by loss; for `val_loss` its negative.
    """
    if select_by == "val_loss":
        return -val_loss
    recall = val_macro_recall if select_by == "val_macro_recall" else val_micro_recall
    return recall - _TIE_WEIGHT * min(val_loss, _LOSS_CAP)
