"""Networks: trained by gradient descent, epoch by epoch.

Shapes: N images, K classes.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from tune_lung.config import Precision, RunConfig, TrialConfig
from tune_lung.data.store import Pixels
from tune_lung.evaluation.predictions import input_batches, predict_logits, probabilities_of
from tune_lung.families.family import ModelConfig
from tune_lung.learners.answering import BATCH_SIZE
from tune_lung.learners.kept import KeptModel, require_shapes
from tune_lung.learners.learner import CheckpointBytes, Learner, ModelFacts, Setting, Watch
from tune_lung.models.cost import mult_adds, prefix_mult_adds
from tune_lung.models.input_transform import InputTransform
from tune_lung.models.network import Network, changing_state, count_parameters, frozen_state, network_outline
from tune_lung.models.precision import fp32_multiplied_as_it_is
from tune_lung.results.pixel_facts import PixelFacts
from tune_lung.training.checkpoints import Checkpoints
from tune_lung.training.fit import EpochResult, checkpoint_bytes, fit
from tune_lung.training.job import TrainingJob

_PASSES_WITH_GRADIENT = 3
"""Forward, and back to inputs and weights."""


class NetworkLearner(Learner):
    """Trains a network's parameters behind its frozen prefix."""

    def fit(self, job: TrainingJob, checkpoints: Checkpoints, watch: Watch) -> Iterator[EpochResult]:
        """Train; see `Learner`."""
        return fit(
            job,
            checkpoints,
            rungs=watch.rungs,
            known_epochs=watch.known_epochs,
            is_out_of_time=watch.is_out_of_time,
            note_progress=watch.note_progress,
            stopwatch=watch.stopwatch,
        )

    def answering(
        self,
        kept: KeptModel,
        trial: TrialConfig,
        run: RunConfig,
        *,
        pixels: PixelFacts,
        classes: tuple[str, ...],
        device: torch.device,
    ) -> "NetworkAnswering":
        """Put the network together; see `Learner`."""
        network = _outline(trial.network, Setting.of(run, num_classes=len(classes)))
        changed = kept.best.part("network")
        require_shapes(changing_state(network), changed)
        require_shapes(frozen_state(network), kept.frozen)
        network.load_state_dict({**changed, **kept.frozen}, assign=True)
        return NetworkAnswering(
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

    def facts(self, trial: TrialConfig, setting: Setting) -> ModelFacts:
        """Count; see `Learner`."""
        parameters, _, all_work = _counted(trial.network, setting)
        return {"total_params": parameters[0], "trainable_params": parameters[1], "mult_adds": all_work}

    def work(self, trial: TrialConfig, setting: Setting) -> int:
        """Foresee; a frozen prefix whose features are kept is computed once, one before augmented images in every epoch."""
        _, prefix, all_work = _counted(trial.network, setting)
        num_prefix_passes = 1 if trial.augmentation == "none" else trial.max_epochs
        return trial.max_epochs * _PASSES_WITH_GRADIENT * (all_work - prefix) + num_prefix_passes * prefix

    def step_work(self, trial: TrialConfig, setting: Setting) -> int:
        """Foresee; see `Learner`."""
        return trial.batch_size * _counted(trial.network, setting)[2]

    def epoch_work(self, trial: TrialConfig, setting: Setting) -> int:
        """Foresee; see `Learner`."""
        return _counted(trial.network.with_nothing_frozen(), setting)[2]

    def shares(self, trial: TrialConfig, setting: Setting) -> tuple[Hashable, ...]:
        """Name a frozen prefix; under `published` there is none."""
        network = trial.network
        if not network.frozen_blocks or setting.protocol != "strict":
            return ()
        return network.model, network.frozen_blocks, trial.input, trial.precision, trial.augmentation

    def features_job(self, job: TrainingJob) -> TrainingJob | None:
        """Name the job itself."""
        return job

    def checkpoint_bytes(self, trial: TrialConfig, setting: Setting) -> CheckpointBytes:
        """Count; see `Learner`."""
        return _checkpoint_bytes(trial.network, trial.optimizer, setting)

    def frozen_bytes(self, network: ModelConfig, setting: Setting) -> int:
        """Count; see `Learner`."""
        return _frozen_bytes(network, setting)


@dataclass(frozen=True, kw_only=True)
class NetworkAnswering:
    """A network that answers for images; see `Answering`."""

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

    def answer(self, images: Pixels) -> npt.NDArray[np.float64]:
        """Give probabilities_NK for images, 128 in a pass."""
        batches = input_batches(images, self.transform, batch_size=BATCH_SIZE, device=self.device)
        with fp32_multiplied_as_it_is():
            return probabilities_of(predict_logits(self.network, batches, device=self.device, precision=self.precision))


@lru_cache(maxsize=1024)
def _counted(network: ModelConfig, setting: Setting) -> tuple[tuple[int, int], int, int]:
    """Count all and trainable parameters, and the multiply-adds of the frozen prefix and of all."""
    outline = _outline(network, setting)
    return count_parameters(outline), prefix_mult_adds(outline, setting.image_size), mult_adds(outline, setting.image_size)


@lru_cache(maxsize=1024)
def _checkpoint_bytes(network: ModelConfig, optimizer: str, setting: Setting) -> CheckpointBytes:
    return CheckpointBytes(*checkpoint_bytes(optimizer, _outline(network, setting)))


@lru_cache(maxsize=1024)
def _frozen_bytes(network: ModelConfig, setting: Setting) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in frozen_state(_outline(network, setting)).values())


def _outline(network: ModelConfig, setting: Setting) -> Network:
    return network_outline(network, protocol=setting.protocol, num_classes=setting.num_classes, image_size=setting.image_size)
