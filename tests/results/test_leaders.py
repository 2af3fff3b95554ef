"""Whose networks are kept: at every moment those that would be tested if the search ended now, and in the end no others."""

import math
from collections import defaultdict
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_lung.results import leaders as leaders_module
from tune_lung.results.leaders import Leaders
from tune_lung.results.ranking import best_points, pareto_front, point_means
from tune_lung.strategy import SELECTION, Objective

FRONT = (Objective("val_macro_recall", "max"), Objective("trainable_params", "min"))

Row = dict[str, Any]
Scripted = tuple[int, str, int, int]
"""Cell, status, score and parameters of a point; small numbers, so that ties are many."""
SCRIPTED = st.tuples(st.integers(0, 1), st.sampled_from(["completed", "stopped", "failed"]), st.integers(0, 4), st.integers(0, 3))


def row_of(point: int, repeat: int, number: int, scripted: Scripted, *, has_ended: bool) -> Row:
    """A row of the table `trials`, of the trial that was proposed as the `number`-th."""
    cell, status, score, params = scripted
    score = (score + repeat) % 5
    is_scored = has_ended and not (status == "failed" and score == 0)  # a failed one may have had an epoch before
    return {
        "trial_id": f"trial {number}",
        "cell": f"cell {cell}",
        "point_id": f"point {point * 7 % 11 if point < 11 else point}",
        "proposed_order": number,
        "status": status if has_ended else "running",
        "stop_reason": None,
        "selection_score": score / 7 if is_scored else None,
        "val_macro_recall": score / 7 if is_scored else None,
        "trainable_params": params if is_scored else None,
    }


def chosen_now(rows: list[Row]) -> set[str]:
    """The points that would be tested if the search ended now, one of each cell, written out without pandas."""
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["status"] != "failed" and row["selection_score"] is not None:
            scores[row["cell"], row["point_id"]].append(row["selection_score"])
    best: dict[str, tuple[float, str]] = {}
    for (cell, point_id), own in scores.items():
        place = -math.fsum(own) / len(own), point_id
        best[cell] = min(best.get(cell, place), place)
    return {point_id for _, point_id in best.values()}


@settings(max_examples=60)
@given(
    points=st.lists(SCRIPTED, min_size=1, max_size=10),
    at_once=st.integers(1, 3),
    repeats=st.integers(1, 3),
    objectives=st.sampled_from([(SELECTION,), FRONT]),
)
def test_what_would_be_tested_now_is_kept_at_every_moment_and_nothing_else_in_the_end(
    points: list[Scripted], at_once: int, repeats: int, objectives: tuple[Objective, ...]
) -> None:
    leaders, rows, kept = Leaders(objectives, repeats=repeats), {}, set()
    trials = [(point, repeat) for point in range(len(points)) for repeat in range(repeats)]
    events = [(number + has_ended * (at_once - 0.5), number, has_ended) for number in range(len(trials)) for has_ended in (0, 1)]
    for _, number, has_ended in sorted(events):
        row = row_of(*trials[number], number, points[trials[number][0]], has_ended=bool(has_ended))
        rows[row["trial_id"]] = row
        kept = (kept | {row["trial_id"]}) - set(leaders.note(row))
        listed = list(rows.values())
        assert {each["trial_id"] for each in listed if each["status"] == "running"} <= kept
        assert chosen_now(listed) <= {rows[name]["point_id"] for name in kept}
        assert {name for name in rows if rows[name]["point_id"] in chosen_now(listed)} <= kept
    table = pd.DataFrame(list(rows.values())).astype({"selection_score": "float64", "trainable_params": "Int64"})
    promised = {*best_points(table)["point_id"], *table.loc[table.groupby("cell")["proposed_order"].idxmin(), "point_id"]}
    if len(objectives) > 1:
        promised |= set(pareto_front(point_means(table, objectives), objectives)["point_id"])
    assert kept == set(table.loc[table["point_id"].isin(promised), "trial_id"])
    assert kept == {name for name, row in rows.items() if leaders.keeps(row["cell"], row["point_id"])}


def notes(leaders: Leaders, *scores: tuple[str, str, float]) -> list[list[str]]:
    """What is freed as trials begin and end one after another: status, point, score."""
    freed = []
    for number, (status, point, score) in enumerate(scores):
        row = {"trial_id": f"{point}{number}", "cell": "c", "point_id": point, "proposed_order": number}
        row |= {"status": status, "stop_reason": None, "selection_score": score}
        freed.append(leaders.note(row))
    return freed


def test_the_first_point_stays_and_the_leader_before_goes_with_the_row_of_the_next():
    freed = notes(
        Leaders((SELECTION,), repeats=1),
        ("completed", "a", 0.1),
        ("completed", "b", 0.3),
        ("completed", "d", 0.2),
        ("stopped", "c", 0.3),  # equal to b, whose id comes first
        ("running", "e", 0.9),  # it leads so far, but may still be lost
        ("completed", "f", 0.5),
    )
    assert freed == [[], [], ["d2"], ["c3"], [], ["b1"]]


def test_a_point_takes_the_lead_when_all_its_repeats_have_ended():
    leaders = Leaders((SELECTION,), repeats=2)
    freed = notes(leaders, *[("completed", "z", 0.0)] * 2, *[("completed", "a", 0.6)] * 2, ("completed", "b", 0.9))
    assert freed == [[]] * 5  # of b one is still to come: it may be 0
    assert notes(leaders, *[("running", "x", 0.0)] * 5, ("completed", "b", 0.1))[-1] == ["b4", "b5"]


def test_one_that_goes_on_and_fails_gives_the_lead_back():
    leaders = Leaders((SELECTION,), repeats=1)
    notes(leaders, ("completed", "first", 0.1), ("completed", "second", 0.3), ("completed", "best", 0.5))
    assert not leaders.keeps("c", "second")
    row = {"trial_id": "best2", "cell": "c", "point_id": "best", "proposed_order": 2, "stop_reason": None, "selection_score": 0.5}
    leaders.note(row | {"status": "running"})
    assert leaders.note(row | {"status": "failed"}) == ["best2"]
    assert leaders.keeps("c", "second")


def test_one_that_time_ended_stays_and_takes_no_place_until_it_has_ended_for_good():
    leaders = Leaders((SELECTION,), repeats=1)
    notes(leaders, ("completed", "first", 0.1), ("completed", "second", 0.3))
    row = {"trial_id": "late2", "cell": "c", "point_id": "late", "proposed_order": 2, "status": "stopped", "selection_score": 0.5}
    assert leaders.note(row | {"stop_reason": "time"}) == []
    assert leaders.note(row | {"stop_reason": "asha"}) == ["second1"]


@pytest.mark.parametrize("objectives", [(SELECTION,), FRONT])
def test_to_note_a_trial_costs_the_same_among_ten_thousand(
    objectives: tuple[Objective, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    leaders, means = Leaders(objectives, repeats=1), []
    mean = leaders_module.mean
    monkeypatch.setattr(leaders_module, "mean", lambda values: means.append(None) or mean(values))
    for number in range(10_000):
        for has_ended in (False, True):
            leaders.note(
                row_of(number, 0, number, (number % 11, "completed", number * 7919 % 5, number % 4), has_ended=has_ended)
            )
    assert len(means) <= 4 * 10_000  # two points' scores, and where there is a front the point's objectives
