"""The learner behind the classical families: features, one fit, one report.

Shapes: N images, K classes.
"""

import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from sklearn.pipeline import Pipeline
from torch import Tensor

from tune_lung.config import RunConfig, TrialConfig
from tune_lung.data.store import Part, Pixels
from tune_lung.evaluation.confusion import confusion_matrix
from tune_lung.evaluation.predictions import probabilities_of
from tune_lung.families.classical import ClassicalConfig, ForestConfig, LogisticConfig
from tune_lung.families.family import ModelConfig
from tune_lung.learners.classical.estimators import fitted_estimator, logits_of
from tune_lung.learners.classical.features import (
    FeatureExtractor,
    backbone_job,
    backbone_outline,
    classical_of,
    config_of,
    feature_tables,
    num_features,
)
from tune_lung.learners.classical.stored import as_tensor, from_tensor
from tune_lung.learners.kept import KeptModel
from tune_lung.learners.learner import CheckpointBytes, Learner, ModelFacts, Setting, Watch
from tune_lung.metrics import Judged, measured_on_validation
from tune_lung.models.cost import prefix_mult_adds
from tune_lung.models.network import count_parameters, frozen_state
from tune_lung.results.pixel_facts import PixelFacts
from tune_lung.results.schema import TimePart
from tune_lung.training.checkpoints import FROZEN, Checkpoint, Checkpoints
from tune_lung.training.fit import DivergedError, EpochResult
from tune_lung.training.job import TrainingJob
from tune_lung.training.loss import loss_of
from tune_lung.training.selection import selection_score
from tune_lung.training.tensor_files import DamagedCheckpointError

_ESTIMATOR = "estimator.bytes"
_PASSES_OF_A_FIT = 200
"""About as many times is a number of the features read while an estimator is fitted."""
_WORK_OF_A_FIT = 10**8
"""Multiply-adds for each image, about those of a small network's epoch."""
_TYPICAL_SUPPORT = 2000
_BYTES_OF_A_TREE = 50_000
_BYTES_OF_A_NUMBER = 8


