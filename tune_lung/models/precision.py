"""The number format of a network's arithmetic, and whether a device computes in it natively."""

from contextlib import AbstractContextManager, nullcontext

import torch

from tune_lung.config import Precision


def supports_bf16(device: torch.device) -> bool:
    """Say whether the device multiplies bf16 matrices in hardware; emulated bf16 is many times slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Enter the number format for a forward pass; weights and loss stay fp32."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
