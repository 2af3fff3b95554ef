"""What of a backbone stays as it was loaded, under each protocol.

`strict`: the frozen part is a prefix of its own, stem included, with batch norm in eval mode: a pure function of the
image, whose output may be kept. `published`, as the paper's program did it: the weights of the frozen blocks are fixed,
but the stem before them is trained and their batch norm goes on using and updating batch statistics.

Shapes: N images, C channels, H x W pixels.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Self

import torch
from torch import Tensor, nn

from tune_lung.config import Protocol


class FrozenPrefix(nn.Sequential):
    """Stages that are never trained: a pure function that no mode and no gradient reaches."""

    def __init__(self, stages: OrderedDict[str, nn.Module]) -> None:
        """Freeze stages.

        Args:
            stages: The stages by name, in order.
        """
        super().__init__(stages)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 - the mode of the network around it is passed down here
        """Stay in eval mode, whatever the network around does."""
        return super().train(False)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Compute the frozen features, without a graph.

        What a stage gives has the number format of the arithmetic, in which features are stored: a ConvNeXt adds up in fp32
        whatever the arithmetic, and a deeper prefix would else go on from other numbers than from a shallower one's features.

        Args:
            images_NCHW: Normalised images.

        Returns:
            The last frozen stage's map, (N, C', H', W').
        """
        with torch.no_grad():
            kind, features_NCHW = images_NCHW.device.type, images_NCHW
            is_autocast = kind != "meta" and torch.is_autocast_enabled(kind)
            for stage in self:
                features_NCHW = stage(features_NCHW)
                if is_autocast:
                    features_NCHW = features_NCHW.to(torch.get_autocast_dtype(kind))
            return features_NCHW


def freeze_stages(
    stages: OrderedDict[str, nn.Module], *, prefix: Collection[str], stem: Collection[str], protocol: Protocol
) -> FrozenPrefix | None:
    """Freeze the first stages of a network.

    Under `strict` they are taken out of `stages`; under `published` they stay there, the weights of all but the stem fixed.

    Args:
        stages: Stem and blocks by name; changed in place.
        prefix: Names of the first stages, in order; none freezes nothing.
        stem: Those of them that are no block.
        protocol: The rules.

    Returns:
        The frozen prefix, or None where there is none: nothing is frozen, or the protocol is `published`.
    """
    if protocol == "published":
        for name in prefix:
            if name not in stem:
                stages[name].requires_grad_(False)
        return None
    if not prefix:
        return None
    return FrozenPrefix(OrderedDict((name, stages.pop(name)) for name in prefix))


def set_prefix_statistics(prefix: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the batch-norm statistics of a randomly started frozen prefix once, by a pass over images.

    A random network in eval mode does not normalise at all, so its features explode with depth (measured: deviation 40
    at ResNet34's fourth block). Every layer's mean and variance become their average over the images, while each layer
    reads features that were normalised by their own batch.

    Args:
        prefix: A network's frozen prefix; one without batch norm needs none, and no batch is asked for.
        batches: Normalised images (N, C, H, W) of the training split, on the prefix's device. A batch of 1 image has no
            variance where the map has shrunk to 1 pixel: torch refuses it.

    Raises:
        TypeError: It is no frozen prefix.
        ValueError: There is no batch.
    """
    if not isinstance(prefix, FrozenPrefix):
        raise TypeError("Only a frozen prefix has statistics to set, and this network has none.")
    norms = [module for module in prefix.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    momentums = [norm.momentum for norm in norms]
    num_images = 0
    try:
        for images_NCHW in batches:
            num_images += len(images_NCHW)
            for norm in norms:
                norm.train()
                norm.momentum = len(images_NCHW) / num_images  # the first batch replaces what was there
            prefix(images_NCHW)
    finally:
        for norm, momentum in zip(norms, momentums, strict=True):
            norm.momentum = momentum
        prefix.eval()
    if num_images == 0:
        raise ValueError("There is no batch to set the prefix's statistics from.")
