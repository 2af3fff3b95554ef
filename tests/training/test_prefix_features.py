"""Features of a frozen prefix: the same numbers, sooner."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import get_model

from tune_lung.data.cache import Cache
from tune_lung.models.weights import WeightsSource, resolve_weights
from tune_lung.training import prefix_features
from tune_lung.training.checkpoints import Checkpoints, load
from tune_lung.training.fit import fit
from tune_lung.training.job import TrainingJob
from tune_lung.training.prefix_features import features_key, has_features, open_prefix_features
from tune_lung.training.prefix_gain import prefix_gain

MakeJob = Callable[..., TrainingJob]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_features, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(prefix_features, "_ROOM_TO_LEAVE", 0.0)  # however full the machine's own disk


@pytest.fixture
def frozen_job(make_job: MakeJob) -> Callable[..., TrainingJob]:
    """Make a job for a ResNet18 with two blocks frozen; other fields by keyword."""

    def make(**fields: Any) -> TrainingJob:
        point = {"model": "resnet18", "frozen_blocks": 2, "weights": "random", "batch_size": 7, "max_epochs": 2}
        return make_job(point | fields)

    return make


def trained(job: TrainingJob, directory: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Every number of every epoch that is no time, and the kept network."""
    results = [vars(result) for result in fit(job, Checkpoints(directory))]
    for result in results:
        result["kept_logits_NK"] = None if result["kept_logits_NK"] is None else result["kept_logits_NK"].tolist()
    numbers = [{name: value for name, value in result.items() if not name.endswith(("seconds", "second"))} for result in results]
    return numbers, load(Checkpoints(directory).best).part("network")


