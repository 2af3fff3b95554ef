"""Stored images and features that change while a trial reads them: no number that may come from them is ever told."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tune_lung.data.cache import Cache
from tune_lung.data.cache_proof import write_listing
from tune_lung.data.store import DecodedImages, PixelStore, StoreDamagedError, write_store
from tune_lung.training import prefix_features
from tune_lung.training.checkpoints import Checkpoints
from tune_lung.training.fit import fit
from tune_lung.training.job import TrainingJob
from tune_lung.training.prefix_features import FeaturesDamagedError, open_prefix_features

from tests.training.conftest import striped_part

MakeJob = Callable[..., TrainingJob]
FROZEN = {"model": "resnet18", "frozen_blocks": 4, "weights": "random", "batch_size": 8, "max_epochs": 3}


def inverted(path: Path) -> None:
    """Write other bytes into the file as it lies there, under the old time of change; whoever has mapped it sees them."""
    status = path.stat()
    values = np.memmap(path, np.uint8, "r+")
    values[128:] = 255 - values[128:]  # what stands before says what follows
    values.flush()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def inverted_and_put_back(path: Path) -> None:
    inverted(path)
    inverted(path)


def replaced(path: Path) -> None:
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").replace(path)


CHANGES = [inverted, inverted_and_put_back, replaced, Path.unlink]


def write_images(folder: Path) -> Path:
    parts = {"train": striped_part(24, 1), "validation": striped_part(10, 2), "test": striped_part(6, 3)}
    images = DecodedImages(
        pixels_MHW=np.concatenate([part.pixels_NHW for part in parts.values()]),
        masks_MHW=np.concatenate([part.masks_NHW for part in parts.values() if part.masks_NHW is not None]),
        has_mask_M=np.concatenate([part.has_mask_N for part in parts.values()]),
        labels_M=np.concatenate([part.labels_N for part in parts.values()]),
        image_ids=[f"{number:016x}" for number in range(40)],
        whites={255: 40},
        mask_whites={},
        num_far_below_white=0,
    )
    folder.mkdir(parents=True)
    splits: list[Any] = [name for name, part in parts.items() for _ in part.labels_N]
    write_store(folder, images, splits=splits, classes=("across", "down"), synthetic=True)
    write_listing(folder, of=folder)
    return folder


@pytest.fixture(autouse=True)
def _features_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(prefix_features, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(prefix_features, "_ROOM_TO_LEAVE", 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_images(tmp_path / "store")


def numbers_of(job: TrainingJob, folder: Path) -> list[tuple[Any, ...]]:
    names = ("epoch", "train_loss", "validation", "selection_score", "best_epoch", "stop_reason")
    return [tuple(getattr(result, name) for name in names) for result in fit(job, Checkpoints(folder), rungs={1})]


@pytest.mark.parametrize("name", ["train.npy", "validation.npy"])
@pytest.mark.parametrize("change", CHANGES)
def test_no_epoch_is_told_or_kept_that_read_images_which_changed(
    make_job: MakeJob, store: Path, tmp_path: Path, name: str, change: Callable[[Path], None]
) -> None:
    job = replace(make_job(), store=PixelStore.open(store))
    undisturbed = numbers_of(job, tmp_path / "undisturbed")
    before = (store / name).read_bytes()

    epochs = fit(job := replace(job), Checkpoints(tmp_path / "trial"), rungs={1})
    assert next(epochs).epoch == 1
    change(store / name)
    with pytest.raises(StoreDamagedError, match="changed while it was read"):
        list(epochs)

    (store / name).write_bytes(before)
    again = replace(job, store=PixelStore.open(store))
    assert numbers_of(again, tmp_path / "trial") == undisturbed


@pytest.mark.parametrize("change", CHANGES)
def test_no_epoch_is_told_that_read_features_which_changed_and_they_are_computed_again(
    make_job: MakeJob, store: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    job = replace(make_job(FROZEN), store=PixelStore.open(store))
    with Cache.open(tmp_path / "other") as other:
        undisturbed = numbers_of(replace(job, cache=other), tmp_path / "undisturbed")
    with Cache.open(tmp_path / "cache") as cache:
        epochs = fit(replace(job, cache=cache), Checkpoints(tmp_path / "trial"), rungs={1})
        assert next(epochs).prefix_seconds is not None
        (path,) = (cache.root / "features").glob("*/train")
        change(path)
        with pytest.raises(FeaturesDamagedError, match="changed while they were read"):
            list(epochs)
        assert numbers_of(replace(job, cache=cache), tmp_path / "trial") == undisturbed


@pytest.mark.parametrize("change", CHANGES)
def test_features_computed_from_images_that_changed_meanwhile_never_appear(
    make_job: MakeJob, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    job = replace(make_job(FROZEN), store=PixelStore.open(store))
    original = prefix_features.input_batches

    def changing(*arguments: Any, **options: Any) -> Iterator[torch.Tensor]:
        yield from original(*arguments, **options)
        if (store / "train.npy").exists():
            change(store / "train.npy")

    monkeypatch.setattr(prefix_features, "input_batches", changing)
    with Cache.open(tmp_path / "cache") as cache:
        with pytest.raises(StoreDamagedError, match="changed while it was read"):
            open_prefix_features(replace(job, cache=cache), job.build_network())
        assert list((cache.root / "features").iterdir()) == []
