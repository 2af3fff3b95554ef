"""The one interface to whatever learns. Who tunes asks it, and never what kind of model it has before it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Hashable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Self, TypedDict

import torch

from tune_lung.config import Protocol, RunConfig, TrialConfig
from tune_lung.families.family import ModelConfig
from tune_lung.learners.answering import Answering
from tune_lung.learners.kept import KeptModel
from tune_lung.results.pixel_facts import PixelFacts
from tune_lung.training.checkpoints import Checkpoints
from tune_lung.training.fit import EpochResult
from tune_lung.training.job import TrainingJob
from tune_lung.training.stopwatch import StoppedStopwatch, Stopwatch


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run's images and rules ask of every model alike."""

    protocol: Protocol
    """The rules of loss, freezing and normalisation."""
    num_classes: int
    """K, at least 2."""
    image_size: int
    """Side of the square images in pixels."""

    @classmethod
    def of(cls, run: RunConfig, *, num_classes: int) -> Self:
        """Take it from what the trials of a run share."""
        return cls(protocol=run.protocol, num_classes=num_classes, image_size=run.image_size)


class ModelFacts(TypedDict):
    """What is counted of a model before it is trained; null where it has none such."""

    total_params: int | None
    """All its parameters."""
    trainable_params: int | None
    """Those that training changes."""
    mult_adds: int | None
    """Multiply-adds of one image's answer."""


class CheckpointBytes(NamedTuple):
    """Sizes of a trial's checkpoints in bytes."""

    best: int
    """What answers."""
    last: int
    """What training goes on from; 0 where it begins anew."""


def _never() -> bool:
    """Say no."""
    return False


def _unheard() -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who looks on while a trial is trained; by default nobody."""

    rungs: Container[int] = ()
    """Epochs at which trials are compared: the state to go on from is saved there."""
    known_epochs: int = 0
    """Epochs whose results are known from before a kill; see `tune_lung.training.fit.fit`."""
    is_out_of_time: Callable[[], bool] = _never
    """Asked after each epoch; the trial ends with the first one that it says yes to."""
    note_progress: Callable[[], None] = _unheard
    """Called after each piece of work, so that a trial that hangs is told from one that takes long."""
    stopwatch: Stopwatch = field(default_factory=StoppedStopwatch)
    """Takes the time of each part."""


class Learner(ABC):
    """A way of learning, for the families that name it."""

    @abstractmethod
    def fit(self, job: TrainingJob, checkpoints: Checkpoints, watch: Watch) -> Iterator[EpochResult]:
        """Train a trial to its end, from its newest checkpoint where there is one.

        Yields:
            Each epoch's result, the last one with a stop reason. What has no epochs gives one result.

        Raises:
            DivergedError: A loss is not finite.
            InputError: Stored images or features are damaged, or changed while they were read; no result that read them was
                given.
        """

    @abstractmethod
    def answering(
        self,
        kept: KeptModel,
        trial: TrialConfig,
        run: RunConfig,
        *,
        pixels: PixelFacts,
        classes: tuple[str, ...],
        device: torch.device,
    ) -> Answering:
        """Make a kept model answer for images; the run's own images and weights play no part.

        Args:
            kept: The model.
            trial: Its trial, in whose precision it computes.
            run: What the run's trials share.
            pixels: What the run's pixels are like.
            classes: The run's classes, in the order of the answers.
            device: Where to compute.

        Raises:
            DamagedCheckpointError: It is another trial's.
        """

    @abstractmethod
    def facts(self, trial: TrialConfig, setting: Setting) -> ModelFacts:
        """Count a model's parameters and multiply-adds; the weights it starts from play no part."""

    @abstractmethod
    def work(self, trial: TrialConfig, setting: Setting) -> int:
        """Foresee what a trial spends on one training image, from its start to its end, in multiply-adds.

        What others may have computed for it counts once.
        """

    @abstractmethod
    def step_work(self, trial: TrialConfig, setting: Setting) -> int:
        """Foresee what its longest step takes, time and memory alike, in multiply-adds."""

    @abstractmethod
    def epoch_work(self, trial: TrialConfig, setting: Setting) -> int:
        """Foresee what an epoch spends on one image if nothing is kept from before, in multiply-adds."""

    @abstractmethod
    def shares(self, trial: TrialConfig, setting: Setting) -> tuple[Hashable, ...]:
        """Name what trials have in common that compute something once for all; empty where it shares nothing."""

    @abstractmethod
    def features_job(self, job: TrainingJob) -> TrainingJob | None:
        """Name the job whose frozen prefix's features a trial may train on; None where it never does."""

    @abstractmethod
    def checkpoint_bytes(self, trial: TrialConfig, setting: Setting) -> CheckpointBytes:
        """Count the bytes of the tensors in a trial's checkpoints, at most."""

    @abstractmethod
    def frozen_bytes(self, network: ModelConfig, setting: Setting) -> int:
        """Count the bytes of what is frozen of a model, which a run keeps once for all trials that share it."""
