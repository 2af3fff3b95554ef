"""The device, threads and memory of one Ray worker."""

import ctypes
import os
import resource
import sys

import torch

from tune_lung.config import torch_threads
from tune_lung.models.precision import multiply_fp32_as_it_is

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""
_NEVER_TRIM = -1

GPU_CONTEXT_BYTES = 600_000_000
"""What a process takes of a GPU beside what torch counts: the driver's context, and the kernels of torch and its libraries. An
assumption, on the large side; tests/device measures it."""


class UnusableGpuError(RuntimeError):
    """Ray has given a GPU that torch cannot use."""


def claim_device(*, cpus: float, gpus: float) -> torch.device:
    """Use what Ray gave this worker: its GPU, else as many torch threads as CPUs.

    Args:
        cpus: CPUs of the trial; torch gets at least one thread.
        gpus: GPUs of the trial; Ray shows the worker only its own.

    Returns:
        The device to compute on.

    Raises:
        UnusableGpuError: A GPU was asked for, and torch cannot use it.
    """
    torch.set_num_threads(torch_threads(cpus))
    if gpus == 0:
        keep_freed_memory()
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UnusableGpuError(_why_no_gpu())
    multiply_fp32_as_it_is()
    return torch.device("cuda")


def _why_no_gpu() -> str:
    """Let torch say why it cannot use a GPU: for want of a driver, an old one, or a build without CUDA."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error).partition("\n")[0]
    return "torch sees no GPU: check its driver and torch's CUDA version."


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next step; only under glibc.

    Left to itself, glibc hands every large tensor back to the system as soon as it is freed, and the next step's pages come
    zeroed and one by one: a quarter of the time of a CNN's step on the CPU (measured: 73 images a second, 96 with this), for
    half as much memory again. Who sets one of glibc's own variables, such as `MALLOC_MMAP_MAX_=65536`, its default, decides.

    References:
        mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, or one that is part of Python's own program
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)


def peak_memory_bytes() -> int:
    """Say how much memory this process has taken at most, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB, macOS bytes: getrusage(2)


def device_name(device: torch.device) -> str:
    """Name a device as the ledger does: `cpu`, or the GPU's product name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
