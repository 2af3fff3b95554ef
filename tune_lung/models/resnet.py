"""Builds torchvision's ResNets as a row of named stages, with a head for our classes."""

from collections import OrderedDict

from torch import nn
from torchvision.models import get_model

from tune_lung.families.backbone import BackboneConfig
from tune_lung.models.backbone import BackboneArchitecture

_DEEP_HEAD_WIDTH = 1024


class ResNetArchitecture(BackboneArchitecture):
    """Stem and residual blocks under torchvision's names."""

    stem = ("conv1", "bn1", "relu", "maxpool")
    blocks = (("layer1",), ("layer2",), ("layer3",), ("layer4",))
    own_head = "fc."

    def stages(self, config: BackboneConfig) -> OrderedDict[str, nn.Module]:
        """Take stem and blocks out of torchvision's network."""
        children = dict(get_model(config.model, weights=None).named_children())
        return OrderedDict((name, children[name]) for name in self.prefix_stages(len(self.blocks)))

    def head(self, config: BackboneConfig, *, num_classes: int, image_size: int) -> OrderedDict[str, nn.Module]:  # noqa: ARG002
        """Build `fc` behind an average: one linear layer, or 2048 -> 1024 -> ReLU -> classes for the deep networks."""
        num_features = 512 if config.model in ("resnet18", "resnet34") else 2048
        fc: nn.Module = nn.Linear(num_features, num_classes)
        if num_features > _DEEP_HEAD_WIDTH:
            fc = nn.Sequential(
                nn.Linear(num_features, _DEEP_HEAD_WIDTH),
                nn.ReLU(inplace=True),
                nn.Linear(_DEEP_HEAD_WIDTH, num_classes),
            )
        return OrderedDict(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=fc)
