"""A few real steps, and what is made of them."""

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tune_lung.config import TrialConfig
from tune_lung.data.cache import Cache
from tune_lung.data.cache_proof import write_listing
from tune_lung.data.store import DecodedImages, PixelStore, write_store
from tune_lung.errors import InputError
from tune_lung.models.weights import RANDOM_WEIGHTS
from tune_lung.space import Arm, Choice, IntRange, LogUniform, SearchSpace
from tune_lung.training import prefix_features
from tune_lung.training.prefix_features import open_prefix_features
from tune_lung.tuning.device import GPU_CONTEXT_BYTES
from tune_lung.tuning.forecasting import probe as probe_module
from tune_lung.tuning.forecasting.forecast import TrialCost
from tune_lung.tuning.forecasting.probe import ProbeRequest, gpu_bytes_of, largest_point, measure_trial, probe, workload_of
from tune_lung.tuning.plan import SearchSetup

SIZE = 32
CNN = {"model": "cnn", "depth": 2, "base_channels": 4, "batch_size": 8}
FROZEN = {"model": "resnet18", "frozen_blocks": 4, "weights": "random", "batch_size": 32, "precision": "fp32"}


@pytest.fixture(autouse=True)
def _threads_as_before() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stored(setup: SearchSetup, tmp_path: Path) -> SearchSetup:
    """The run of `setup` over a store of random images: 640 to train with, 160 to validate, 80 to test."""
    splits = ["train"] * 640 + ["validation"] * 160 + ["test"] * 80
    images = DecodedImages(
        pixels_MHW=np.random.default_rng(0).integers(0, 256, (len(splits), SIZE, SIZE), dtype=np.uint8),
        masks_MHW=None,
        has_mask_M=np.zeros(len(splits), bool),
        labels_M=np.arange(len(splits)) % 2,
        image_ids=[f"{number:016x}" for number in range(len(splits))],
        whites={255: len(splits)},
        mask_whites={},
        num_far_below_white=0,
    )
    folder = tmp_path / "store"
    folder.mkdir()
    write_store(folder, images, splits=splits, classes=("a", "b"), synthetic=True)
    write_listing(folder, of=folder)
    run = replace(setup.run, image_size=SIZE)
    data = replace(setup.data, run=run, cache_size_bytes=10**9)
    return replace(setup, run=run, data=data, store=folder, weights={"resnet18": RANDOM_WEIGHTS})


def request_of(point: dict[str, Any], repeats: int = 1) -> ProbeRequest:
    return ProbeRequest(cell="some cell", point=point, repeats=repeats)


def test_a_probe_measures_every_part_of_a_trial(stored: SearchSetup) -> None:
    cost = measure_trial(request_of(CNN), stored)
    for name in ("start_seconds", "epoch_seconds", "validation_seconds", "best_seconds", "last_seconds", "test_seconds"):
        assert getattr(cost, name) > 0, name
    assert (cost.features_seconds, cost.features_to_build, cost.features_bytes) == (0, (None,), 0)
    assert cost.memory_bytes > 100 * 10**6  # torch alone
    assert (cost.gpu_memory_bytes, cost.gpu_bytes) == (0, 0)


def test_a_probe_scales_what_it_measures_on_few_images_to_all(stored: SearchSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))  # every look at the clock is a second later than the one before
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    cost = measure_trial(request_of(CNN), stored)
    # The probe shows 64 images of each part: a tenth of 640, and of 160 two fifths. A pass is one look at the clock long.
    assert cost.epoch_seconds == pytest.approx(640 / 64)
    assert cost.validation_seconds == pytest.approx(160 / 64)
    assert cost.test_seconds == pytest.approx(1 + 80 / 64)  # loading does not depend on the number of images


