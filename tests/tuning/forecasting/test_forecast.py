"""What a search is foreseen to take, against counts made by hand."""

from collections import Counter
from typing import Any

import pytest

from tune_lung.space import Arm, Choice, Grid, IntRange, LogUniform, SearchSpace, Uniform
from tune_lung.space_files import load_space
from tune_lung.strategy import Strategy
from tune_lung.tuning.forecasting.forecast import (
    EpochForecast,
    ForeseenTrial,
    TrialCost,
    foresee_epochs,
    foresee_trials,
    plan_cells,
    search_seconds,
    seconds_on_slots,
)
from tune_lung.tuning.scheduler import groups_of

TWO_EPOCHS = SearchSpace(arms=(Arm(model="cnn", max_epochs=2, learning_rate=LogUniform(1e-4, 1e-2)),))


def trials_of(space: SearchSpace, strategy: Strategy) -> tuple[ForeseenTrial, ...]:
    return foresee_trials(plan_cells(space.cells(), strategy), strategy)


def epochs_of(space: SearchSpace, **options: Any) -> EpochForecast:
    strategy = Strategy.for_space(space, **options)
    return foresee_epochs(trials_of(space, strategy), strategy, group_of=groups_of(space))


def cost(**numbers: Any) -> TrialCost:
    nothing: dict[str, Any] = dict.fromkeys(TrialCost.__dataclass_fields__, 0)
    return TrialCost(**(nothing | {"features_to_build": (None,)} | numbers))


# Trials


def test_a_grid_has_one_point_a_cell_and_stands_for_itself() -> None:
    space = load_space("freeze_grid")
    plans = plan_cells(space.cells(), Strategy.for_space(space))
    assert [plan.num_points for plan in plans] == [1] * 11
    assert [plan.samples for plan in plans] == [(dict(cell.point),) for cell in space.cells()]


def test_trials_come_a_point_of_each_cell_in_turn_with_its_repeats_together() -> None:
    space = SearchSpace(arms=(Arm(model="cnn", depth=Grid(2, 3), learning_rate=LogUniform(1e-4, 1e-2)),))
    trials = trials_of(space, Strategy.for_space(space, samples=2, repeats=2))
    order = [(trial.cell.removeprefix("cnn depth="), trial.repeat) for trial in trials]
    assert order == [("2", 0), ("2", 1), ("3", 0), ("3", 1)] * 2


def test_a_cell_is_given_no_more_points_than_it_has() -> None:
    space = SearchSpace(arms=(Arm(model="cnn", depth=IntRange(2, 4), batch_size=Choice(16, 32)),))
    assert [plan.num_points for plan in plan_cells(space.cells(), Strategy.for_space(space, samples=40))] == [3 * 2]


def test_samples_reach_every_fifth_of_every_axis_once() -> None:
    axes = {"depth": IntRange(2, 6), "channel_growth": Uniform(1.0, 2.0), "learning_rate": LogUniform(1e-5, 1.0)}
    space = SearchSpace(arms=(Arm(model="cnn", **axes),))
    (plan,) = plan_cells(space.cells(), Strategy.for_space(space, samples=32))
    assert sorted(sample["depth"] for sample in plan.samples) == [2, 3, 4, 5, 6]
    # The middles of the fifths: 1.1, 1.3, ...; for the rate half way between powers of ten, from 10^-4.5 on.
    assert sorted(sample["channel_growth"] for sample in plan.samples) == pytest.approx([1.1, 1.3, 1.5, 1.7, 1.9])
    assert sorted(sample["learning_rate"] for sample in plan.samples) == pytest.approx([10 ** (k - 4.5) for k in range(5)])


# Epochs


def test_a_grid_shorter_than_patience_takes_exactly_its_epochs() -> None:
    epochs = epochs_of(load_space("freeze_grid").with_fixed({"max_epochs": 4}))
    assert (sum(epochs.least), sum(epochs.expected), sum(epochs.most)) == (44, 44, 44)  # 11 cells x 4
    assert epochs.rungs == ()


def test_a_grid_ends_at_patience_at_the_earliest_and_at_max_epochs_at_the_latest() -> None:
    epochs = epochs_of(load_space("freeze_grid"))
    assert (sum(epochs.least), sum(epochs.most)) == (11 * 21, 11 * 100)  # the best epoch is the first, patience 20


def test_asha_ends_a_trial_at_the_first_rung_at_the_earliest() -> None:
    epochs = epochs_of(load_space("freeze_tuned"), samples=3, grace_epochs=4)
    assert (len(epochs.least), sum(epochs.least), sum(epochs.most)) == (33, 33 * 4, 33 * 100)


