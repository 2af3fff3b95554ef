"""The two protocols' losses.

Shapes: N images, K classes.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from tune_lung.config import Protocol

Loss = Callable[[Tensor, Tensor], Tensor]
"""Takes logits_NK and labels_N, gives the mean loss over N, in nats."""


def loss_of(protocol: Protocol, *, label_smoothing: float) -> Loss:
    """Make a protocol's loss.

    Args:
        protocol: `strict`: cross-entropy on logits. `published`: the paper's program fed softmax outputs to a
            cross-entropy that takes logits, so its loss cannot fall under `published_loss_floor`.
        label_smoothing: Share of the target spread over all classes, 0 to under 1.

    Returns:
        The loss function.
    """
    strict = partial(functional.cross_entropy, label_smoothing=label_smoothing)
    if protocol == "strict":
        return strict
    return lambda logits_NK, labels_N: strict(torch.softmax(logits_NK, dim=1), labels_N)


def published_loss_floor(num_classes: int) -> float:
    """Compute the least loss of the published protocol: ln(e + K - 1) - 1, 0.74367 at 4 classes."""
    return math.log(math.e + num_classes - 1) - 1
