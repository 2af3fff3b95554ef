"""What cannot fit is refused before it is started."""

import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tune_lung.config import RunConfig
from tune_lung.errors import InputError
from tune_lung.results.layout import KeepName
from tune_lung.space import Arm, Choice, Grid, IntRange, SearchSpace
from tune_lung.strategy import Strategy, parse_objectives
from tune_lung.tuning.cluster import NodeOffer, Resources
from tune_lung.tuning.forecasting.forecast import plan_cells
from tune_lung.tuning.forecasting.room import (
    DiskNeed,
    check_disk,
    check_gpu_memory,
    check_memory,
    checkpoints_need,
    size_text,
    warnings_of_room,
)
from tune_lung.tuning.plan import DataRequest, SearchSetup
from tune_lung.tuning.search_plan import SearchPlan

GB = 10**9


class Disk(NamedTuple):
    """Looks like what `shutil.disk_usage` gives."""

    total: int
    used: int
    free: int


@pytest.fixture
def _ten_gb_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(100 * GB, 90 * GB, 10 * GB))


def need(what: str, num_bytes: int, folder: Path, option: str = "--out") -> DiskNeed:
    return DiskNeed(what=what, folder=folder, num_bytes=num_bytes, option=option)


# ResNet18 at k = 4: the head's 2,052 parameters, 9,600 batch-norm statistics of 4 bytes and 20 counters of 8. Adam keeps
# two numbers for each parameter that it trains.
BEST = 4 * (2_052 + 9_600) + 20 * 8
LAST = BEST + 2 * 4 * 2_052
# What both cells' networks leave out, once: all but the head of its 11,178,564 parameters.
FROZEN = 4 * (11_178_564 - 2_052)
FRONT = parse_objectives("val_macro_recall:max,trainable_params:min")


def checkpoint_bytes_of(keep: KeepName, *, slots: int = 2, **strategy: Any) -> int:
    """What a search of 10 rates in one cell, and of the only point of another, is said to need for checkpoints."""
    arms = (
        Arm(model="resnet18", frozen_blocks=4, learning_rate=Choice(*(0.001 * number for number in range(1, 11)))),
        Arm(model="resnet18", frozen_blocks=4, batch_size=16),
    )
    space = SearchSpace(name="resnets", arms=arms)
    chosen = Strategy.for_space(space, sampler="exhaustive", scheduler="none", **strategy)
    plans = plan_cells(space.cells(), chosen)
    return checkpoints_need(plans, chosen, RunConfig(), keep=keep, slots=slots, num_classes=4, out=Path("runs")).num_bytes


def test_trials_that_run_have_two_networks_two_states_and_one_that_is_written() -> None:
    assert checkpoint_bytes_of("leaders", slots=2) - checkpoint_bytes_of("leaders", slots=1) == 2 * BEST + 3 * LAST


def test_leaders_are_the_first_and_the_best_point_of_each_cell() -> None:
    running = 2 * (2 * BEST + 3 * LAST) + FROZEN
    assert checkpoint_bytes_of("leaders") == running + 3 * BEST  # of the cell with one point it is both
    # All repeats of those three, and of the points that the two belong to which run, the two others.
    assert checkpoint_bytes_of("leaders", repeats=3) == running + 3 * 3 * BEST + 2 * 2 * BEST
    assert checkpoint_bytes_of("leaders", objectives=FRONT) == running + 11 * BEST  # every point may be on the front
    assert checkpoint_bytes_of("best") == running + 11 * BEST
    assert checkpoint_bytes_of("all") == running + 11 * 2 * (BEST + LAST)


def test_no_more_run_than_there_are() -> None:
    assert checkpoint_bytes_of("leaders", slots=1000) == 11 * (2 * BEST + 3 * LAST) + 3 * BEST + FROZEN


def test_the_largest_network_of_a_cell_counts() -> None:
    space = SearchSpace(name="depths", arms=(Arm(model="resnet18", frozen_blocks=IntRange(0, 4)),))
    chosen = Strategy.for_space(space, samples=1)
    need = checkpoints_need(
        plan_cells(space.cells(), chosen), chosen, RunConfig(), keep="leaders", slots=1, num_classes=4, out=Path("runs")
    )
    best = 4 * (11_178_564 + 9_600) + 20 * 8  # as the README counts its parameters
    assert need.num_bytes == best + 2 * best + 3 * (best + 2 * 4 * 11_178_564) + FROZEN


def test_what_networks_leave_out_counts_once_and_of_random_starts_once_a_repeat() -> None:
    """Of ResNet18 at k = 1..4 that is what the README's trainable parameters lack; two cells share it."""

    def need_of(weights: str) -> int:
        arm = Arm(model="resnet18", weights=weights, frozen_blocks=Choice(0, 1, 2, 3, 4), batch_size=Grid(16, 32))
        space = SearchSpace(name="depths", arms=(arm,))
        chosen = Strategy.for_space(space, sampler="exhaustive", scheduler="none", repeats=3)
        plans = plan_cells(space.cells(), chosen)
        needed = checkpoints_need(plans, chosen, RunConfig(), keep="leaders", slots=1, num_classes=4, out=Path("runs"))
        return needed.num_bytes

    left_out = sum(4 * (11_178_564 - trained) for trained in (11_021_060, 10_495_492, 8_395_780, 2_052))
    assert need_of("random") - need_of("imagenet") == (3 - 1) * left_out


