"""The way of numbers from the host to the device that computes with them."""

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Bring values to a device while it still does what it was given before.

    A GPU copies from the host's ordinary memory only when it has done all else, and the host waits for it; from pinned memory it
    copies in its turn, and nobody waits.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
