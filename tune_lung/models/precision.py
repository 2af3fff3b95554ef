"""The number format of a network's arithmetic, and whether a device computes in it natively."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from tune_lung.config import Precision


def supports_bf16(device: torch.device) -> bool:
    """Say whether the device multiplies bf16 matrices in hardware; emulated bf16 is many times slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def multiply_fp32_as_it_is() -> None:
    """Let this process's GPUs multiply fp32 numbers as they are.

    Left to itself torch has convolutions round them to TF32, with 10 bits of mantissa instead of 23, on GPUs that can: another
    arithmetic than that of older GPUs and of CPUs under the same name. Those GPUs multiply bf16 natively, which is meant where
    speed counts.

    References:
        https://docs.pytorch.org/docs/stable/notes/cuda.html#tf32-on-ampere
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@contextmanager
def fp32_multiplied_as_it_is() -> Iterator[None]:
    """Do so for a while, in a process that is not ours alone."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    multiply_fp32_as_it_is()
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def arithmetic_of(device: torch.device) -> str:
    """Name all of a device that its numbers hang on: `cpu`, or the GPU's product and how it multiplies fp32 numbers."""
    if device.type == "cpu":
        return "cpu"
    rounds = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return f"{torch.cuda.get_device_name(device)}, fp32 as {'tf32' if rounds else 'ieee'}"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Enter the number format for a forward pass; weights and loss stay fp32."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
