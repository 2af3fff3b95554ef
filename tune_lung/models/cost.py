"""What a network costs to run."""

import torch
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
    was_training = network.training
    network.eval()
    try:
        return _counted_on_meta(network, image_size)
    finally:
        network.train(was_training)


def _counted_on_meta(network: Network, image_size: int) -> int:
    shapes = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    image_1CHW = torch.empty(1, network.in_channels, image_size, image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(network, shapes, (image_1CHW,))
    return int(counter.get_total_flops()) // 2  # the counter takes a multiplication and an addition as two
