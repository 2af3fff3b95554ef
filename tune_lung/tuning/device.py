"""The device and threads of one Ray worker."""

import math

import torch


def claim_device(*, cpus: float, gpus: float) -> torch.device:
    """Use what Ray gave this worker: its GPU, else as many torch threads as CPUs.

    Args:
        cpus: CPUs of the trial; torch gets at least one thread.
        gpus: GPUs of the trial; Ray shows the worker only its own.

    Returns:
        The device to compute on.

    Raises:
        RuntimeError: A GPU was asked for and torch sees none.
    """
    torch.set_num_threads(max(1, math.floor(cpus)))
    if gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError("A GPU was given to this trial, but torch sees none: check its driver and torch's CUDA version.")
    return torch.device("cuda")


def device_name(device: torch.device) -> str:
    """Name a device as the ledger does: `cpu`, or the GPU's product name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
