"""The batches of one training epoch, as indices into the training images."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import WeightedRandomSampler

from tune_lung.config import BatchSampling


def epoch_batches(labels_N: npt.NDArray[np.int64], *, batch_size: int, sampling: BatchSampling, seed: int) -> list[torch.Tensor]:
    """Draw the images of one epoch and cut them into batches.

    Args:
        labels_N: The class index of each of the N training images.
        batch_size: Images of a batch, at least 2.
        sampling: `balanced` draws N times with replacement, each image with weight 1 / size of its class;
            `shuffled` takes every image once.
        seed: Seed of this epoch's draw.

    Returns:
        ceil(N / batch_size) tensors of indices whose lengths differ by at most 1. Where that would leave a batch of 1,
        which batch norm cannot use, there is one batch fewer.

    Raises:
        ValueError: There are fewer than 2 images, or batch_size is under 2.
    """
    num_images = len(labels_N)
    if num_images < 2 or batch_size < 2:
        raise ValueError(f"an epoch needs 2 images and a batch size of 2, not {num_images} and {batch_size}")
    generator = torch.Generator().manual_seed(seed)
    if sampling == "balanced":
        counts = np.bincount(labels_N)
        weights: list[float] = (1.0 / counts[labels_N]).tolist()
        drawn = torch.tensor(list(WeightedRandomSampler(weights, num_images, replacement=True, generator=generator)))
    else:
        drawn = torch.randperm(num_images, generator=generator)
    num_batches = min(math.ceil(num_images / batch_size), num_images // 2)
    return list(torch.tensor_split(drawn, num_batches))
