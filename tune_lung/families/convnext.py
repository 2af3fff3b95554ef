"""torchvision's ConvNeXt.

References:
    Liu and others, "A ConvNet for the 2020s", CVPR 2022.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tune_lung.errors import require, require_choice
from tune_lung.families.backbone import NUM_BLOCKS, BackboneConfig
from tune_lung.families.family import Family, Look, plain_types

ConvNextName: TypeAlias = Literal["convnext_tiny"]
_SMALLEST_IMAGE = 32


@dataclass(frozen=True, kw_only=True)
class ConvNextConfig(BackboneConfig):
    """A ConvNeXt with a new head, the first of its four stages frozen."""

    model: ConvNextName = "convnext_tiny"
    """Which ConvNeXt."""

    def __post_init__(self) -> None:
        """Refuse an unknown network, start or depth."""
        require_choice("model", self.model, ConvNextName)
        super().__post_init__()

    def check_image_size(self, image_size: int) -> None:
        """Refuse images that its five halvings leave nothing of; see `ModelConfig`."""
        require(
            image_size >= _SMALLEST_IMAGE,
            f"--image-size {image_size} is too small for {self.model}: it needs at least {_SMALLEST_IMAGE} pixels. Raise it.",
        )


CONVNEXT = Family(
    name="convnext",
    models={"convnext_tiny": Look(label="ConvNeXt-T", colour="#56B4E9")},
    config=ConvNextConfig,
    field_types=plain_types(ConvNextConfig, without=("model",)),
    in_channels=3,
    num_blocks=NUM_BLOCKS,
    takes_weights=True,
)
