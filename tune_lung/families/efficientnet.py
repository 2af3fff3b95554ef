"""torchvision's EfficientNet.

References:
    Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks", ICML 2019.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tune_lung.errors import require_choice
from tune_lung.families.backbone import NUM_BLOCKS, BackboneConfig
from tune_lung.families.family import Family, Look, plain_types

EfficientNetName: TypeAlias = Literal["efficientnet_b0"]


@dataclass(frozen=True, kw_only=True)
class EfficientNetConfig(BackboneConfig):
    """An EfficientNet with a new head, its first stages frozen."""

    model: EfficientNetName = "efficientnet_b0"
    """Which EfficientNet."""

    def __post_init__(self) -> None:
        """Refuse an unknown network, start or depth."""
        require_choice("model", self.model, EfficientNetName)
        super().__post_init__()


EFFICIENTNET = Family(
    name="efficientnet",
    models={"efficientnet_b0": Look(label="EfficientNet-B0", colour="#E69F00")},
    config=EfficientNetConfig,
    field_types=plain_types(EfficientNetConfig, without=("model",)),
    in_channels=3,
    num_blocks=NUM_BLOCKS,
    takes_weights=True,
)