@pytest.mark.parametrize(
    ("point", "uses_features", "train_bytes"),
    [
        (CNN, False, SIZE * SIZE),  # a pixel is a byte
        (FROZEN, True, 512 * 4),  # 512 channels on a map of 1 pixel, 4 bytes a number
    ],
    ids=["images", "features"],
)
def test_on_a_gpu_all_training_images_or_features_and_a_context_are_counted(
    stored: SearchSetup, point: dict[str, Any], uses_features: bool, train_bytes: int
) -> None:
    store = PixelStore.open(stored.store)
    full = stored.training_job(stored.plan_trial("some cell", point), store=store, device=torch.device("cpu"))
    few = replace(full, store=probe_module._FewImages(**vars(store), num_shown=64))

    def counted(gpu_bytes: int) -> int:
        return gpu_bytes_of(full, few, uses_features=uses_features, reserved_bytes=10**9, gpu_bytes=gpu_bytes)

    assert counted(10**10) == 10**9 + (640 - 64) * train_bytes + GPU_CONTEXT_BYTES
    # Where a quarter of the GPU is too small for all of them, they stay where they are; the few went there.
    assert counted(4 * 639 * train_bytes) == 10**9 - 64 * train_bytes + GPU_CONTEXT_BYTES


def test_a_probe_leaves_nothing_behind(stored: SearchSetup) -> None:
    measure_trial(request_of(FROZEN), stored)
    assert not stored.run_root.exists()
    left = [path for path in stored.data.cache_root.rglob("*") if path.is_file()]  # type: ignore[union-attr]
    assert [path.name for path in left] == [".tune_lung-cache"]


