"""Networks: trained by gradient descent, epoch by epoch."""

from collections.abc import Hashable, Iterator
from functools import lru_cache

from torch import Tensor

from tune_lung.config import TrialConfig
from tune_lung.data.store import Part
from tune_lung.evaluation.predictions import input_batches, predict_logits
from tune_lung.families.family import ModelConfig
from tune_lung.learners.learner import CheckpointBytes, Learner, ModelFacts, Setting, Watch
from tune_lung.models.cost import mult_adds, prefix_mult_adds
from tune_lung.models.network import Network, count_parameters, load_changing_state, network_outline
from tune_lung.training.checkpoints import Checkpoint, Checkpoints, DamagedCheckpointError
from tune_lung.training.fit import EpochResult, checkpoint_bytes, fit
from tune_lung.training.job import TrainingJob

_BATCH_SIZE = 128
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

    def answer(self, job: TrainingJob, best: Checkpoint, part: Part) -> Tensor:
        """Answer; see `Learner`."""
        network = job.build_network()
        try:
            load_changing_state(network, best.part("network"))
        except (RuntimeError, ValueError) as error:
            raise DamagedCheckpointError("The checkpoint 'best' is another network's.") from error
        batches = input_batches(part, job.transform(), batch_size=_BATCH_SIZE, device=job.device)
        return predict_logits(network, batches, device=job.device, precision=job.trial.precision)

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


@lru_cache(maxsize=1024)
def _counted(network: ModelConfig, setting: Setting) -> tuple[tuple[int, int], int, int]:
    """Count all and trainable parameters, and the multiply-adds of the frozen prefix and of all."""
    outline = _outline(network, setting)
    return count_parameters(outline), prefix_mult_adds(outline, setting.image_size), mult_adds(outline, setting.image_size)


@lru_cache(maxsize=1024)
def _checkpoint_bytes(network: ModelConfig, optimizer: str, setting: Setting) -> CheckpointBytes:
    return CheckpointBytes(*checkpoint_bytes(optimizer, _outline(network, setting)))


def _outline(network: ModelConfig, setting: Setting) -> Network:
    return network_outline(network, protocol=setting.protocol, num_classes=setting.num_classes, image_size=setting.image_size)