@pytest.mark.parametrize("frozen_blocks", [1, 2, 3, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_give_every_epoch_and_weight_bit_for_bit(
    frozen_job: MakeJob, tmp_path: Path, frozen_blocks: int, precision: str
) -> None:
    job = frozen_job(frozen_blocks=frozen_blocks, precision=precision)
    with Cache.open(tmp_path / "cache") as cache:
        cached_numbers, cached_network = trained(replace(job, cache=cache), tmp_path / "cached")
    numbers, network = trained(job, tmp_path / "uncached")
    for cached, plain in zip(cached_numbers, numbers, strict=True):
        assert cached == plain
    assert cached_network.keys() == network.keys()
    assert all(torch.equal(cached_network[name], network[name]) for name in network)


def test_features_are_computed_once_for_trials_that_share_the_prefix(frozen_job: MakeJob, tmp_path: Path) -> None:
    with Cache.open(tmp_path / "cache") as cache:
        first, second = (
            list(fit(replace(frozen_job(learning_rate=rate), cache=cache), Checkpoints(tmp_path / str(rate))))
            for rate in (0.01, 0.001)
        )
    assert first[0].prefix_seconds is not None
    assert second[0].prefix_seconds == first[0].prefix_seconds  # of the one who computed them
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 1


@pytest.mark.parametrize(
    "fields",
    [{"frozen_blocks": 3}, {"input": "lungs"}, {"precision": "bf16"}, {"model": "resnet34"}],
    ids=lambda f: next(iter(f)),
)
def test_another_prefix_gets_features_of_its_own(frozen_job: MakeJob, tmp_path: Path, fields: dict[str, Any]) -> None:
    with Cache.open(tmp_path / "cache") as cache:
        for number, job in enumerate((frozen_job(max_epochs=1), frozen_job(max_epochs=1, **fields))):
            list(fit(replace(job, cache=cache), Checkpoints(tmp_path / str(number))))
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2


def test_the_features_of_another_start_or_data_set_are_not_taken(frozen_job: MakeJob, tmp_path: Path) -> None:
    job = frozen_job(max_epochs=1)
    other_data = replace(job, store=replace(job.store, fingerprint="other"))  # type: ignore[type-var]
    with Cache.open(tmp_path / "cache") as cache:
        for number, own in enumerate((job, replace(job, network_seed=8), other_data)):
            list(fit(replace(own, cache=cache), Checkpoints(tmp_path / str(number))))
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 3


@pytest.mark.parametrize(
    "fields",
    [{"augmentation": "light"}, {"frozen_blocks": 0}],
    ids=["augmented", "nothing frozen"],
)
def test_no_features_are_kept_where_they_would_change(frozen_job: MakeJob, tmp_path: Path, fields: dict[str, Any]) -> None:
    with Cache.open(tmp_path / "cache") as cache:
        results = list(fit(replace(frozen_job(max_epochs=1, **fields), cache=cache), Checkpoints(tmp_path / "trial")))
    assert results[0].prefix_seconds is None
    assert not (tmp_path / "cache" / "features").exists()


def test_no_features_are_kept_in_a_cache_of_size_0(frozen_job: MakeJob, tmp_path: Path) -> None:
    with Cache.open(tmp_path, 0) as cache:
        results = list(fit(replace(frozen_job(max_epochs=1), cache=cache), Checkpoints(tmp_path / "trial")))
    assert results[0].prefix_seconds is None


def test_no_features_are_kept_where_they_gain_too_little(
    frozen_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_features, "LEAST_GAIN", 1e9)
    with Cache.open(tmp_path / "cache") as cache:
        results = list(fit(replace(frozen_job(max_epochs=1), cache=cache), Checkpoints(tmp_path / "trial")))
    assert results[0].prefix_seconds is None


def test_training_goes_on_without_features_that_the_disk_cannot_hold(
    frozen_job: MakeJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # 34 images x 128 channels x 4 x 4 values x 4 bytes = 278,528 bytes
    with Cache.open(tmp_path / "cache", 278_527) as cache, caplog.at_level(logging.WARNING):
        results = list(fit(replace(frozen_job(max_epochs=1), cache=cache), Checkpoints(tmp_path / "trial")))
    assert results[0].prefix_seconds is None
    assert "without prefix features: they need 0.0 GB" in caplog.text


def test_damaged_features_are_computed_again(frozen_job: MakeJob, tmp_path: Path) -> None:
    job = frozen_job()
    with Cache.open(tmp_path / "cache") as cache:
        first, _ = trained(replace(job, cache=cache), tmp_path / "first")
    (path,) = (tmp_path / "cache").glob("features/*/train")
    path.write_bytes(path.read_bytes()[:-1])
    with Cache.open(tmp_path / "cache") as cache:
        second, _ = trained(replace(job, cache=cache), tmp_path / "second")
    assert first[-1] == second[-1]
    assert path.stat().st_size % 4 == 0


@pytest.fixture
def loaded_job(frozen_job: MakeJob, tmp_path: Path) -> Callable[[int], TrainingJob]:
    """Make a job for a ResNet18 that starts from a file, so many blocks frozen."""
    path = tmp_path / "resnet18.pth"
    torch.save(get_model("resnet18", weights=None).state_dict(), path)
    sources = resolve_weights(str(path), ["resnet18"])
    return lambda blocks: replace(frozen_job(frozen_blocks=blocks, weights="file"), weights=sources["resnet18"])


@pytest.fixture
def images_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fill with a word for each part whose images are turned into a network's input."""
    read: list[str] = []
    original = prefix_features.input_batches

    def counting(*arguments: Any, **options: Any) -> Iterator[torch.Tensor]:
        read.append("part")
        return original(*arguments, **options)

    monkeypatch.setattr(prefix_features, "input_batches", counting)
    return read


def features_of(job: TrainingJob, cache: Cache) -> list[torch.Tensor]:
    features = open_prefix_features(replace(job, cache=cache), job.build_network())
    assert features is not None
    return [features.train_NHWC, features.validation_NHWC, *features.statistics.values()]


@pytest.mark.parametrize("start", ["random", "file"])
def test_a_deeper_prefix_goes_on_from_a_shallower_ones_features_and_gives_the_same(
    frozen_job: MakeJob, loaded_job: MakeJob, images_read: list[str], tmp_path: Path, start: str
) -> None:
    make = loaded_job if start == "file" else lambda blocks: frozen_job(frozen_blocks=blocks)
    with Cache.open(tmp_path / "alone") as alone, Cache.open(tmp_path / "together") as together:
        expected = features_of(make(4), alone)
        features_of(make(1), together)
        features_of(make(2), together)
        images_read.clear()
        found = features_of(make(4), together)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert images_read == (["part"] if start == "random" else [])  # one pass sets a random prefix's statistics


def test_a_deeper_prefix_is_not_measured_where_a_shallower_ones_features_paid(
    loaded_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cache.open(tmp_path / "cache") as cache:
        features_of(loaded_job(2), cache)
        monkeypatch.setattr(prefix_features, "prefix_gain", lambda *_, **__: 0.0)
        monkeypatch.setattr(prefix_features, "LEAST_GAIN", 1.2)
        deeper, shallower = (replace(loaded_job(blocks), cache=cache) for blocks in (3, 1))
        assert open_prefix_features(deeper, deeper.build_network()) is not None
        assert open_prefix_features(shallower, shallower.build_network()) is None


@pytest.mark.parametrize("change", ["damaged", "other statistics"])
def test_features_that_do_not_belong_to_a_deeper_prefix_are_passed_over(
    loaded_job: MakeJob, images_read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with Cache.open(tmp_path / "alone") as alone:
        expected = features_of(loaded_job(3), alone)
    with Cache.open(tmp_path / "together") as together:
        features_of(loaded_job(2), together)
    if change == "damaged":
        (path,) = (tmp_path / "together").glob("features/*/train")
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
    else:
        original = prefix_features.load_file
        monkeypatch.setattr(
            prefix_features, "load_file", lambda path: {name: value + 1 for name, value in original(path).items()}
        )
    images_read.clear()
    with Cache.open(tmp_path / "together") as together:
        found = features_of(loaded_job(3), together)
    assert all(torch.equal(one, other) for one, other in zip(found[:2], expected[:2], strict=True))
    assert images_read == ["part", "part"]


def test_a_deep_prefix_gains_more_than_a_shallow_one() -> None:
    from tune_lung.families.resnet import ResNetConfig

    shallow, deep = (
        prefix_gain(
            ResNetConfig(model="resnet18", frozen_blocks=k, weights="random"),
            image_size=64,
            precision="fp32",
            device=torch.device("cpu"),
        )
        for k in (1, 4)
    )
    assert deep > 3 * shallow


CHANGES: dict[str, Callable[[TrainingJob, pytest.MonkeyPatch], TrainingJob]] = {
    "version": lambda job, patch: patch.setattr(prefix_features, "FEATURES_VERSION", 99) or job,
    "torch": lambda job, patch: patch.setattr(torch, "__version__", "99.0") or job,
    "device": lambda job, patch: (
        patch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU") or replace(job, device=torch.device("cuda"))
    ),
    "model": lambda job, _: with_network(job, model="resnet34"),
    "frozen_blocks": lambda job, _: with_network(job, frozen_blocks=3),
    "start": lambda job, _: replace(job, weights=WeightsSource(kind="file", name="random", sha256="0" * 64)),
    "image_size": lambda job, _: replace(job, run=replace(job.run, image_size=64)),
    "input": lambda job, _: replace(job, trial=replace(job.trial, input="lungs")),
    "data": lambda job, _: replace(job, store=replace(job.store, fingerprint="other")),  # type: ignore[type-var]
    "precision": lambda job, _: replace(job, trial=replace(job.trial, precision="bf16")),
}
"""A change of each thing that features follow from."""


def with_network(job: TrainingJob, **fields: Any) -> TrainingJob:
    return replace(job, trial=replace(job.trial, network=replace(job.trial.network, **fields)))


@pytest.mark.parametrize("changed", CHANGES)
def test_whatever_features_follow_from_changes_their_name(
    frozen_job: MakeJob, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    job = frozen_job()
    before = features_key(job)
    assert features_key(CHANGES[changed](job, monkeypatch)) != before


def test_another_random_start_changes_the_features_name_and_another_trial_does_not(frozen_job: MakeJob) -> None:
    job = frozen_job()
    assert features_key(replace(job, network_seed=8)) != features_key(job)
    assert features_key(replace(job, trial_seed=12)) == features_key(job)
    assert features_key(frozen_job(learning_rate=0.5, batch_size=9, max_epochs=9)) == features_key(job)


def open_features_slowly(job: TrainingJob, cache_root: Path, log: Path) -> None:
    """Open features in a process of its own; who computes them says so, and takes its time before they appear."""
    prefix_features.LEAST_GAIN = 0.0
    prefix_features._ROOM_TO_LEAVE = 0.0
    build = prefix_features._build

    def slowly(*arguments: Any) -> None:
        build(*arguments)
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(1.0)

    prefix_features._build = slowly
    with Cache.open(cache_root) as cache:
        assert open_prefix_features(replace(job, cache=cache), job.build_network()) is not None


def start_process(job: TrainingJob, cache_root: Path, log: Path) -> Any:
    process = get_context("spawn").Process(target=open_features_slowly, args=(job, cache_root, log))
    process.start()
    return process


def test_two_processes_at_once_compute_the_features_once(frozen_job: MakeJob, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start_process(frozen_job(), tmp_path / "cache", log) for _ in range(2)]
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert log.read_text() == "built\n"
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 1


def test_what_a_killed_builder_wrote_is_never_read(frozen_job: MakeJob, tmp_path: Path) -> None:
    job, cache_root, log = frozen_job(), tmp_path / "cache", tmp_path / "log"
    process = start_process(job, cache_root, log)
    while not log.exists():
        assert process.is_alive()
        time.sleep(0.05)
    process.kill()
    process.join(timeout=30)
    (unfinished,) = (cache_root / "features").iterdir()
    assert (unfinished / "entry" / "train").exists()
    with Cache.open(cache_root) as cache, Cache.open(tmp_path / "other") as other:
        assert not has_features(job, cache)
        again, undisturbed = (open_prefix_features(replace(job, cache=own), job.build_network()) for own in (cache, other))
        assert again is not None
        assert undisturbed is not None
        assert torch.equal(again.train_NHWC, undisturbed.train_NHWC)
        assert torch.equal(again.validation_NHWC, undisturbed.validation_NHWC)
    assert not unfinished.exists()


def test_on_a_gpu_features_are_named_by_how_it_multiplies_fp32(
    frozen_job: Callable[..., TrainingJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    on_gpu = replace(frozen_job(precision="fp32"), device=torch.device("cuda"))
    keys = []
    for flags in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", flags[0])
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", flags[1])
        keys.append(features_key(on_gpu))
    assert keys[0] not in keys[1:]
