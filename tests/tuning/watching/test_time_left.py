"""How long a search still takes."""

from collections.abc import Sequence

import pytest

from tune_lung.results.schema import StopReason, TrialStatus
from tune_lung.space import Arm, Choice, Grid, SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.tuning.forecasting.forecast import seconds_on_slots
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.trial_record import TrialRecord
from tune_lung.tuning.watching.time_left import TimeLeft, duration, work_of_cells

from tests.tuning.conftest import RESOURCES, epoch_result

GRID = SearchSpace(arms=(Arm(model="cnn", depth=Grid(2, 3, 4), max_epochs=5),))
SAMPLED = SearchSpace(arms=(Arm(model="cnn", depth=3, batch_size=Choice(2, 3, 4, 5, 6), max_epochs=16),))
CELLS = [cell.name for cell in GRID.cells()]
EQUAL_WORK = dict.fromkeys(CELLS, 1.0)


def record_of(
    setup: SearchSetup,
    *,
    epochs: int,
    cell: str = "cnn",
    max_epochs: int = 16,
    start_seconds: float = 0.0,
    epoch_seconds: float = 1.0,
    status: TrialStatus = TrialStatus.RUNNING,
) -> TrialRecord:
    """A trial that started at moment 0 and reported epochs of equal length."""
    plan = setup.plan_trial(cell, {"model": "cnn", "depth": 3, "max_epochs": max_epochs})
    rows = [
        epoch_result(epoch, 0.5, epoch_seconds=0.9 * epoch_seconds, validation_seconds=0.1 * epoch_seconds)["epochs"][0]
        for epoch in range(1, epochs + 1)
    ]
    moments = [0.0, *(start_seconds + epoch_seconds * (number + 1) for number in range(epochs))]
    record = TrialRecord(plan=plan, resources=RESOURCES, epochs=rows, moments=moments)
    if status is not TrialStatus.RUNNING:
        record.end(status, StopReason.ASHA, order=1)
    return record


def left_of(
    space: SearchSpace,
    records: Sequence[TrialRecord],
    *,
    work: dict[str, float] | None = None,
    slots: int = 1,
    elapsed_seconds: float = 0.0,
    now: float = 0.0,
    **strategy: object,
) -> float | None:
    own_work = work or dict.fromkeys((cell.name for cell in space.cells()), 1.0)
    return TimeLeft(space.cells(), Strategy.for_space(space, **strategy), work=own_work).seconds(
        records, slots=slots, elapsed_seconds=elapsed_seconds, now=now
    )


def test_nothing_is_known_before_the_first_epoch(setup: SearchSetup):
    assert left_of(GRID, []) is None
    assert left_of(GRID, [record_of(setup, cell=CELLS[0], epochs=0)]) is None


def test_a_grid_takes_what_runs_and_what_waits_put_on_its_slots(setup: SearchSetup):
    first = record_of(setup, cell=CELLS[0], epochs=3, max_epochs=5, start_seconds=6, epoch_seconds=4)
    # It reported last at 18: 2 epochs of 4 s less the 1 s since. Two more trials take 6 + 5 x 4 = 26 s each.
    assert left_of(GRID, [first], now=19.0, slots=1) == pytest.approx(7 + 26 + 26)
    assert left_of(GRID, [first], now=19.0, slots=2) == pytest.approx(7 + 26)  # one beside it, one after it
    assert left_of(GRID, [first], now=19.0, slots=3) == pytest.approx(26)


def test_a_trials_first_epoch_counts_its_own_seconds_and_the_rest_as_its_start(setup: SearchSetup):
    first = record_of(setup, cell=CELLS[0], epochs=1, max_epochs=5, start_seconds=100, epoch_seconds=4)
    # Not 104 s for each of the 4 epochs left. The trials to come start as slowly.
    assert left_of(GRID, [first], now=104.0, slots=1) == pytest.approx(4 * 4 + 2 * (100 + 5 * 4))


def test_a_cell_not_seen_yet_is_as_slow_for_its_work_as_the_slowest_seen(setup: SearchSetup):
    ended = [
        record_of(setup, cell=CELLS[0], epochs=5, max_epochs=5, epoch_seconds=1, status=TrialStatus.COMPLETED),
        record_of(setup, cell=CELLS[1], epochs=5, max_epochs=5, epoch_seconds=3, status=TrialStatus.COMPLETED),
    ]
    work = dict(zip(CELLS, (1.0, 2.0, 4.0), strict=True))
    # 1.5 s a unit of work in the second cell, more than the first's 1 s: 5 epochs of 4 x 1.5 s
    assert left_of(GRID, ended, work=work) == pytest.approx(5 * 6)


def test_the_cnns_pace_says_nothing_of_a_resnet_where_one_was_seen(setup: SearchSetup):
    both = SearchSpace(arms=(Arm(model="cnn", max_epochs=5), Arm(model=Grid("resnet18", "resnet34"), max_epochs=5)))
    cnn, resnet18, _ = (cell.name for cell in both.cells())
    ended = [
        record_of(setup, cell=cnn, epochs=5, max_epochs=5, start_seconds=9, epoch_seconds=8, status=TrialStatus.COMPLETED),
        record_of(setup, cell=resnet18, epochs=5, max_epochs=5, epoch_seconds=1, status=TrialStatus.COMPLETED),
    ]
    assert left_of(both, ended) == pytest.approx(5)
    assert left_of(both, ended[:1]) == pytest.approx(2 * (9 + 5 * 8))


