"""Every family of networks: what is trained by gradient descent, in epochs."""

from tune_lung.families.cnn import CNN
from tune_lung.families.convnext import CONVNEXT
from tune_lung.families.efficientnet import EFFICIENTNET
from tune_lung.families.family import Family
from tune_lung.families.resnet import RESNET

NETWORKS: tuple[Family, ...] = (CNN, RESNET, CONVNEXT, EFFICIENTNET)
"""In the order in which figures draw them."""

FIRST_FIELDS: tuple[str, ...] = (*CNN.field_types, *RESNET.field_types)
"""Fields of the families that there were first: the identity of a point names them also where they are null."""
