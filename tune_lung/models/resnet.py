"""torchvision's ResNets as a row of named stages, with a head for our classes."""

from collections import OrderedDict

from torch import nn
from torchvision.models import get_model

from tune_lung.config import ResNetName

IN_CHANNELS = 3
"""ResNets read grey images three times over, since their ImageNet weights expect colour."""

STEM = ("conv1", "bn1", "relu", "maxpool")
"""The stages before the first residual block."""
BLOCKS = ("layer1", "layer2", "layer3", "layer4")
"""The residual blocks, in the order in which they are frozen."""

_DEEP_HEAD_WIDTH = 1024


def resnet_stages(model: ResNetName) -> OrderedDict[str, nn.Module]:
    """Build a randomly started backbone.

    Args:
        model: Which ResNet.

    Returns:
        Stem and blocks in order, under torchvision's names; its own head is left out.
    """
    children = dict(get_model(model, weights=None).named_children())
    return OrderedDict((name, children[name]) for name in (*STEM, *BLOCKS))


def resnet_head(num_features: int, *, num_classes: int) -> OrderedDict[str, nn.Module]:
    """Build what turns the last block's map into logits.

    Args:
        num_features: Channels of the last block: 512 up to ResNet34, 2048 from ResNet50 on.
        num_classes: Number of logits, at least 2.

    Returns:
        The layers in order; `fc` is one linear layer, or 2048 -> 1024 -> ReLU -> classes for the deep networks.
    """
    fc: nn.Module = nn.Linear(num_features, num_classes)
    if num_features > _DEEP_HEAD_WIDTH:
        fc = nn.Sequential(
            nn.Linear(num_features, _DEEP_HEAD_WIDTH),
            nn.ReLU(inplace=True),
            nn.Linear(_DEEP_HEAD_WIDTH, num_classes),
        )
    return OrderedDict(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=fc)


def num_features(model: ResNetName) -> int:
    """Return the channels of the last block, which the head reads."""
    return 512 if model in ("resnet18", "resnet34") else 2048
