"""The confusion matrix, and each class's recall; what else is made of it stands in `tune_lung.metrics`.

Shapes: N images, K classes.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Counts: TypeAlias = NDArray[np.int64]
"""Whole numbers of images."""
Shares: TypeAlias = NDArray[np.float64]
"""Shares from 0 to 1."""


def confusion_matrix(labels_N: ArrayLike, answers_N: ArrayLike, *, num_classes: int) -> Counts:
    """Count how often each class was taken for each.

    Args:
        labels_N: True classes, 0 to `num_classes` - 1.
        answers_N: The network's answers, likewise.
        num_classes: K, at least 1.

    Returns:
        counts_KK: a row per true class, a column per answer.

    Raises:
        ValueError: The two differ in length, or hold something that is no class.
    """
    labels, answers = np.asarray(labels_N), np.asarray(answers_N)
    if labels.ndim != 1 or labels.shape != answers.shape:
        raise ValueError(f"labels and answers must be two lists of one length, not {labels.shape} and {answers.shape}.")
    for name, values in (("labels", labels), ("answers", answers)):
        if not np.all((values >= 0) & (values < num_classes) & (values == values.astype(np.int64))):
            raise ValueError(f"{name} must be whole numbers from 0 to {num_classes - 1}.")
    pairs = labels.astype(np.int64) * num_classes + answers.astype(np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def class_recalls(confusion_KK: Counts) -> Shares:
    """Compute each class's share of images told right.

    Returns:
        recalls_K, 0 to 1; NaN for a class without images, whose recall is not defined.
    """
    num_images_K = confusion_KK.sum(axis=1)
    recalls_K = np.full(len(confusion_KK), np.nan)
    np.divide(confusion_KK.diagonal(), num_images_K, out=recalls_K, where=num_images_K > 0)
    return recalls_K
