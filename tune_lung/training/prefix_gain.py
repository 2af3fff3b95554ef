"""How much faster a training step is on a frozen prefix's features than on images: measured on the device at hand."""

import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from tune_lung.config import Precision
from tune_lung.families.family import ModelConfig
from tune_lung.models.network import build_network
from tune_lung.models.precision import autocast
from tune_lung.models.weights import RANDOM_WEIGHTS

_BATCH_SIZE = 16
_NUM_ROUNDS = 3
"""Prefix and rest are timed in turn, and the shortest of each counts: other work only ever adds."""


@lru_cache(maxsize=64)
def prefix_gain(network: ModelConfig, *, image_size: int, precision: Precision, device: torch.device) -> float:
    """Measure a frozen prefix's share in a training step, by a few steps of a throwaway network.

    No gradient enters the prefix, so a step on images is a pass through it and then a step on its features.

    Args:
        network: One with frozen blocks. It is built at a random start, whatever weights it names.
        image_size: Side of the images in pixels.
        precision: Number format of the arithmetic.
        device: Where to compute.

    Returns:
        Seconds of a step on images over those of a step on features; above 1.
    """
    probe = build_network(network, protocol="strict", num_classes=2, image_size=image_size, weights=RANDOM_WEIGHTS, seed=0).to(
        device, memory_format=torch.channels_last
    )  # type: ignore[call-overload]
    images_NCHW = torch.zeros(_BATCH_SIZE, probe.in_channels, image_size, image_size, device=device)
    images_NCHW = images_NCHW.contiguous(memory_format=torch.channels_last)
    probe.train()

    def compute_features() -> Tensor:
        with autocast(device, precision):
            features_NCHW: Tensor = probe.prefix(images_NCHW)
        return features_NCHW

    def step_on(features_NCHW: Tensor) -> None:
        with autocast(device, precision):
            loss = probe.rest(features_NCHW).float().square().mean()
        loss.backward()

    features_NCHW = compute_features()
    step_on(features_NCHW)  # the first of each warms up
    rounds = [(_seconds(compute_features, device), _seconds(lambda: step_on(features_NCHW), device)) for _ in range(_NUM_ROUNDS)]
    prefix_seconds, step_seconds = (min(seconds) for seconds in zip(*rounds, strict=True))
    return float(1 + prefix_seconds / step_seconds)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