def test_an_overdue_epoch_never_makes_the_time_left_negative(setup: SearchSetup):
    last = [record_of(setup, cell=cell, epochs=4, max_epochs=5) for cell in CELLS]
    assert left_of(GRID, last, now=60.0, slots=3) == 0.0


def test_under_asha_a_trial_is_expected_to_run_as_long_as_those_that_ran_longer(setup: SearchSetup):
    ended = [record_of(setup, epochs=epochs, status=TrialStatus.STOPPED) for epochs in (2, 8, 14)]
    running = record_of(setup, epochs=4)
    # Those that went past epoch 4 ran 8 and 14 epochs: 11 on average, 7 to go. The one to come runs the mean of all
    # four, (2 + 8 + 14 + 11) / 4 = 8.75.
    assert left_of(SAMPLED, [*ended, running], now=4.0, slots=2, samples=5) == pytest.approx(8.75)
    assert left_of(SAMPLED, [*ended, running], now=4.0, slots=1, samples=5) == pytest.approx(7 + 8.75)


def test_under_asha_a_trial_that_outran_all_others_may_run_all_its_epochs(setup: SearchSetup):
    ended = [record_of(setup, epochs=2, status=TrialStatus.STOPPED) for _ in range(4)]
    assert left_of(SAMPLED, [*ended, record_of(setup, epochs=4)], now=4.0, samples=5) == pytest.approx(16 - 4)


def test_without_a_scheduler_short_trials_promise_nothing_for_those_to_come(setup: SearchSetup):
    ended = [record_of(setup, epochs=2, status=TrialStatus.COMPLETED) for _ in range(4)]
    assert left_of(SAMPLED, ended, now=4.0, samples=5, scheduler="none") == pytest.approx(16)


def test_asha_over_many_trials_is_foreseen_within_a_tenth(setup: SearchSetup):
    # 4 slots; of 16 trials 12 end at epoch 1, 3 at epoch 4, 1 at epoch 16, in turn: 40 epochs each 16 trials
    lengths = [(1, 1, 4, 1, 1, 1, 4, 1, 1, 16, 1, 1, 4, 1, 1, 1)[number % 16] for number in range(320)]
    space = SearchSpace(arms=(Arm(model="cnn", depth=3, batch_size=Choice(*range(2, 322)), max_epochs=16),))
    ended = [record_of(setup, epochs=length, status=TrialStatus.STOPPED) for length in lengths[:160]]
    left = left_of(space, ended, slots=4, samples=320)
    assert left == pytest.approx(seconds_on_slots(map(float, lengths[160:]), 4), rel=0.1)


def test_the_time_left_is_never_more_than_the_budgets(setup: SearchSetup):
    first = record_of(setup, cell=CELLS[0], epochs=3, max_epochs=5, start_seconds=6, epoch_seconds=4)
    assert left_of(GRID, [], time_budget_seconds=30.0, elapsed_seconds=10.0) == 20.0
    assert left_of(GRID, [first], now=19.0, time_budget_seconds=30.0, elapsed_seconds=20.0) == 10.0
    assert left_of(GRID, [first], now=19.0, time_budget_seconds=900.0, elapsed_seconds=20.0) == pytest.approx(59)
    assert left_of(GRID, [first], now=19.0, time_budget_seconds=30.0, elapsed_seconds=40.0) == 0.0


@pytest.mark.parametrize(
    ("space", "strategy", "text"),
    [
        (GRID, {}, "about 12 s left"),  # 2 + 5 + 5: this one's and two whole ones
        (SAMPLED, {"samples": 2}, "about 29 s left"),  # 13 + 16: nothing says yet that trials end early
        (SAMPLED, {"samples": 2, "time_budget_seconds": 20.0}, "at most 17 s left"),
        (GRID, {"time_budget_seconds": 3.0}, "time budget spent"),
    ],
)
def test_the_budget_alone_is_a_bound_and_all_else_is_about(
    setup: SearchSetup, space: SearchSpace, strategy: dict[str, object], text: str
):
    cell = space.cells()[0]
    record = record_of(setup, cell=cell.name, epochs=3, max_epochs=int(str(cell.point["max_epochs"])))
    time_left = TimeLeft(space.cells(), Strategy.for_space(space, **strategy), work={cell.name: 1.0 for cell in space.cells()})
    assert time_left.text([record], slots=1, elapsed_seconds=3.0, now=3.0) == text


def test_a_cells_work_is_that_of_its_network_whatever_is_frozen(setup: SearchSetup):
    space = SearchSpace(arms=(Arm(model=Grid("resnet18", "resnet34"), frozen_blocks=Grid(0, 4), weights="random"),))
    work = work_of_cells(space, setup, num_classes=4)
    assert work["resnet18 frozen_blocks=0"] == work["resnet18 frozen_blocks=4"]
    # torchvision's documentation gives 1.81 and 3.66 GFLOPS at 224 px
    assert work["resnet34 frozen_blocks=0"] / work["resnet18 frozen_blocks=0"] == pytest.approx(3.66 / 1.81, rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (3600.0, "1 h 0 min"), (7505.0, "2 h 5 min"), (200_000.0, "2 d 7 h")],
)
def test_a_time_is_written_in_its_two_largest_units(seconds: float, text: str):
    assert duration(seconds) == text
