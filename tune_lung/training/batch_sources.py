"""What the training loop feeds its network: images to the whole of it, or prefix features to the rest of it.

Shapes: N images, C channels, H rows, W columns.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from tune_lung.evaluation.predictions import input_batches, stored_tensors
from tune_lung.models.network import Network
from tune_lung.models.transfer import to_device
from tune_lung.training.augmentation import AUGMENTERS
from tune_lung.training.job import TrainingJob
from tune_lung.training.prefix_features import PrefixFeatures, open_prefix_features, settle_prefix

VALIDATION_BATCH_SIZE = 128
_SHARE_OF_FREE_MEMORY = 0.25
"""Of a GPU's free memory, that images or features may take: trials may share the GPU, and training needs the rest."""


class Inputs(Protocol):
    """Batches, and the part of the network that reads them."""

    module: nn.Module
    """Turns a batch into logits."""
    prefix_seconds: float | None
    """What computing the prefix features took; None where there are none."""
    train_labels_N: Tensor
    """Class indices of the training images, on the device."""

    def train_batch(self, indices: Tensor, draws: torch.Generator) -> Tensor:
        """Give the training images of the indices, augmented by the draws, on the device."""

    def validation_batches(self) -> Iterator[Tensor]:
        """Give the validation images in their order, on the device."""

    def check(self) -> None:
        """See that all batches given so far were right, and raise an InputError where what they came from has changed."""


class ImageInputs:
    """Every pass computes the whole network."""

    prefix_seconds: float | None = None

    def __init__(self, job: TrainingJob, network: Network) -> None:
        """Feed images to a network."""
        self.module: nn.Module = network
        self.train_labels_N = torch.from_numpy(job.train.labels_N).to(job.device)
        self._device, self._transform = job.device, job.transform()
        self._validation = job.validation
        self.check = job.check_images
        pixels_NHW, masks_NHW = stored_tensors(job.train, self._transform)
        self._pixels_NHW = _near(pixels_NHW, job.device)
        self._masks_NHW = None if masks_NHW is None else _near(masks_NHW, job.device)
        self._augmenter = AUGMENTERS.get(job.trial.augmentation)

    def train_batch(self, indices: Tensor, draws: torch.Generator) -> Tensor:
        """Give images_NCHW."""
        masks_NHW = None if self._masks_NHW is None else _rows(self._masks_NHW, indices, self._device)
        images_N1HW = self._transform.brightness(_rows(self._pixels_NHW, indices, self._device), masks_NHW)
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
        self.train_labels_N = torch.from_numpy(job.train.labels_N).to(job.device)
        self.prefix_seconds: float | None = features.seconds
        self._device, self._features = job.device, features
        self.check = features.check
        self._train_NHWC = _near(features.train_NHWC, job.device)

    def train_batch(self, indices: Tensor, draws: torch.Generator) -> Tensor:  # noqa: ARG002 - nothing is augmented here
        """Give features_NCHW, channels last in memory."""
        return _rows(self._train_NHWC, indices, self._device).permute(0, 3, 1, 2)

    def validation_batches(self) -> Iterator[Tensor]:
        """Give features_NCHW, channels last in memory."""
        return self._features.batches("validation", batch_size=VALIDATION_BATCH_SIZE, device=self._device)


def _near(values: Tensor, device: torch.device) -> Tensor:
    """Put what batches are taken from onto the GPU if it has room to spare, else leave it mapped where it lies."""
    if device.type != "cuda" or not bytes_kept_on_gpu(values.nbytes, free_bytes=torch.cuda.mem_get_info(device)[0]):
        return values
    return values.to(device)


def bytes_kept_on_gpu(num_bytes: int, *, free_bytes: int) -> int:
    """Count what of the training images or features lies on a GPU with so much free memory: all or nothing."""
    return num_bytes if num_bytes <= _SHARE_OF_FREE_MEMORY * free_bytes else 0


def _rows(values: Tensor, indices: Tensor, device: torch.device) -> Tensor:
    """Take rows onto the device; no step waits for the one before."""
    return to_device(values[to_device(indices, values.device)], device)


def open_inputs(job: TrainingJob, network: Network, *, is_resumed: bool) -> Inputs:
    """Choose the cheapest inputs, and make a random frozen prefix ready.

    On the CPU all give the same numbers, bit for bit. On a GPU they may differ by a rounding: features are computed in batches of
    another size, for which other kernels may be taken.

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
