"""Draws of what knows only torch's global generators: initialisers, dropout, whole paths left out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def drawn_from(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let what is drawn in the block come from a seed; the global generators are afterwards as they were.

    Args:
        seed: A derived seed.
        device: Where it is drawn beside the CPU; None for the CPU alone.
    """
    on_gpu = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
        yield
