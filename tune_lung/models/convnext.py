"""Builds torchvision's ConvNeXt as a row of named stages, with a head for our classes."""

from collections import OrderedDict

from torch import nn
from torchvision.models.convnext import LayerNorm2d

from tune_lung.families.backbone import BackboneConfig
from tune_lung.models.backbone import FeatureRowArchitecture

_NUM_FEATURES = 768


class ConvNextArchitecture(FeatureRowArchitecture):
    """A block is one of the paper's four stages, with the halving before it."""

    stem = ("features0",)
    blocks = (("features1",), ("features2", "features3"), ("features4", "features5"), ("features6", "features7"))

    def head(self, config: BackboneConfig, *, num_classes: int, image_size: int) -> OrderedDict[str, nn.Module]:  # noqa: ARG002
        """Build an average, a layer norm and a linear layer, as torchvision's own head, at a start of its own."""
        return OrderedDict(
            avgpool=nn.AdaptiveAvgPool2d(1),
            norm=LayerNorm2d(_NUM_FEATURES, eps=1e-6),
            flatten=nn.Flatten(),
            fc=nn.Linear(_NUM_FEATURES, num_classes),
        )
