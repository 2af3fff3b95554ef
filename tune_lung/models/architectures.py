"""Which architecture builds which family's networks."""

from typing import Any

from tune_lung.families.cnn import CNN
from tune_lung.families.convnext import CONVNEXT
from tune_lung.families.efficientnet import EFFICIENTNET
from tune_lung.families.registry import family_of
from tune_lung.families.resnet import RESNET
from tune_lung.models.architecture import Architecture
from tune_lung.models.backbone import BackboneArchitecture
from tune_lung.models.cnn import CnnArchitecture
from tune_lung.models.convnext import ConvNextArchitecture
from tune_lung.models.efficientnet import EfficientNetArchitecture
from tune_lung.models.resnet import ResNetArchitecture

_ARCHITECTURES: dict[str, Architecture[Any]] = {
    CNN.name: CnnArchitecture(),
    RESNET.name: ResNetArchitecture(),
    CONVNEXT.name: ConvNextArchitecture(),
    EFFICIENTNET.name: EfficientNetArchitecture(),
}


def architecture_of(model: str) -> Architecture[Any]:
    """Find what builds a model's network.

    Raises:
        InputError: There is no such model.
    """
    return _ARCHITECTURES[family_of(model).name]


def backbone_of(model: str) -> BackboneArchitecture:
    """Find what builds the network of a model that takes weights.

    Raises:
        InputError: There is no such model.
        ValueError: It takes no weights.
    """
    architecture = architecture_of(model)
    if not isinstance(architecture, BackboneArchitecture):
        raise ValueError(f"{model} takes no weights.")  # noqa: TRY004 - not the argument's type is wrong
    return architecture
