"""A pixel store of a few tiny images in memory, and jobs over it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tune_lung.config import RunConfig, TrialConfig
from tune_lung.data.store import Part
from tune_lung.models.weights import RANDOM_WEIGHTS
from tune_lung.training.job import TrainingJob

SIZE = 32


def striped_part(num_images: int, seed: int) -> Part:
    """Two classes that a small network tells apart: stripes across and stripes down, with noise."""
    draws = np.random.default_rng(seed)
    labels_N = np.arange(num_images) % 2
    stripes_HW = np.broadcast_to(np.arange(SIZE) // 4 % 2 * 120, (SIZE, SIZE))
    images = [(stripes_HW if label else stripes_HW.T) + draws.integers(0, 100, (SIZE, SIZE)) for label in labels_N]
    return Part(
        pixels_NHW=np.stack(images).astype(np.uint8),
        masks_NHW=np.full((num_images, SIZE, SIZE), 255, np.uint8),
        has_mask_N=np.ones(num_images, bool),
        labels_N=labels_N.astype(np.int64),
        image_ids=tuple(f"image{number}" for number in range(num_images)),
    )


@dataclass(frozen=True)
class StripedStore:
    """Answers as a PixelStore does, from memory, and has no test part at all."""

    classes: tuple[str, ...] = ("across", "down")
    train_mean: float = 0.4
    train_deviation: float = 0.25
    fingerprint: str = "striped"

    def part(self, name: str) -> Part:
        """Return the training or validation images."""
        return {"train": striped_part(24, 1), "validation": striped_part(10, 2)}[name]

    def check(self, *names: str) -> None:
        """Memory does not change."""


@pytest.fixture
def make_job() -> Callable[..., TrainingJob]:
    """Make a job for a point; run settings by keyword."""

    def make(point: dict[str, Any] | None = None, **run: Any) -> TrainingJob:
        defaults = {"channels": (4, 8), "kernel_sizes": (3, 3), "padding": "same", "batch_size": 8, "learning_rate": 0.01}
        trial = TrialConfig.from_point({"max_epochs": 4, **(defaults if point is None else point)})
        return TrainingJob(
            trial=trial,
            run=RunConfig(image_size=SIZE, **run),
            store=StripedStore(),  # type: ignore[arg-type]
            weights=RANDOM_WEIGHTS,
            trial_seed=11,
            network_seed=7,
            device=torch.device("cpu"),
        )

    return make
