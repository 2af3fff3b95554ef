"""The benchmark of the search: its problems, its simulated searches and its bars."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from benchmarks.crossing import crossing_problem, expected_score
from benchmarks.methods import METHODS, OURS, UNSTOPPED, Method
from benchmarks.record_curves import curves_of, write_table
from benchmarks.search_quality import bars, problem_named, problem_names
from benchmarks.simulation import simulate
from benchmarks.tabulated import Configuration, TabulatedProblem, Untried, coordinates, read_table
from tune_lung.errors import InputError
from tune_lung.families.family import PointValue
from tune_lung.results.reader import read_run
from tune_lung.space import Arm, Cell, Choice, LogUniform, SearchSpace

from tests.tuned_run import RATES, write_tuned_run

SPACE = SearchSpace(arms=(Arm(model="cnn", learning_rate=LogUniform(1e-4, 1e-2), padding=Choice("same", "valid")),), name="two")
CURVES = {1e-4: (0.1, 0.2, 0.3), 1e-3: (0.4, 0.6, 0.5), 1e-2: (0.9, math.nan)}
PROBLEM = TabulatedProblem(
    space=SPACE,
    configurations=tuple(
        Configuration(cell="cnn", values={"learning_rate": rate, "padding": "same"}, curve=curve)
        for rate, curve in CURVES.items()
    ),
)


class InOrder(Method):
    """Proposes given rates and notes what it hears."""

    def __init__(self, *rates: float, stops_at: int = 100) -> None:
        self.rates, self.stops_at, self.heard = list(rates), stops_at, []

    def propose(self) -> tuple[Cell, Mapping[str, PointValue]] | None:
        return (SPACE.cells()[0], {"learning_rate": self.rates.pop(0), "padding": "same"}) if self.rates else None

    def report(self, trial: int, epoch: int, score: float, *, is_last: bool) -> bool:
        self.heard.append((trial, epoch, score, is_last))
        return not is_last and epoch < self.stops_at

    def fail(self, trial: int) -> None:
        self.heard.append((trial, "failed"))


def test_a_search_sees_its_trials_epochs_in_turn():
    method = InOrder(1e-4, 1e-3)
    best = simulate(method, PROBLEM, num_workers=2, num_epochs=8)
    assert [heard[:2] for heard in method.heard] == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3)]
    assert method.heard[-2:] == [(0, 3, 0.3, True), (1, 3, 0.5, True)]
    assert best.tolist() == [0.1, 0.4, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6]


def test_a_stopped_trial_makes_room_for_the_next_proposal_and_a_budget_ends_the_search():
    method = InOrder(1e-4, 1e-3, stops_at=1)
    assert simulate(method, PROBLEM, num_workers=1, num_epochs=2).tolist() == [0.1, 0.4]
    assert simulate(InOrder(1e-3), PROBLEM, num_workers=1, num_epochs=1).tolist() == [0.4]


def test_a_trial_that_fails_is_told_and_never_the_best():
    method = InOrder(1e-2, 1e-4)
    assert simulate(method, PROBLEM, num_workers=1, num_epochs=3).tolist() == [-math.inf, -math.inf, 0.1]
    assert method.heard[1] == (0, "failed")


def test_a_proposal_stands_for_the_nearest_configuration_left():
    untried, (cell,) = Untried(PROBLEM), SPACE.cells()
    proposal = {"learning_rate": 1.2e-3, "padding": "valid"}
    taken = [untried.take(cell, proposal) for _ in range(4)]
    assert [one and one.values["learning_rate"] for one in taken] == [1e-3, 1e-2, 1e-4, None]


def test_distances_count_orders_of_magnitude_ranks_and_words():
    axes = {"learning_rate": RATES, "batch_size": Choice(16, 32, 64), "padding": Choice("same", "valid")}
    ours = coordinates(axes, {"learning_rate": 1e-3, "batch_size": 32, "padding": "same"})
    assert ours[:2].tolist() == pytest.approx([0.5, 0.5])
    other = coordinates(axes, {"learning_rate": 1e-3, "batch_size": 32, "padding": "valid"})
    assert np.linalg.norm(ours - other) == pytest.approx(1)


def test_curves_cross_whoever_leads_first_ends_behind():
    def leader(epoch: int) -> float:
        return max(np.linspace(0, 1, 101), key=lambda u: expected_score(epoch, u=u, v=0.6, w=0.3, b=1 / 3))

    assert [leader(epoch) for epoch in (1, 4, 20)] == pytest.approx([0.69, 0.52, 0.35])


def test_the_analytic_problem_is_a_function_of_its_seed():
    one, same, other = (crossing_problem(num_configurations=8, seed=seed) for seed in (1, 1, 2))
    assert one.configurations == same.configurations != other.configurations
    assert one.max_epochs == 20


def test_every_method_searches_to_the_end_and_repeats_itself():
    problem = crossing_problem(num_configurations=32)
    for start in METHODS.values():
        first, again = (simulate(start(problem, 3), problem, num_workers=4, num_epochs=160) for _ in range(2))
        assert first.tolist() == again.tolist()
        assert np.isfinite(first).all()
        assert (np.diff(first) >= 0).all()


@pytest.mark.parametrize("name", [name for name in problem_names() if name != "crossing"])
def test_the_recorded_tables_hold_what_the_benchmark_needs(name):
    problem = problem_named(name)
    assert len(problem.configurations) >= 128
    assert {len(one.curve) for one in problem.configurations if not one.fails} == {20}
    assert problem.name == name
    assert {one.cell for one in problem.configurations} == {cell.name for cell in problem.space.cells()}


def test_there_are_three_problems():
    assert set(problem_names()) == {"crossing", "cnn_architecture", "resnet_finetune"}


def regrets(ours: float, rival: float, *, quarter: float) -> dict[str, np.ndarray]:
    """Made-up regrets after four epochs, spread a little over 30 seeds."""
    spread = np.linspace(0.9, 1.1, 30)[:, None]
    return {
        OURS: spread * [quarter, ours, ours, ours],
        UNSTOPPED: np.roll(spread, 7, axis=0) * [1, rival, rival, rival],
    }


@pytest.mark.parametrize(
    ("case", "holds"),
    [
        (regrets(0.1, 0.3, quarter=0.2), [True, True, True, True, True]),
        (regrets(0.3, 0.1, quarter=0.4), [True, True, False, False, False]),
        (regrets(0.1, 0.1, quarter=0.2), [True, True, True, True, False]),
    ],
    ids=["better", "worse", "as good but not in a quarter"],
)
def test_the_bars_tell_better_from_worse(case, holds):
    assert [does_hold for _, does_hold in bars(case)] == holds  # p, median: early, in the end; the quarter


def test_equal_regrets_are_not_worse():
    same = regrets(0.1, 0.1, quarter=0.1)[OURS]
    assert all(does_hold for _, does_hold in bars({OURS: same, UNSTOPPED: same.copy()}))


def test_a_run_becomes_a_table_with_its_space_and_curves(tmp_path):
    space = SearchSpace(arms=(Arm(model="cnn", learning_rate=RATES),), name="rates")
    root = write_tuned_run(tmp_path / "run", space=space, sampler="random", scheduler="none", samples=3)
    trials = pd.read_parquet(root / "trials")
    run = read_run(root)
    if (trials["status"] == "stopped").any():
        with pytest.raises(InputError, match="every curve must be whole"):
            curves_of(run)
        run.trials.loc[run.trials["status"] == "stopped", "status"] = "completed"
    assert write_table(run, tmp_path / "rates.parquet") == 3
    problem = read_table(tmp_path / "rates.parquet")
    assert problem.space.name == "rates"
    assert {one.values["learning_rate"] for one in problem.configurations} == set(trials["learning_rate"])
    assert {one.curve for one in problem.configurations} == {(0.25, 0.3 + number / 100, 0.28) for number in range(3)}
