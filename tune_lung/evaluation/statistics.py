"""How sure a recall is: intervals for shares, for their mean over classes, and for differences."""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from tune_lung.evaluation.confusion import Counts
from tune_lung.metrics import macro_recall


class Estimate(NamedTuple):
    """A measured value with its interval."""

    value: float
    low: float
    high: float


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the score interval of a share; it stays inside 0 to 1, and is never empty at 0 or 1.

    Args:
        successes: What went well, 0 to `trials`.
        trials: How many in all, at least 1.
        confidence: How often such intervals hold the true share, between 0 and 1.

    Returns:
        Lower and upper bound.

    Raises:
        ValueError: An argument is out of its range.

    References:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}.")
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"successes must be 0 to trials, trials at least 1, not {successes} and {trials}.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # At 0 and 1 the bound equals the share; rounding must not carry it past.
    return min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share)


def micro_recall_estimate(confusion_KK: Counts, *, confidence: float = 0.95) -> Estimate:
    """Compute micro recall with its Wilson interval.

    Raises:
        ValueError: There is no image at all.
    """
    right, images = int(np.trace(confusion_KK)), int(confusion_KK.sum())
    low, high = wilson_interval(right, images, confidence=confidence)
    return Estimate(right / images, low, high)


def macro_recall_estimate(confusion_KK: Counts, *, confidence: float = 0.95) -> Estimate:
    """Compute macro recall with an interval made of the classes' Wilson intervals.

    The classes' distances from recall to bound are added in squares, each weighted with 1 / K. Classes without images
    are left out.

    Raises:
        ValueError: There is no image at all.

    References:
        Zou and Donner, "Construction of confidence limits about effect measures: A general approach",
        Statistics in Medicine 27 (2008): the method of variance estimates recovery.
    """
    value = macro_recall(confusion_KK)
    below, above = [], []
    for label, row in enumerate(confusion_KK):
        if (images := int(row.sum())) > 0:
            right = int(row[label])
            low, high = wilson_interval(right, images, confidence=confidence)
            below.append(right / images - low)
            above.append(high - right / images)
    return Estimate(value, value - math.hypot(*below) / len(below), value + math.hypot(*above) / len(above))


def difference(second: Estimate, first: Estimate) -> Estimate:
    """Subtract one estimate from another, as if they came from different images.

    On the same images the true interval is narrower, so that a difference that this one tells from 0 is one.

    References:
        Newcombe, "Interval estimation for the difference between independent proportions", Statistics in Medicine 17
        (1998), method 10.
    """
    value = second.value - first.value
    low = value - math.hypot(second.value - second.low, first.high - first.value)
    high = value + math.hypot(second.high - second.value, first.value - first.low)
    return Estimate(value, low, high)
