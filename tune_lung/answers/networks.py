"""A trial's network as it was kept, ready to answer: for the sealed test, and for whoever takes it out of its run.

All that it needs lies in the run: what training changed of it in the trial's `best`, its frozen part beside all trials', and the
normalisation in the manifest or the pixel store. Nothing is drawn, and no weights file is asked for.

Shapes: N images, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tune_lung.config import Precision, RunConfig, TrialConfig
from tune_lung.data.store import Pixels
from tune_lung.evaluation.predictions import input_batches, predict_logits, probabilities_of
from tune_lung.models.inputs import InputTransform
from tune_lung.models.network import Network, changing_state, frozen_state, network_outline
from tune_lung.models.precision import fp32_multiplied_as_it_is
from tune_lung.results.pixel_facts import PixelFacts
from tune_lung.training.checkpoints import FROZEN, Checkpoint, Checkpoints, load
from tune_lung.training.tensor_files import DamagedCheckpointError

BATCH_SIZE = 128
"""Images of one pass."""


@dataclass(frozen=True, kw_only=True)
class KeptNetwork:
    """A trial's network as it lies in its run, digests verified."""

    best: Checkpoint
    """What training changed of it, by its best epoch."""
    frozen: Mapping[str, Tensor]
    """What it did not; empty where nothing is frozen."""

    @classmethod
    def load(cls, checkpoints: Checkpoints, trial: TrialConfig, *, epoch: int | None = None) -> Self:
        """Read it.

        Args:
            checkpoints: The trial's.
            trial: The trial.
            epoch: Epoch that it must be of; None takes any.

        Raises:
            DamagedCheckpointError: It was not kept, or a file of it is not what was written.
        """
        try:
            best = load(checkpoints.best)
        except FileNotFoundError as error:
            raise DamagedCheckpointError("Its network was not kept.") from error
        if epoch is not None and best.state["epoch"] != epoch:
            raise DamagedCheckpointError(f"The checkpoint 'best' is of epoch {best.state['epoch']} instead of {epoch}.")
        digest = best.state.get(FROZEN)
        if digest is None and trial.network.frozen_blocks:
            raise DamagedCheckpointError("An earlier version of tune_lung kept its network without the frozen part.")
        return cls(best=best, frozen={} if digest is None else checkpoints.frozen_parts.load(digest))

    def build(self, trial: TrialConfig, run: RunConfig, *, num_classes: int) -> Network:
        """Put the network together, on the CPU.

        Raises:
            DamagedCheckpointError: The tensors are another network's.
        """
        network = network_outline(trial.network, protocol=run.protocol, num_classes=num_classes, image_size=run.image_size)
        changed = self.best.part("network")
        for expected, found in ((changing_state(network), changed), (frozen_state(network), self.frozen)):
            if _shapes_of(expected) != _shapes_of(found):
                raise DamagedCheckpointError("The checkpoint 'best' is another network's.")
        network.load_state_dict({**changed, **self.frozen}, assign=True)
        return network


def _shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


@dataclass(frozen=True, kw_only=True)
class NetworkAnswering:
    """A network that answers for images; see `tune_lung.answers.answering.Answering`."""

    network: Network
    """On the device."""
    transform: InputTransform
    """The way from stored pixels to its input."""
    classes: tuple[str, ...]
    """Class names, in the order of its outputs."""
    device: torch.device
    """Where it computes."""
    precision: Precision
    """Number format of its arithmetic."""

    @classmethod
    def of(
        cls,
        kept: KeptNetwork,
        trial: TrialConfig,
        run: RunConfig,
        *,
        pixels: PixelFacts,
        classes: tuple[str, ...],
        device: torch.device,
    ) -> Self:
        """Make a kept network answer.

        Args:
            kept: The network.
            trial: Its trial, in whose precision it computes.
            run: What the run's trials share.
            pixels: What the run's pixels are like.
            classes: The run's classes, in the order of the network's outputs.
            device: Where to compute.

        Raises:
            DamagedCheckpointError: The network is not this trial's.
        """
        network = kept.build(trial, run, num_classes=len(classes))
        return cls(
            network=network.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
            transform=InputTransform.for_trial(
                trial,
                protocol=run.protocol,
                train_mean=pixels["train_mean"],
                train_deviation=pixels["train_deviation"],
            ),
            classes=classes,
            device=device,
            precision=trial.precision,
        )

    def answer(self, images: Pixels) -> npt.NDArray[np.float64]:
        """Give probabilities_NK for images, 128 in a pass."""
        batches = input_batches(images, self.transform, batch_size=BATCH_SIZE, device=self.device)
        with fp32_multiplied_as_it_is():
            return probabilities_of(predict_logits(self.network, batches, device=self.device, precision=self.precision))
