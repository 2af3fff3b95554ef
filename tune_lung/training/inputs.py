"""What the training loop feeds its network: images to the whole of it, or prefix features to the rest of it.

Shapes: N images, C channels, H rows, W columns.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from tune_lung.evaluation.predictions import input_batches
from tune_lung.models.network import Network
from tune_lung.training.augmentation import AUGMENTERS
from tune_lung.training.job import TrainingJob
from tune_lung.training.prefix_features import PrefixFeatures, open_prefix_features, settle_prefix

VALIDATION_BATCH_SIZE = 128


class Inputs(Protocol):
    """Batches, and the part of the network that reads them."""

    module: nn.Module
    """Turns a batch into logits."""
    prefix_seconds: float | None
    """What computing the prefix features took; None where there are none."""

    def train_batch(self, indices: Tensor, draws: torch.Generator) -> Tensor:
        """Give the training images of the indices, augmented by the draws, on the device."""

    def validation_batches(self) -> Iterator[Tensor]:
        """Give the validation images in their order, on the device."""


class ImageInputs:
    """Every pass computes the whole network."""

    prefix_seconds: float | None = None

    def __init__(self, job: TrainingJob, network: Network) -> None:
        """Feed images to a network."""
        self.module: nn.Module = network
        self._device, self._transform = job.device, job.transform()
        self._train, self._validation = job.train, job.validation
        self._masks_NHW = self._train.masks_NHW if job.trial.input != "full" else None
        self._augmenter = AUGMENTERS.get(job.trial.augmentation)

    def train_batch(self, indices: Tensor, draws: torch.Generator) -> Tensor:
        """Give images_NCHW."""
        chosen = indices.numpy()
        masks_NHW = None if self._masks_NHW is None else self._masks_NHW[chosen]
        images_N1HW = self._transform.brightness(self._train.pixels_NHW[chosen], masks_NHW, self._device)
        if self._augmenter is not None:
            images_N1HW = self._augmenter(images_N1HW, draws)
        return self._transform.normalise(images_N1HW)

    def validation_batches(self) -> Iterator[Tensor]:
        """Give images_NCHW."""
        return input_batches(self._validation, self._transform, batch_size=VALIDATION_BATCH_SIZE, device=self._device)


class FeatureInputs:
    """Passes begin after the frozen prefix."""

    def __init__(self, job: TrainingJob, network: Network, features: PrefixFeatures) -> None:
        """Feed a network's rest with its prefix's features."""
        self.module: nn.Module = network.rest
        self.prefix_seconds: float | None = features.seconds
        self._device, self._features = job.device, features

    def train_batch(self, indices: Tensor, draws: torch.Generator) -> Tensor:  # noqa: ARG002 - nothing is augmented here
        """Give features_NCHW, channels last in memory."""
        return self._on_device(self._features.train_NHWC[indices])

    def validation_batches(self) -> Iterator[Tensor]:
        """Give features_NCHW, channels last in memory."""
        for features_NHWC in self._features.validation_NHWC.split(VALIDATION_BATCH_SIZE):  # type: ignore[no-untyped-call]
            yield self._on_device(features_NHWC)

    def _on_device(self, features_NHWC: Tensor) -> Tensor:
        return features_NHWC.to(self._device, non_blocking=True).permute(0, 3, 1, 2)


def open_inputs(job: TrainingJob, network: Network, *, is_resumed: bool) -> Inputs:
    """Choose the cheapest inputs that give the same numbers, and make a random frozen prefix ready.

    Args:
        job: The trial.
        network: Its network; the statistics of a random frozen prefix are set here.
        is_resumed: Whether the network comes from a checkpoint, its prefix ready already.
    """
    features = open_prefix_features(job, network)
    if features is None:
        if not is_resumed:
            settle_prefix(job, network)
        return ImageInputs(job, network)
    network.prefix.load_state_dict(features.statistics, strict=False)
    return FeatureInputs(job, network, features)
