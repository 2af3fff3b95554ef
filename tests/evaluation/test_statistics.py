"""Intervals agree with published examples and hold what they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_lung.evaluation.statistics import (
    Estimate,
    difference,
    macro_recall_estimate,
    micro_recall_estimate,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_newcombes_table(successes, trials, low, high):
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), method 3
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilson_interval_holds_the_share_and_mirrors(case):
    successes, trials = case
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert low < high
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low))


def test_more_confidence_makes_a_wider_interval():
    assert wilson_interval(8, 10, confidence=0.99)[0] < wilson_interval(8, 10)[0] < wilson_interval(8, 10, confidence=0.5)[0]


@pytest.mark.parametrize(("successes", "trials", "confidence"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_wilson_interval_refuses_what_is_no_share(successes, trials, confidence):
    with pytest.raises(ValueError, match="must"):
        wilson_interval(successes, trials, confidence=confidence)


def test_micro_recall_has_its_wilson_interval():
    estimate = micro_recall_estimate(np.array([[70, 10], [3, 17]]))
    assert estimate == (0.87, *wilson_interval(87, 100))


def test_macro_recall_of_two_equal_classes_is_surer_by_the_root_of_two():
    estimate = macro_recall_estimate(np.array([[40, 10], [10, 40]]))
    low, high = wilson_interval(40, 50)
    assert estimate == pytest.approx((0.8, 0.8 - (0.8 - low) / math.sqrt(2), 0.8 + (high - 0.8) / math.sqrt(2)))


def test_macro_recall_leaves_out_a_class_without_images():
    assert macro_recall_estimate(np.array([[40, 10], [0, 0]])) == pytest.approx((0.8, *wilson_interval(40, 50)))


def test_macro_interval_holds_the_true_value_as_often_as_it_says():
    generator = np.random.default_rng(0)
    images_K, recalls_K = np.array([36, 60, 102, 13]), np.array([0.95, 0.85, 0.9, 0.75])
    held = 0
    for right_K in generator.binomial(images_K, recalls_K, size=(2000, 4)):
        confusion_KK = np.diag(right_K)
        confusion_KK[range(4), [1, 2, 3, 0]] = images_K - right_K
        _, low, high = macro_recall_estimate(confusion_KK)
        held += low <= recalls_K.mean() <= high
    # 95% of 2,000 with a standard deviation of 0.5 points: 3 sigmas below, and not absurdly wide above
    assert 0.935 <= held / 2000 <= 0.985


def test_difference_equals_newcombes_example():
    # 56 / 70 against 48 / 80: Newcombe (1998), method 10
    first, second = (Estimate(right / images, *wilson_interval(right, images)) for right, images in ((48, 80), (56, 70)))
    assert difference(second, first) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
