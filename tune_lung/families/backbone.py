"""Backbones of torchvision that were trained on ImageNet: where one starts, and how much of it stays as it was loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeAlias

from tune_lung.errors import require, require_choice
from tune_lung.families.family import PointValue

WeightsKind: TypeAlias = Literal["imagenet", "random", "file"]

NUM_BLOCKS = 4
"""Parts of a backbone that can be frozen one after the other, from the first on."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A backbone with a new head, its first blocks frozen. A family's own class lists its models."""

    model: str
    """Which network."""
    frozen_blocks: int = 0
    """How many blocks stay as loaded, from the first on: 0 to 4. A ResNet's are its residual blocks (layer1, layer2, ...)."""
    weights: WeightsKind = "imagenet"
    """Where the backbone starts: torchvision's ImageNet weights, a random start, or the user's file."""

    def __post_init__(self) -> None:
        """Refuse an unknown start or depth."""
        require_choice("weights", self.weights, WeightsKind)
        require(0 <= self.frozen_blocks <= NUM_BLOCKS, f"frozen_blocks must be 0 to {NUM_BLOCKS}, not {self.frozen_blocks}.")

    @property
    def starts_from(self) -> str:
        """The network itself."""
        return self.model

    @classmethod
    def from_fields(cls, model: str, own: Mapping[str, PointValue]) -> Self:
        """Build it; see `ModelConfig`."""
        return cls(model=model, **own)  # type: ignore[arg-type]

    def own_fields(self) -> dict[str, PointValue]:
        """Name what is frozen and where it starts."""
        return {"frozen_blocks": self.frozen_blocks, "weights": self.weights}

    def with_nothing_frozen(self) -> Self:
        """Give the same backbone, trained from its stem on."""
        return replace(self, frozen_blocks=0)

    def check_image_size(self, image_size: int) -> None:
        """Take every size: the head averages whatever map is left."""
