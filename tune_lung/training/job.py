"""One trial and all it is trained with."""

from dataclasses import dataclass
from functools import cached_property

import torch

from tune_lung.config import RunConfig, TrialConfig
from tune_lung.data.cache import Cache
from tune_lung.data.store import Part, PixelStore
from tune_lung.models.input_transform import InputTransform
from tune_lung.models.network import Network, build_network
from tune_lung.models.weights import WeightsSource


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One trial and all it is trained with."""

    trial: TrialConfig
    """What is trained, and how."""
    run: RunConfig
    """What it shares with the other trials."""
    store: PixelStore
    """Training and validation images."""
    weights: WeightsSource | None
    """Where a backbone starts; None for a family that takes no weights."""
    trial_seed: int
    """Root of this trial's draws: batches, augmentation."""
    network_seed: int
    """Root of the network's random start, shared by the trials of one model and repeat."""
    device: torch.device
    """Where to compute."""
    cache: Cache | None = None
    """Where a frozen prefix's features may be kept; None keeps none."""

    @cached_property
    def train(self) -> Part:
        """The training images."""
        return self.store.part("train")

    @cached_property
    def validation(self) -> Part:
        """The validation images."""
        return self.store.part("validation")

    def check_images(self) -> None:
        """See that all that was read of the training and validation images was right.

        Raises:
            StoreDamagedError: They have changed since the store was opened.
        """
        self.store.check("train", "validation")

    def transform(self) -> InputTransform:
        """Make the way from stored pixels to the network's input."""
        return InputTransform.for_trial(
            self.trial,
            protocol=self.run.protocol,
            train_mean=self.store.train_mean,
            train_deviation=self.store.train_deviation,
        )

    def build_network(self) -> Network:
        """Build the network at its start, on the device, a frozen random prefix's statistics not yet set."""
        network = build_network(
            self.trial.network,
            protocol=self.run.protocol,
            num_classes=len(self.store.classes),
            image_size=self.run.image_size,
            weights=self.weights,
            seed=self.network_seed,
        )
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    @property
    def has_random_prefix(self) -> bool:
        """Whether the network has a frozen prefix at a random start, whose batch-norm statistics are still to be set."""
        is_random = self.weights is not None and self.weights.kind == "random"
        return self.trial.network.frozen_blocks > 0 and is_random and self.run.protocol == "strict"