def test_the_rungs_are_those_of_the_search() -> None:
    epochs = epochs_of(load_space("freeze_tuned").with_fixed({"max_epochs": 20}), samples=4, grace_epochs=1, reduction_factor=4)
    assert [rung.epoch for rung in epochs.rungs] == [1, 4, 16]  # grace x 4^k, below 20
    assert epochs.rungs[0].num_compared == 44  # all 11 cells x 4 samples


def test_a_grace_that_covers_everything_leaves_no_rung() -> None:
    epochs = epochs_of(TWO_EPOCHS, samples=3, grace_epochs=5)
    assert epochs.rungs == ()
    assert epochs.expected == (2, 2, 2)


def test_median_stopping_may_end_a_trial_at_its_grace_and_is_not_foreseen() -> None:
    epochs = epochs_of(TWO_EPOCHS, samples=2, scheduler="median", grace_epochs=1)
    assert (epochs.least, epochs.expected) == ((1, 1), (2, 2))


def test_a_lone_trial_is_expected_to_end_as_its_patience_has_it() -> None:
    (expected,) = epochs_of(SearchSpace(arms=(Arm(model="cnn"),))).expected
    # The mean of min(100, best + 20) over best = 1 ... 100 is 68.4, its deviation 26; 2,000 replays, 4 sigmas.
    assert expected == pytest.approx(68.4, abs=4 * 26 / 2000**0.5)


def test_expected_epochs_follow_the_stopping_rule() -> None:
    epochs = epochs_of(TWO_EPOCHS, samples=2, grace_epochs=1)
    # At the rung after epoch 1 the first trial has no rival and runs both epochs; the second is the worse one in half of
    # the cases: 1.5 epochs, deviation 0.5; 1,000 replays, 4 sigmas.
    tolerance = 4 * 0.5 / 1000**0.5
    assert epochs.expected == (2, pytest.approx(1.5, abs=tolerance))
    (rung,) = epochs.rungs
    assert (rung.num_compared, rung.num_going_on) == (2, pytest.approx(1.5, abs=tolerance))


def test_trials_of_different_cells_are_not_compared_where_points_are_sampled() -> None:
    space = SearchSpace(arms=(Arm(model="cnn", max_epochs=2, depth=Grid(2, 3), learning_rate=LogUniform(1e-4, 1e-2)),))
    assert epochs_of(space, samples=1, grace_epochs=1).expected == (2, 2)  # each is alone in its cell


# Time


def test_work_is_put_on_the_slot_that_is_free_first() -> None:
    assert seconds_on_slots([3, 1, 1, 1], 2) == 3
    assert seconds_on_slots([1, 1, 3], 2) == 4
    assert seconds_on_slots([2, 2], 1) == 4


def test_a_trial_adds_up() -> None:
    own = cost(start_seconds=1, epoch_seconds=4, validation_seconds=2, best_seconds=3, last_seconds=10)
    # 10 epochs of 6 s; best and state are saved at the end and every 30 s, so twice in 60 s.
    assert own.seconds(10) == 1 + 10 * 6 + 3 * (3 + 10)


def test_long_epochs_save_the_state_once_each() -> None:
    assert cost(epoch_seconds=100, last_seconds=1).seconds(3) == 300 + 1 + 3


def test_features_are_computed_once_for_all_trials_that_share_them() -> None:
    strategy = Strategy.for_space(TWO_EPOCHS, samples=3, scheduler="none")
    trials = trials_of(TWO_EPOCHS, strategy)
    own = cost(epoch_seconds=1, features_seconds=50, features_to_build=("shared",))
    assert search_seconds(trials, [2] * 3, lambda _: own, slots=1, worker_seconds=0) == 50 + 3 * 2


def test_features_that_are_there_cost_nothing() -> None:
    strategy = Strategy.for_space(TWO_EPOCHS, samples=3, scheduler="none")
    own = cost(epoch_seconds=1, features_seconds=50)
    assert search_seconds(trials_of(TWO_EPOCHS, strategy), [2] * 3, lambda _: own, slots=3, worker_seconds=0) == 2


def test_a_search_starts_its_workers_twice_and_tests_each_cells_best_point_with_every_repeat() -> None:
    space = SearchSpace(arms=(Arm(model="cnn", depth=Grid(2, 3), learning_rate=LogUniform(1e-4, 1e-2)),))
    strategy = Strategy.for_space(space, samples=5, repeats=2)
    own = cost(test_seconds=7, features_to_build=(None, None))
    trials = trials_of(space, strategy)
    assert Counter(trial.cell for trial in trials) == {"cnn depth=2": 10, "cnn depth=3": 10}
    assert search_seconds(trials, [0] * 20, lambda _: own, slots=1, worker_seconds=3) == 2 * 3 + 2 * 2 * 7
