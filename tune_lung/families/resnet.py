"""torchvision's ResNets."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tune_lung.errors import require_choice
from tune_lung.families.backbone import NUM_BLOCKS, BackboneConfig
from tune_lung.families.family import Family, Look, plain_types

ResNetName: TypeAlias = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(BackboneConfig):
    """A ResNet with a new head, the first residual blocks frozen."""

    model: ResNetName = "resnet18"
    """Which ResNet."""

    def __post_init__(self) -> None:
        """Refuse an unknown network, start or depth."""
        require_choice("model", self.model, ResNetName)
        super().__post_init__()


RESNET = Family(
    name="resnet",
    models={
        "resnet18": Look(label="ResNet18", colour="#0072B2"),
        "resnet34": Look(label="ResNet34", colour="#D55E00"),
        "resnet50": Look(label="ResNet50", colour="#009E73"),
        "resnet101": Look(label="ResNet101", colour="#CC79A7"),
        "resnet152": Look(label="ResNet152", colour="#8C6D00"),
    },
    config=ResNetConfig,
    field_types=plain_types(ResNetConfig, without=("model",)),
    in_channels=3,
    num_blocks=NUM_BLOCKS,
    takes_weights=True,
)
