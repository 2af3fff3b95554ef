"""What the architectures of torchvision's pretrained networks share: a head of their own is left out, weights fit by name."""

from collections import OrderedDict

from torch import nn
from torchvision.models import get_model

from tune_lung.families.backbone import BackboneConfig
from tune_lung.models.architecture import Architecture


class BackboneArchitecture(Architecture[BackboneConfig]):
    """Stages that begin with pretrained weights."""

    own_head: str
    """What the names of the tensors of torchvision's own head begin with."""

    def stage_tensor(self, name: str) -> str:
        """Name a tensor of torchvision's network as it is called in the row of stages."""
        return name


class FeatureRowArchitecture(BackboneArchitecture):
    """Of a network whose backbone torchvision keeps as a row called `features`: stage `features3` is its fourth member."""

    own_head = "classifier."

    def stages(self, config: BackboneConfig) -> OrderedDict[str, nn.Module]:
        """Take the row's members out of torchvision's network."""
        features = get_model(config.model, weights=None).get_submodule("features")
        return OrderedDict((f"features{name}", stage) for name, stage in features.named_children())

    def stage_tensor(self, name: str) -> str:
        """Name `features.3.0.weight` as `features3.0.weight`."""
        return name.replace("features.", "features", 1)
