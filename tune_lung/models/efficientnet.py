"""Builds torchvision's EfficientNet as a row of named stages, with a head for our classes."""

from collections import OrderedDict

from torch import nn

from tune_lung.families.backbone import BackboneConfig
from tune_lung.models.backbone import FeatureRowArchitecture

_NUM_FEATURES = 1280
_DROPOUT = 0.2


class EfficientNetArchitecture(FeatureRowArchitecture):
    """A block ends where the map has half the side of the block's before: at 1/4, 1/8, 1/16 and 1/32 of the image."""

    stem = ("features0",)
    blocks = (
        ("features1", "features2"),
        ("features3",),
        ("features4", "features5"),
        ("features6", "features7", "features8"),
    )

    def head(self, config: BackboneConfig, *, num_classes: int, image_size: int) -> OrderedDict[str, nn.Module]:  # noqa: ARG002
        """Build an average, dropout and a linear layer, as torchvision's own head."""
        return OrderedDict(
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(_DROPOUT),
            fc=nn.Linear(_NUM_FEATURES, num_classes),
        )
