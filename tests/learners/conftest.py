"""A pixel store of a few striped images in memory, and jobs over it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from tune_lung.config import RunConfig, TrialConfig
from tune_lung.data.store import Part
from tune_lung.families.registry import family_of
from tune_lung.models.weights import RANDOM_WEIGHTS, WeightsSource
from tune_lung.training.job import TrainingJob

SIZE = 64
CLASSES = ("across", "down", "both")


def striped_part(num_images: int, seed: int, *, num_classes: int = 3) -> Part:
    """Stripes across, stripes down, and both, with noise."""
    draws = np.random.default_rng(seed)
    labels_N = np.arange(num_images) % num_classes
    stripes_HW = np.broadcast_to(np.arange(SIZE) // 8 % 2 * 120, (SIZE, SIZE))
    drawn = (stripes_HW, stripes_HW.T, np.maximum(stripes_HW, stripes_HW.T))
    images = [drawn[label] + draws.integers(0, 100, (SIZE, SIZE)) for label in labels_N]
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

    classes: tuple[str, ...] = CLASSES
    train_mean: float = 0.4
    train_deviation: float = 0.25
    fingerprint: str = "striped"
    num_classes: int = 3
    checked: list[str] = field(default_factory=list)

    def part(self, name: str) -> Part:
        """Return the training or validation images."""
        counts = {"train": (36, 1), "validation": (15, 2)}
        return striped_part(*counts[name], num_classes=self.num_classes)

    def check(self, *names: str) -> None:
        """Take note: memory does not change."""
        self.checked.extend(names)


MakeJob = Callable[..., TrainingJob]


@pytest.fixture
def make_job() -> MakeJob:
    """Make a job for a model; its fields by keyword."""

    def make(
        model: str,
        *,
        store: StripedStore | None = None,
        source: WeightsSource = RANDOM_WEIGHTS,
        trial_seed: int = 11,
        **fields: Any,
    ) -> TrainingJob:
        family = family_of(model)
        few = {"max_epochs": 1, "batch_size": 12} if family.has_epochs else {}
        padded = {"padding": "same"} if "padding" in family.field_types else {}
        return TrainingJob(
            trial=TrialConfig.from_point({"model": model, **few, **padded, **fields}),
            run=RunConfig(image_size=SIZE),
            store=store or StripedStore(),  # type: ignore[arg-type]
            weights=source,
            trial_seed=trial_seed,
            network_seed=7,
            device=torch.device("cpu"),
        )

    return make
