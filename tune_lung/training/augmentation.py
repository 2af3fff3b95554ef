"""Random changes of training images, drawn from a generator of their own.

Shapes: N images, H rows, W columns; one grey channel.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tune_lung.config import Augmentation
from tune_lung.models.transfer import to_device


@dataclass(frozen=True, kw_only=True)
class Augmenter:
    """How far each image may be changed."""

    shift: float
    """Largest shift along each side, as a share of the side."""
    flip_probability: float
    """Chance of mirroring left and right."""
    turn_degrees: float
    """Largest turn either way."""
    zoom: float
    """Largest relative change of size either way."""
    contrast: float
    """Largest relative change of contrast about the image's mean."""

    def __call__(self, images_N1HW: Tensor, generator: torch.Generator) -> Tensor:
        """Change each image by its own draw.

        Args:
            images_N1HW: Brightness 0 to 1.
            generator: On the CPU, so that every device draws alike.

        Returns:
            images_N1HW; what a shift uncovers is 0.
        """
        count = len(images_N1HW)
        uniform_N5 = torch.rand(count, 5, generator=generator) * 2 - 1
        mirror_N = 1 - 2 * (torch.rand(count, generator=generator) < self.flip_probability).float()
        angle_N = uniform_N5[:, 0] * math.radians(self.turn_degrees)
        scale_N = 1 + uniform_N5[:, 1] * self.zoom
        cos_N, sin_N = torch.cos(angle_N) * scale_N, torch.sin(angle_N) * scale_N
        shift_N2 = uniform_N5[:, 2:4] * 2 * self.shift
        gain_N = 1 + uniform_N5[:, 4] * self.contrast
        rows = (cos_N * mirror_N, -sin_N, shift_N2[:, 0], sin_N * mirror_N, cos_N, shift_N2[:, 1], gain_N)
        draws_N7 = to_device(torch.stack(rows, dim=1), images_N1HW.device)
        theta_N23, gain_N111 = draws_N7[:, :6].reshape(-1, 2, 3), draws_N7[:, 6].reshape(-1, 1, 1, 1)
        grid = functional.affine_grid(theta_N23, list(images_N1HW.shape), align_corners=False)
        moved_N1HW = functional.grid_sample(images_N1HW, grid, align_corners=False)
        mean_N111 = moved_N1HW.mean(dim=(1, 2, 3), keepdim=True)
        return ((moved_N1HW - mean_N111) * gain_N111 + mean_N111).clamp(0, 1)


AUGMENTERS: dict[Augmentation, Augmenter] = {
    "light": Augmenter(shift=0.04, flip_probability=0.5, turn_degrees=0, zoom=0, contrast=0),
    "strong": Augmenter(shift=0.06, flip_probability=0.5, turn_degrees=10, zoom=0.1, contrast=0.2),
}
"""The changes by name; `none` has no entry."""
