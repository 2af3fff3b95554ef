"""How stored pixels become what a network takes in: mask, grey levels, channels, normalisation.

Shapes: N images, C channels (1 or 3, as the family reads them), H rows, W columns.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from tune_lung.config import InputPart, Protocol, TrialConfig
from tune_lung.families.registry import family_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class InputTransform:
    """Turns uint8 pixels, and masks where the input is masked, into the network's float input."""

    part: InputPart
    """Which pixels are kept; the others become 0 before normalisation."""
    mean: tuple[float, ...]
    """Subtracted per channel, in units of full brightness."""
    deviation: tuple[float, ...]
    """Divided by per channel, in units of full brightness."""

    @classmethod
    def for_trial(cls, trial: TrialConfig, *, protocol: Protocol, train_mean: float, train_deviation: float) -> Self:
        """Choose the normalisation that the protocol asks for.

        Args:
            trial: Its network decides the number of channels.
            protocol: `published` divides by 255 only.
            train_mean: Mean of the unmasked training pixels, 0 to 1.
            train_deviation: Their standard deviation.

        Returns:
            The transform.
        """
        family = family_of(trial.network.model)
        channels = family.in_channels
        if protocol == "published":
            return cls(part=trial.input, mean=(0.0,) * channels, deviation=(1.0,) * channels)
        if family.takes_weights:
            return cls(part=trial.input, mean=IMAGENET_MEAN, deviation=IMAGENET_DEVIATION)
        return cls(part=trial.input, mean=(train_mean,) * channels, deviation=(train_deviation,) * channels)

    def brightness(self, pixels_NHW: Tensor, masks_NHW: Tensor | None) -> Tensor:
        """Scale pixels to 0..1, with the pixels outside the wanted part at 0.

        Args:
            pixels_NHW: uint8, on any device.
            masks_NHW: uint8, on the same; None where the whole image is wanted.

        Returns:
            images_N1HW, float32.
        """
        images_NHW = pixels_NHW.float() / 255
        if self.part != "full":
            if masks_NHW is None:
                raise ValueError(f"input {self.part!r} needs masks.")
            lungs_NHW = masks_NHW.float() / 255
            images_NHW = images_NHW * (lungs_NHW if self.part == "lungs" else 1 - lungs_NHW)
        return images_NHW.unsqueeze(1)

    def normalise(self, images_N1HW: Tensor) -> Tensor:
        """Repeat grey to the network's channels and normalise each.

        Returns:
            images_NCHW, float32, channels last in memory.
        """
        mean_C11, deviation_C11 = (_by_channel(values, images_N1HW.device) for values in (self.mean, self.deviation))
        return ((images_N1HW - mean_C11) / deviation_C11).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=16)
def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Put one number a channel on the device, once: a copy from the host would make every step wait for the one before."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