class ClassicalLearner(Learner):
    """Fits an estimator to the training images once; the only epoch is that fit."""

    def fit(self, job: TrainingJob, checkpoints: Checkpoints, watch: Watch) -> Iterator[EpochResult]:
        """Fit, and answer for the validation images; see `Learner`."""
        config, num_classes = classical_of(job), len(job.store.classes)
        with watch.stopwatch.measure(TimePart.PREFIX):
            tables = feature_tables(job)
        watch.note_progress()
        started = time.perf_counter()
        with watch.stopwatch.measure(TimePart.STEP):
            estimator = fitted_estimator(config, tables.train_NF, job.train.labels_N, seed=job.trial_seed)
        watch.note_progress()
        fitted = time.perf_counter()
        with watch.stopwatch.measure(TimePart.EVALUATION):
            logits_NK = logits_of(estimator, tables.validation_NF, num_classes=num_classes)
        answered = time.perf_counter()
        train_loss = _loss(logits_of(estimator, tables.train_NF, num_classes=num_classes), job.train, "training")
        val_loss = _loss(logits_NK, job.validation, "validation")
        confusion_KK = confusion_matrix(job.validation.labels_N, np.asarray(logits_NK.argmax(dim=1)), num_classes=num_classes)
        measured = measured_on_validation(Judged(confusion_KK=confusion_KK, classes=job.store.classes, loss=val_loss))
        score = selection_score(measured, select_by=job.run.select_by)
        job.check_images()  # the labels too
        tensors = {f"statistics.{name}": tensor for name, tensor in tables.statistics.items()}
        tensors[_ESTIMATOR] = as_tensor(estimator)
        with watch.stopwatch.measure(TimePart.CHECKPOINT):
            frozen = checkpoints.frozen_parts.keep(tables.frozen) if tables.frozen else None
            checkpoints.save_best(Checkpoint(tensors=tensors, state={"epoch": 1, "score": score, FROZEN: frozen}))
        yield EpochResult(
            epoch=1,
            train_loss=train_loss,
            validation=measured,
            selection_score=score,
            epoch_seconds=fitted - started,
            validation_seconds=answered - fitted,
            images_per_second=len(job.train.labels_N) / (fitted - started),
            learning_rate=None,
            best_epoch=1,
            best_score=score,
            stop_reason="fitted",
            prefix_seconds=tables.seconds,
            kept_logits_NK=logits_NK,
            seconds_by_part=watch.stopwatch.take(),
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
    ) -> "ClassicalAnswering":
        """Read the estimator back; see `Learner`."""
        config, num_classes = config_of(trial), len(classes)
        if _ESTIMATOR not in kept.best.tensors:
            raise DamagedCheckpointError("The checkpoint 'best' is another learner's.")
        count = num_features(config, num_classes=num_classes, image_size=run.image_size)
        return ClassicalAnswering(
            estimator=from_tensor(kept.best.tensors[_ESTIMATOR], config, num_features=count, num_classes=num_classes),
            extractor=FeatureExtractor.of_kept(kept, trial, run, pixels=pixels, num_classes=num_classes, device=device),
            classes=classes,
        )

    def facts(self, trial: TrialConfig, setting: Setting) -> ModelFacts:
        """Count the backbone, and what a regression trains; of a machine or a forest, whose size the data decide, nothing."""
        config = config_of(trial)
        prefix_params, prefix_work, count = _counted(config, setting)
        own = (_prepared(config, count) + 1) * (setting.num_classes if setting.num_classes > 2 else 1)
        trained = own if isinstance(config, LogisticConfig) else None
        return {
            "total_params": None if trained is None else prefix_params + trained,
            "trainable_params": trained,
            "mult_adds": prefix_work + trained if trained is not None else None,
        }

    def work(self, trial: TrialConfig, setting: Setting) -> int:
        """Foresee: the backbone once, and a fit whose length only the data know."""
        _, prefix_work, count = _counted(config_of(trial), setting)
        return prefix_work + _PASSES_OF_A_FIT * count

    def step_work(self, trial: TrialConfig, setting: Setting) -> int:
        """Foresee; see `Learner`."""
        return self.work(trial, setting)

    def epoch_work(self, trial: TrialConfig, setting: Setting) -> int:  # noqa: ARG002 - alike for all
        """Foresee the same for every trial: its time hangs on the data, and on who computed the features before."""
        return _WORK_OF_A_FIT

    def shares(self, trial: TrialConfig, setting: Setting) -> tuple[Hashable, ...]:  # noqa: ARG002 - one protocol alone
        """Name the features; those of a backbone are the ones that networks of the same depth train on."""
        config = config_of(trial)
        if config.starts_from is not None:
            return config.starts_from, config.frozen_blocks, trial.input, trial.precision, "none"
        return config.features, config.hog_cell, config.hog_orientations, config.pixel_side, trial.input

    def features_job(self, job: TrainingJob) -> TrainingJob | None:
        """Name the backbone's job."""
        return None if classical_of(job).starts_from is None else backbone_job(job)

    def checkpoint_bytes(self, trial: TrialConfig, setting: Setting) -> CheckpointBytes:
        """Count about; how many images a machine or a forest keeps, only the data decide."""
        config = config_of(trial)
        count = _counted(config, setting)[2]
        rows = {LogisticConfig: setting.num_classes, ForestConfig: 0}.get(type(config), _TYPICAL_SUPPORT)
        numbers = _prepared(config, count) * rows + count * (2 + config.components)
        trees = config.num_trees * _BYTES_OF_A_TREE if isinstance(config, ForestConfig) else 0
        return CheckpointBytes(best=_BYTES_OF_A_NUMBER * numbers + trees, last=0)

    def frozen_bytes(self, network: ModelConfig, setting: Setting) -> int:
        """Count the backbone's, which is that of the network of the same depth."""
        if not isinstance(network, ClassicalConfig) or network.starts_from is None:
            return 0
        outline = backbone_outline(network, num_classes=setting.num_classes, image_size=setting.image_size)
        return sum(tensor.numel() * tensor.element_size() for tensor in frozen_state(outline).values())


@dataclass(frozen=True, kw_only=True)
class ClassicalAnswering:
    """A fitted estimator that answers for images; see `Answering`."""

    estimator: Pipeline
    """Scaler, projection, classifier."""
    extractor: FeatureExtractor
    """The way to its features."""
    classes: tuple[str, ...]
    """Class names, in the order of its answers."""

    def answer(self, images: Pixels) -> npt.NDArray[np.float64]:
        """Give probabilities_NK for images."""
        return probabilities_of(logits_of(self.estimator, self.extractor.rows(images), num_classes=len(self.classes)))


def _prepared(config: ClassicalConfig, count: int) -> int:
    return min(config.components, count) or count


@lru_cache(maxsize=1024)
def _counted(config: ClassicalConfig, setting: Setting) -> tuple[int, int, int]:
    """Count the backbone's parameters and multiply-adds, 0 without one, and the features."""
    count = num_features(config, num_classes=setting.num_classes, image_size=setting.image_size)
    if config.starts_from is None:
        return 0, 0, count
    outline = backbone_outline(config, num_classes=setting.num_classes, image_size=setting.image_size)
    return count_parameters(outline.prefix).total, prefix_mult_adds(outline, setting.image_size), count


def _loss(logits_NK: Tensor, part: Part, which: str) -> float:
    loss = loss_of("strict", label_smoothing=0.0)(logits_NK, torch.from_numpy(part.labels_N)).item()
    if not np.isfinite(loss):
        raise DivergedError(f"The {which} loss is {loss}.")
    return float(loss)
