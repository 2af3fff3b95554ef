"""Network: what a trial trains, as a frozen prefix and the rest; and how it is built from a configuration.

Shapes: N images, C channels, H x W pixels, K classes.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tune_lung.config import Protocol
from tune_lung.families.family import ModelConfig
from tune_lung.families.registry import family_of
from tune_lung.models.architectures import architecture_of, backbone_of
from tune_lung.models.draws import drawn_from
from tune_lung.models.freezing import FrozenPrefix, freeze_stages
from tune_lung.models.weights import RANDOM_WEIGHTS, WeightsSource, load_backbone
from tune_lung.randomness import derive_seed


class ParameterCount(NamedTuple):
    """How many numbers a network has, and how many of them are trained."""

    total: int
    trainable: int


class Network(nn.Module):
    """A network in two parts: a frozen prefix, which may be empty, and the rest."""

    def __init__(self, *, prefix: FrozenPrefix | None, rest: nn.Sequential, in_channels: int) -> None:
        """Put the parts together.

        Args:
            prefix: The frozen stages; None where there are none.
            rest: The other stages and the head.
            in_channels: Channels of the images: 1 or 3.
        """
        super().__init__()
        self.prefix: nn.Module = nn.Identity() if prefix is None else prefix
        self.rest = rest
        self.in_channels = in_channels

    @property
    def has_frozen_prefix(self) -> bool:
        """Whether the first stages are a pure function whose output may be kept."""
        return isinstance(self.prefix, FrozenPrefix)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            images_NCHW: Normalised images.

        Returns:
            logits_NK; no softmax, under either protocol.
        """
        logits_NK: Tensor = self.rest(self.prefix(images_NCHW))
        return logits_NK


def build_network(
    network: ModelConfig,
    *,
    protocol: Protocol,
    num_classes: int,
    image_size: int,
    weights: WeightsSource | None,
    seed: int,
) -> Network:
    """Build a network at its start, on the CPU and in training mode, with what is frozen frozen.

    Backbone and head have a start each, drawn from `seed` under their own names. So networks of one model and seed share
    their backbone whatever is frozen, and no global generator is moved.

    Args:
        network: What to build.
        protocol: The rules of freezing.
        num_classes: Number of logits, at least 2.
        image_size: Side of the square images in pixels.
        weights: Where a backbone starts; a family that takes no weights has a random start and ignores it.
        seed: Root of the random starts, 0 to 2**63 - 1.

    Returns:
        The network. With random weights and a frozen prefix, `set_prefix_statistics` is still to be called.

    Raises:
        InputError: The weights' file is gone or has changed.
        ValueError: A backbone without weights, or images too small for the network.
    """
    family, architecture = family_of(network.model), architecture_of(network.model)
    if family.takes_weights and weights is None:
        raise ValueError(f"A {network.model} needs weights; a random start is one of them.")
    stages = _stages_at_their_start(network, weights if family.takes_weights else None, seed)
    with drawn_from(derive_seed(seed, "head")):
        head = architecture.head(network, num_classes=num_classes, image_size=image_size)
    names = architecture.prefix_stages(network.frozen_blocks)
    prefix = freeze_stages(stages, prefix=names, stem=architecture.stem, protocol=protocol)
    return Network(prefix=prefix, rest=nn.Sequential(stages | head), in_channels=family.in_channels)


def network_outline(network: ModelConfig, *, protocol: Protocol, num_classes: int, image_size: int) -> Network:
    """Build a network that has shapes and no numbers, on torch's meta device: for counting, at no cost in memory."""
    with torch.device("meta"):
        return build_network(
            network, protocol=protocol, num_classes=num_classes, image_size=image_size, weights=RANDOM_WEIGHTS, seed=0
        )


def count_parameters(network: nn.Module) -> ParameterCount:
    """Count a network's parameters; batch-norm statistics are none."""
    total = sum(parameter.numel() for parameter in network.parameters())
    return ParameterCount(total=total, trainable=sum(parameter.numel() for parameter in trainable_parameters(network)))


def trainable_parameters(network: nn.Module) -> list[nn.Parameter]:
    """List the parameters that an optimizer may change, in the network's order."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def changing_state(network: Network) -> dict[str, Tensor]:
    """Name every tensor that training may change: all but the frozen parameters, which the network's start gives again."""
    frozen = frozen_state(network)
    return {name: tensor for name, tensor in network.state_dict().items() if name not in frozen}


def frozen_state(network: Network) -> dict[str, Tensor]:
    """Name every tensor that training never changes."""
    return {name: parameter.detach() for name, parameter in network.named_parameters() if not parameter.requires_grad}


def load_changing_state(network: Network, tensors: Mapping[str, Tensor]) -> None:
    """Bring a network at its start to where training had it.

    Args:
        network: Built as the one that `tensors` come from.
        tensors: What `changing_state` named.

    Raises:
        ValueError: The tensors are another network's.
    """
    if tensors.keys() != changing_state(network).keys():
        raise ValueError("These tensors belong to another network.")
    network.load_state_dict(dict(tensors), strict=False)


def stages_after_blocks(network: ModelConfig, prefix: nn.Module, num_blocks: int) -> nn.Sequential:
    """Give what a frozen prefix adds to one that ends after fewer blocks, which every deeper one begins with.

    Args:
        network: What the prefix was built from.
        prefix: A frozen prefix.
        num_blocks: Blocks of the shallower one, at least 1.
    """
    num_stages = len(architecture_of(network.model).prefix_stages(num_blocks))
    return nn.Sequential(*list(prefix.children())[num_stages:])


def _stages_at_their_start(network: ModelConfig, weights: WeightsSource | None, seed: int) -> OrderedDict[str, nn.Module]:
    architecture = architecture_of(network.model)
    if weights is None or weights.kind == "random":
        with drawn_from(derive_seed(seed, "backbone")):
            return architecture.stages(network)
    with torch.device("meta"):  # no numbers are drawn that the file's would replace
        stages = architecture.stages(network)
    renamed = backbone_of(network.model).stage_tensor
    tensors = {renamed(name): tensor for name, tensor in load_backbone(weights, network.model).items()}
    nn.Sequential(stages).load_state_dict(tensors, assign=True)
    return stages
