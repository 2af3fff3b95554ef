"""What the architectures of torchvision's pretrained networks share: a head of their own is left out, weights fit by name."""

from tune_lung.families.backbone import BackboneConfig
from tune_lung.models.architecture import Architecture


class BackboneArchitecture(Architecture[BackboneConfig]):
    """Stages that begin with pretrained weights."""

    own_head: str
    """What the names of the tensors of torchvision's own head begin with."""

    def stage_tensor(self, name: str) -> str:
        """Name a tensor of torchvision's network as it is called in the row of stages."""
        return name