def test_what_a_killed_probe_leaves_makes_room(stored: SearchSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_features, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(prefix_features, "_ROOM_TO_LEAVE", 0.0)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # nobody tidies up after a kill
    measure_trial(request_of(FROZEN), stored)
    left = [path.relative_to(stored.data.cache_root) for path in stored.data.cache_root.rglob("*") if path.is_file()]  # type: ignore[union-attr, arg-type]
    assert {"features", "checkpoints", "frozen", "predictions"} <= {part for path in left for part in path.parts}
    with Cache.open(stored.data.cache_root, 1) as cache:
        cache.make_room()
    assert not list((cache.root / "probes").iterdir())


def test_a_probe_names_the_features_that_the_search_will_compute(stored: SearchSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_features, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(prefix_features, "_ROOM_TO_LEAVE", 0.0)
    before = measure_trial(request_of(FROZEN, repeats=2), stored)
    assert len(set(before.features_to_build)) == 2  # another random start, other features
    assert before.features_seconds > 0
    # 800 images, each the last block's 512 channels on a map of 1 pixel, 4 bytes a number
    assert before.features_bytes == 800 * 512 * 4

    plan = stored.plan_trial("some cell", FROZEN)
    with stored.data.open_cache() as cache:
        job = stored.training_job(plan, store=PixelStore.open(stored.store), device=torch.device("cpu"), cache=cache)
        assert open_prefix_features(job, job.build_network()) is not None
        assert (cache.root / "features" / str(before.features_to_build[0])).is_dir()
    after = measure_trial(request_of(FROZEN, repeats=2), stored)
    assert after.features_to_build == (None, before.features_to_build[1])


def test_features_without_room_are_not_probed(stored: SearchSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_features, "LEAST_GAIN", 0.0)
    # All features take 800 x 512 x 4 bytes, those of the probe's few images a fifth of it.
    small = replace(stored, data=replace(stored.data, cache_size_bytes=10**6))
    cost = measure_trial(request_of(FROZEN), small)
    assert (cost.features_to_build, cost.features_seconds) == ((None,), 0)


def test_what_plays_no_part_in_a_trials_cost_makes_no_workload_of_its_own() -> None:
    point = {"model": "cnn", "learning_rate": 0.01, "weight_decay": 0.1, "label_smoothing": 0.1, "patience": 5}
    assert workload_of(TrialConfig.from_point(point)) == workload_of(TrialConfig())
    for field in ({"batch_size": 16}, {"optimizer": "sgd"}, {"augmentation": "light"}, {"precision": "bf16"}):
        assert workload_of(TrialConfig.from_point(field)) != workload_of(TrialConfig())


def test_the_largest_point_has_the_largest_batch_and_the_fewest_frozen_blocks() -> None:
    arm = Arm(
        model="resnet18",
        frozen_blocks=IntRange(0, 4),
        batch_size=Choice(16, 64, 32),
        augmentation=Choice("none", "light"),
        learning_rate=LogUniform(1e-4, 1e-2),
    )
    (cell,) = SearchSpace(arms=(arm,)).cells()
    point = largest_point(cell, image_size=64)
    assert (point["frozen_blocks"], point["batch_size"]) == (0, 64)


def test_the_largest_cnn_is_the_deepest_and_widest() -> None:
    arm = Arm(model="cnn", depth=IntRange(2, 6), base_channels=IntRange(8, 48, step=8), batch_size=Choice(16, 128))
    (cell,) = SearchSpace(arms=(arm,)).cells()
    point = largest_point(cell, image_size=64)
    assert (point["depth"], point["base_channels"], point["batch_size"]) == (6, 48, 128)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
    ],
    ids=["cuBLAS", "torch", "Python"],
)
def test_a_trial_for_which_memory_cannot_be_had_is_refused(
    stored: SearchSetup, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(probe_module, "_measure", fail)
    with pytest.raises(
        InputError, match=r"^Trials of cell 'some cell' with batch_size 8 do not fit into this machine's memory\."
    ):
        measure_trial(request_of(CNN), stored)


# Slots


def sleeping(marks: Path, seconds: Callable[[str], float]) -> Callable[[ProbeRequest, SearchSetup], TrialCost]:
    """Make a stand-in for a probe that sleeps, and writes when it began and ended."""

    def measure(request: ProbeRequest, setup: SearchSetup) -> TrialCost:  # noqa: ARG001 - as a probe takes it
        began = time.monotonic()
        time.sleep(seconds(request.cell))
        (marks / f"{request.cell}-{began}").write_text(f"{began} {time.monotonic()}")
        return TrialCost(**(dict.fromkeys(TrialCost.__dataclass_fields__, 0) | {"features_to_build": (None,)}))

    return measure


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_while_a_probe_runs_every_slot_is_busy(stored: SearchSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setattr(probe_module, "measure_trial", sleeping(marks, lambda cell: 3.0 if cell == "slow" else 0.5))
    requests = [ProbeRequest(cell=cell, point={}, repeats=1) for cell in ("slow", "quick")]
    counts: list[int] = []
    costs, worker_seconds = probe(requests, stored, slots=2, progress=counts.append)
    assert (len(costs), worker_seconds > 0) == (2, True)
    assert counts[-1] == 2
    spans = sorted((*map(float, path.read_text().split()), path.name) for path in marks.iterdir())
    slow_began, slow_ended, first_slow = next(span for span in spans if span[2].startswith("slow"))
    beside = [min(slow_ended, ended) - max(slow_began, began) for began, ended, name in spans if name != first_slow]
    # The quick one ends after 0.5 s of 3; then it is run again until the slow one has ended, and the slow one never.
    assert sum(path.name.startswith("slow") for path in marks.iterdir()) == 1
    assert sum(max(0.0, seconds) for seconds in beside) > 0.5 * (slow_ended - slow_began)


def refusing(request: ProbeRequest, setup: SearchSetup) -> TrialCost:  # noqa: ARG001 - as a probe takes it
    """Stand in for a probe that does not fit."""
    raise InputError("It does not fit. Lower batch_size.")


def dying(request: ProbeRequest, setup: SearchSetup) -> TrialCost:  # noqa: ARG001 - as a probe takes it
    """Stand in for a probe that the system kills."""
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()
    raise AssertionError


def denied(request: ProbeRequest, setup: SearchSetup) -> TrialCost:  # noqa: ARG001 - as a probe takes it
    """Stand in for a probe whose node cannot read its data."""
    raise PermissionError(13, "Permission denied", "/mnt/data/COVID-1.png")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("stand_in", "text"),
    [
        (refusing, r"^It does not fit\. Lower batch_size\.$"),
        (dying, "died, most likely for want of memory"),
        (
            denied,
            r"^A trial cannot be trained here: its node cannot use a file or folder: PermissionError: .* '\.\.\.'\. Mend that\.$",
        ),
    ],
)
def test_a_probe_that_cannot_run_is_one_line(
    stored: SearchSetup, monkeypatch: pytest.MonkeyPatch, stand_in: Callable[..., TrialCost], text: str
) -> None:
    monkeypatch.setattr(probe_module, "measure_trial", stand_in)
    with pytest.raises(InputError, match=text):
        probe([request_of(CNN)], stored, slots=1, progress=lambda _: None)
