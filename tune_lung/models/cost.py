"""What a network costs to run."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from tune_lung.models.network import Network


def mult_adds(network: Network, image_size: int) -> int:
    """Count the multiply-adds of one image's forward pass, in convolutions and linear layers.

    Nothing is computed: the network is replayed on torch's meta device, which knows shapes only.

    Args:
        network: Any network, on any device; left as it was.
        image_size: Side of the square image in pixels.

    Returns:
        Multiply-adds, each counted as one.
    """
    return _counted(network, network.in_channels, image_size)


def prefix_mult_adds(network: Network, image_size: int) -> int:
    """Count those of its frozen prefix, 0 without one; arguments as `mult_adds` takes them."""
    return _counted(network.prefix, network.in_channels, image_size)


def _counted(module: nn.Module, in_channels: int, image_size: int) -> int:
    was_training = module.training
    module.eval()
    try:
        return _counted_on_meta(module, torch.empty(1, in_channels, image_size, image_size, device="meta"))
    finally:
        module.train(was_training)


def _counted_on_meta(module: nn.Module, image_1CHW: Tensor) -> int:
    shapes = {name: tensor.to("meta") for name, tensor in module.state_dict().items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(module, shapes, (image_1CHW,))
    return int(counter.get_total_flops()) // 2  # the counter takes a multiplication and an addition as two
