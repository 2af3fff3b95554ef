"""Which points lead is decided by their means, whatever the order of the rows, and the front is what brute force says."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_lung.results.ranking import best_points, leading_cell, pareto_front, point_means
from tune_lung.strategy import Objective

RECALL, PARAMS = Objective("val_macro_recall", "max"), Objective("trainable_params", "min")


def trials_of(*rows: tuple) -> pd.DataFrame:
    """Trials from cell, point, status, score and parameters."""
    columns = ["cell", "point_id", "status", "selection_score", "trainable_params"]
    frame = pd.DataFrame(rows, columns=columns).astype({"selection_score": "float64", "trainable_params": "Int64"})
    return frame.assign(val_macro_recall=frame["selection_score"])


def beats(one: dict, other: dict, objectives: tuple[Objective, ...]) -> bool:
    """Whether one point is as good in every objective and better in one; written out, without arrays."""
    as_good = better = 0
    for objective in objectives:
        first, second = one[objective.column], other[objective.column]
        if objective.direction == "min":
            first, second = -first, -second
        as_good += first >= second
        better += first > second
    return as_good == len(objectives) and better > 0


def test_the_best_point_has_the_best_mean_not_the_luckiest_seed():
    trials = trials_of(
        ("a", "lucky", "completed", 0.9, 1), ("a", "lucky", "completed", 0.5, 1), ("a", "steady", "completed", 0.8, 1)
    )
    assert list(best_points(trials)["point_id"]) == ["steady"]


def test_a_failed_trial_counts_only_where_its_cell_has_no_other():
    trials = trials_of(
        ("a", "failed", "failed", 0.9, 1),
        ("a", "stopped", "stopped", 0.2, 1),
        ("b", "alone", "failed", None, 1),
    )
    assert list(best_points(trials)["point_id"]) == ["stopped", "alone"]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_of_equal_points_the_same_one_is_kept_in_any_order_of_the_rows(order):
    trials = trials_of(*(("a", point, "completed", 0.5, 1) for point in "bca")).iloc[order]
    assert list(best_points(trials)["point_id"]) == ["a"]


def test_points_can_be_compared_under_other_columns_and_null_equals_null():
    trials = trials_of(
        ("a", "p", "completed", 0.5, 1),
        ("a", "q", "completed", 0.6, 1),
        ("b", "p", "completed", 0.7, 1),
        ("c", "p", "completed", 0.4, 1),
    ).assign(model=["cnn", "cnn", "cnn", "resnet18"], frozen_blocks=pd.array([None, None, None, 2], dtype="Int32"))
    best = best_points(trials, within=["model", "frozen_blocks"])
    assert list(zip(best["cell"], best["point_id"], strict=True)) == [("b", "p"), ("c", "p")]


def test_a_points_objectives_are_means_over_its_completed_repeats():
    trials = trials_of(
        ("a", "p", "completed", 0.8, 10),
        ("a", "p", "completed", 0.6, 30),
        ("a", "p", "failed", 0.1, 10),
        ("a", "q", "stopped", 0.9, 10),
        ("a", "r", "completed", 0.9, None),
        ("b", "p", "completed", 0.5, 10),
    )
    means = point_means(trials, (RECALL, PARAMS))
    assert means.to_dict("records") == [
        {"cell": "a", "point_id": "p", "val_macro_recall": pytest.approx(0.7), "trainable_params": 20, "repeats": 2},
        {"cell": "b", "point_id": "p", "val_macro_recall": 0.5, "trainable_params": 10, "repeats": 1},
    ]


def test_without_a_completed_trial_there_is_no_point_and_no_front():
    points = point_means(trials_of(("a", "p", "failed", 0.5, 1)), (RECALL, PARAMS))
    assert list(points.columns) == ["cell", "point_id", "val_macro_recall", "trainable_params", "repeats"]
    assert len(pareto_front(points, (RECALL, PARAMS))) == 0


@given(
    st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=25),
    st.tuples(*[st.sampled_from(["max", "min"])] * 3),
    st.integers(2, 3),
)
def test_the_front_is_what_no_point_beats_by_brute_force(values, directions, num_objectives):
    points = pd.DataFrame(values, columns=["x", "y", "z"])
    objectives = tuple(Objective(*pair) for pair in zip("xyz", directions, strict=True))[:num_objectives]
    rows = points.to_dict("index")
    unbeaten = {index for index, row in rows.items() if not any(beats(other, row, objectives) for other in rows.values())}
    front = pareto_front(points, objectives)
    assert set(front.index) == unbeaten  # equal points beat each other not: all of them stay


def test_the_front_begins_with_the_best_in_the_first_objective_then_in_the_next():
    points = pd.DataFrame({"val_macro_recall": [0.5, 0.9, 0.7, 0.9], "trainable_params": [1, 9, 5, 9]})
    front = pareto_front(points, (RECALL, PARAMS))
    assert list(front.index) == [1, 3, 2, 0]
    assert list(pareto_front(points, (PARAMS, RECALL)).index) == [0, 2, 1, 3]
    np.testing.assert_array_equal(points["trainable_params"], [1, 9, 5, 9])  # the caller's rows stay as they were


def test_the_leading_cell_is_that_of_the_best_mean_and_of_equal_ones_the_first():
    trials = trials_of(
        ("a", "lucky", "completed", 0.9, 1),
        ("a", "lucky", "completed", 0.5, 1),
        ("b", "steady", "completed", 0.8, 1),
        ("c", "as good", "stopped", 0.8, 1),
        ("d", "failed", "failed", 0.95, 1),
        ("e", "running", "running", None, 1),
    )
    assert leading_cell(trials) == "b"
    assert leading_cell(trials, order=["e", "c", "b"]) == "c"
    assert leading_cell(trials[trials["cell"].isin(["d", "e"])]) is None
