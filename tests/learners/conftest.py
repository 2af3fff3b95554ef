"""A pixel store of a few striped images in memory, and jobs over it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from tune_lung.config import RunConfig, TrialConfig
from tune_lung.data.depth import WHITES_OF_8_BITS
from tune_lung.data.store import Part, Pixels
from tune_lung.families.registry import family_of
from tune_lung.learners.kept import KeptModel
from tune_lung.learners.registry import learner_of
from tune_lung.models.weights import RANDOM_WEIGHTS, WeightsSource
from tune_lung.results.pixel_facts import PixelFacts
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

    @property
    def pixel_facts(self) -> PixelFacts:
        """What a new image is brought to the form of these by."""
        whites = WHITES_OF_8_BITS.facts()
        return PixelFacts(train_mean=self.train_mean, train_deviation=self.train_deviation, whites=whites, mask_whites=whites)

    def part(self, name: str) -> Part:
        """Return the training or validation images."""
        counts = {"train": (36, 1), "validation": (15, 2)}
        return striped_part(*counts[name], num_classes=self.num_classes)

    def check(self, *names: str) -> None:
        """Take note: memory does not change."""
        self.checked.extend(names)


def answered(job: TrainingJob, kept: KeptModel, images: Pixels) -> np.ndarray:
    """Let what is kept of a trial answer, probabilities_NK."""
    store = job.store
    answering = learner_of(job.trial.network.model).answering(
        kept, job.trial, job.run, pixels=store.pixel_facts, classes=store.classes, device=job.device
    )
    return answering.answer(images)


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