@pytest.mark.usefixtures("_ten_gb_free")
def test_more_than_the_disk_has_is_refused(tmp_path: Path) -> None:
    check_disk([need("checkpoints", 10 * GB, tmp_path)])
    with pytest.raises(InputError, match=r"may write 12 GB of checkpoints, and 10 GB are free there\. .* with --out"):
        check_disk([need("checkpoints", 12 * GB, tmp_path)])


@pytest.mark.usefixtures("_ten_gb_free")
def test_needs_on_one_disk_add_up(tmp_path: Path) -> None:
    together = [need("checkpoints", 6 * GB, tmp_path), need("prefix features", 6 * GB, tmp_path / "cache", "--cache")]
    with pytest.raises(InputError, match=r"6\.0 GB of checkpoints and 6\.0 GB of prefix features.*with --out or --cache"):
        check_disk(together)


def test_a_folder_that_is_not_there_yet_is_looked_for_on_the_disk_above_it(tmp_path: Path) -> None:
    check_disk([need("checkpoints", 1, tmp_path / "not" / "there")])
    assert not (tmp_path / "not").exists()


def test_memory_is_refused_with_the_number_of_trials_that_fit() -> None:
    offers = [NodeOffer(slots=8, memory_bytes=10 * GB)]
    check_memory(offers, slots=3, trial_bytes=3 * GB)
    with pytest.raises(InputError, match=r"4 trials at once need 12 GB of memory, and 10 GB are free\. Use --max-concurrent 3"):
        check_memory(offers, slots=4, trial_bytes=3 * GB)


def test_memory_is_counted_node_by_node() -> None:
    check_memory([NodeOffer(slots=2, memory_bytes=7 * GB)] * 3, slots=6, trial_bytes=3 * GB)
    # Together these have 19 GB for 18, but the second one cannot hold its two trials.
    uneven = [NodeOffer(slots=2, memory_bytes=gigabytes * GB) for gigabytes in (7, 5, 7)]
    with pytest.raises(InputError, match=r"2 trials at once need 6\.0 GB of memory, and 5\.0 GB are free"):
        check_memory(uneven, slots=6, trial_bytes=3 * GB)


def test_a_trial_that_no_node_can_hold_is_told_to_shrink() -> None:
    with pytest.raises(InputError, match="Lower batch_size or --image-size"):
        check_memory([NodeOffer(slots=1, memory_bytes=2 * GB)], slots=1, trial_bytes=3 * GB)


@pytest.mark.usefixtures("_ten_gb_free")
@pytest.mark.parametrize(
    ("repeats", "gigabytes", "told"),
    [
        (1, 8, []),
        (1, 2, [r"4 trials at once need 2\.4 GB of memory, and 2\.0 GB are free\. Use --max-concurrent 3"]),
        (100, 8, ["may write .* of checkpoints, and 10 GB are free there"]),
    ],
)
def test_a_search_is_warned_of_what_is_known_to_be_short(repeats: int, gigabytes: int, told: list[str]) -> None:
    resnets = SearchSpace(name="resnets", arms=(Arm(model="resnet18", learning_rate=Grid(0.1, 0.01, 0.001, 0.0001)),))
    setup = SearchSetup(
        run=RunConfig(),
        run_root=Path("runs/none"),
        data=DataRequest(root=None, run=RunConfig(), cache_root=None, cache_size_bytes=0),
        store=Path("store"),
        data_fingerprint="none",
        weights={},
        cpus_per_trial=1,
        gpus_per_trial=0,
    )
    plan = SearchPlan(
        space=resnets,
        strategy=Strategy(sampler="exhaustive", scheduler="none", samples=None, repeats=repeats),
        setup=setup,
        resources=Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=8),
    )
    warnings = warnings_of_room(plan, [NodeOffer(slots=8, memory_bytes=gigabytes * GB)], num_classes=4)
    assert len(warnings) == len(told)
    for warning, text in zip(warnings, told, strict=True):
        assert re.search(text, warning)


@pytest.mark.parametrize(("gpus_per_trial", "num_sharing"), [(0.25, 4), (0.5, 2), (0.4, 2)])
def test_trials_that_share_a_gpu_must_fit_into_it_together(gpus_per_trial: float, num_sharing: int) -> None:
    check_gpu_memory(gpus_per_trial=gpus_per_trial, trial_bytes=10 * GB, gpu_bytes=num_sharing * 10 * GB)
    with pytest.raises(InputError, match=f"{num_sharing} trials on one GPU need {num_sharing}0 GB of its memory"):
        check_gpu_memory(gpus_per_trial=gpus_per_trial, trial_bytes=10 * GB, gpu_bytes=num_sharing * 10 * GB - 1)


@pytest.mark.parametrize(("gpus_per_trial", "gpu_bytes"), [(1.0, GB), (0.0, 0)])
def test_a_gpu_of_ones_own_and_none_are_enough(gpus_per_trial: float, gpu_bytes: int) -> None:
    check_gpu_memory(gpus_per_trial=gpus_per_trial, trial_bytes=gpu_bytes, gpu_bytes=gpu_bytes)
    with pytest.raises(InputError, match="2 trials on one GPU need"):
        check_gpu_memory(gpus_per_trial=0.5, trial_bytes=GB, gpu_bytes=GB)


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0.0 kB"), (4_700_000, "4.7 MB"), (60.4e9, "60 GB"), (999.7e6, "1000 MB"), (1.2e12, "1.2 TB")]
)
def test_sizes_are_written_in_decimal_units(num_bytes: float, text: str) -> None:
    assert size_text(num_bytes) == text
