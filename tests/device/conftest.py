"""The device under test: a GPU where there is one, and, in small, the CPU, so that the checks are sound when a GPU is at hand."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tune_lung.config import RunConfig, TrialConfig
from tune_lung.data.cache import Cache
from tune_lung.data.store import Part
from tune_lung.models.weights import RANDOM_WEIGHTS
from tune_lung.training.job import TrainingJob
from tune_lung.tuning.device import claim_device

NUM_CLASSES = 4


@dataclass(frozen=True, kw_only=True)
class Striped:
    """Answers as a PixelStore does, from memory: classes told apart by their stripes, under noise."""

    image_size: int
    num_train: int
    num_validation: int
    classes: tuple[str, ...] = tuple("abcd")
    train_mean: float = 0.48
    train_deviation: float = 0.23

    @property
    def fingerprint(self) -> str:
        return f"striped {self.image_size} {self.num_train} {self.num_validation}"

    def part(self, name: str) -> Part:
        count, seed = (self.num_train, 1) if name == "train" else (self.num_validation, 2)
        draws, labels_N = np.random.default_rng(seed), np.arange(count) % NUM_CLASSES
        pixels_NHW = draws.integers(0, 190, (count, self.image_size, self.image_size), dtype=np.uint8)
        for label in range(NUM_CLASSES):
            pixels_NHW[labels_N == label] += (np.arange(self.image_size) // (2 + 2 * label) % 2 * 60).astype(np.uint8)
        return Part(
            pixels_NHW=pixels_NHW,
            masks_NHW=None,
            has_mask_N=np.zeros(count, bool),
            labels_N=labels_N.astype(np.int64),
            image_ids=tuple(map(str, range(count))),
        )

    def check(self, *names: str) -> None:
        """Memory does not change."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A device, and trials of a size that suits it."""

    device: torch.device
    store: Striped
    batch_size: int

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def job(self, model: str, frozen_blocks: int = 0, *, cache: Cache | None = None, **fields: Any) -> TrainingJob:
        """Make a trial; on the CPU its CNN is tiny."""
        point = {"model": model, "batch_size": self.batch_size, "max_epochs": 3, "learning_rate": 5e-4, "precision": "bf16"}
        if model == "cnn":
            point |= {} if self.is_gpu else {"channels": (4, 8), "kernel_sizes": (3, 3), "padding": "same"}
        else:
            point |= {"frozen_blocks": frozen_blocks, "weights": "random"}
        return TrainingJob(
            trial=TrialConfig.from_point(point | fields),
            run=RunConfig(image_size=self.store.image_size),
            store=self.store,  # type: ignore[arg-type]
            weights=None if model == "cnn" else RANDOM_WEIGHTS,
            trial_seed=11,
            network_seed=7,
            device=self.device,
            cache=cache,
        )


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    """A GPU as a trial has it."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU that torch can use; the checks run in small on the CPU")
    threads = torch.get_num_threads()
    yield claim_device(cpus=2, gpus=1)
    torch.cuda.empty_cache()
    torch.set_num_threads(threads)


@pytest.fixture(params=["rehearsal", pytest.param("gpu", marks=pytest.mark.device)])
def bench(request: pytest.FixtureRequest) -> Bench:
    """A GPU with trials of a real size, or the CPU with tiny ones."""
    if request.param == "gpu":
        device = request.getfixturevalue("gpu")
        return Bench(device=device, store=Striped(image_size=128, num_train=4096, num_validation=512), batch_size=128)
    return Bench(device=torch.device("cpu"), store=Striped(image_size=32, num_train=24, num_validation=9), batch_size=8)
