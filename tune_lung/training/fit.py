"""Train one trial, epoch by epoch.

Shapes: N images, K classes, C channels, H rows, W columns.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from tune_lung.config import ResNetConfig, RunConfig, TrialConfig
from tune_lung.data.batches import epoch_batches
from tune_lung.data.store import Part, PixelStore
from tune_lung.evaluation.metrics import confusion_matrix, macro_recall, micro_recall
from tune_lung.evaluation.predictions import input_batches, predict_logits
from tune_lung.models.freezing import set_prefix_statistics
from tune_lung.models.inputs import InputTransform
from tune_lung.models.network import Network, build_network, trainable_parameters
from tune_lung.models.precision import autocast
from tune_lung.models.weights import WeightsSource
from tune_lung.randomness import derive_seed
from tune_lung.training.augmentation import AUGMENTERS
from tune_lung.training.checkpoints import Checkpoint, Checkpoints
from tune_lung.training.early_stopping import EarlyStopping
from tune_lung.training.loss import Loss, loss_of
from tune_lung.training.selection import selection_score

_SGD_MOMENTUM = 0.9
_SECONDS_BETWEEN_LAST = 30.0
_VALIDATION_BATCH_SIZE = 128


class DivergedError(Exception):
    """A loss became infinite or not a number; the text says which and when."""


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
    """Where a ResNet's backbone starts; None for the CNN."""
    trial_seed: int
    """Root of this trial's draws: batches, augmentation."""
    network_seed: int
    """Root of the network's random start, shared by the trials of one model and repeat."""
    device: torch.device
    """Where to compute."""

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


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """What one epoch showed."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    """Mean of the batch means, in nats."""
    val_loss: float
    """Strict: mean over images; published: mean of the batch means, as the program did."""
    val_macro_recall: float
    """Mean of the class recalls, 0 to 1."""
    val_micro_recall: float
    """Share of images answered right, 0 to 1."""
    selection_score: float
    """The number that decides; higher is better."""
    epoch_seconds: float
    """Time of the training pass alone."""
    validation_seconds: float
    """Time of the validation pass."""
    images_per_second: float
    """Training images a second."""
    learning_rate: float
    """Step size of this epoch."""
    best_epoch: int
    """Best epoch so far."""
    best_score: float
    """Its selection score."""
    stop_reason: Literal["patience", "max_epochs"] | None
    """Why the trial ends with this epoch; None when it goes on."""
    val_logits_NK: Tensor
    """The network's answers for the validation images."""

    @property
    def is_best(self) -> bool:
        """Whether this epoch is the best so far."""
        return self.epoch == self.best_epoch


def fit(job: TrainingJob, checkpoints: Checkpoints) -> Iterator[EpochResult]:
    """Train a trial to its early stop, from its newest checkpoint where there is one.

    The best epoch's network is saved at once; the state to go on from at the end and at most every 30 s.

    Args:
        job: The trial.
        checkpoints: Its folder.

    Yields:
        Each epoch's result, the last one with a stop reason.

    Raises:
        DivergedError: A training or validation loss is not finite.
    """
    trial, transform = job.trial, job.transform()
    train, validation = job.store.part("train"), job.store.part("validation")
    network = job.build_network()
    optimizer = _optimizer(trial, network)
    loss_of_batch = loss_of(job.run.protocol, label_smoothing=trial.label_smoothing)
    stopping = EarlyStopping(patience=trial.patience)
    done = _resume(checkpoints, network, optimizer, stopping)
    if done == 0:
        _settle_prefix(job, network, train, transform)
    saved_at = time.monotonic()

    for epoch in range(done + 1, trial.max_epochs + 1):
        learning_rate = _set_learning_rate(optimizer, trial, epoch)
        started = time.perf_counter()
        train_loss = _train_epoch(job, network, optimizer, loss_of_batch, train, transform, epoch)
        trained = time.perf_counter()
        logits_NK = predict_logits(
            network, validation, transform, batch_size=_VALIDATION_BATCH_SIZE, device=job.device, precision=trial.precision
        )
        val_loss = _validation_loss(job, logits_NK, torch.from_numpy(validation.labels_N), epoch)
        recalls = _recalls(logits_NK, validation, num_classes=len(job.store.classes))
        validated = time.perf_counter()

        score = selection_score(val_loss=val_loss, select_by=job.run.select_by, **recalls)
        if stopping.is_best(epoch, score):
            checkpoints.save_best(Checkpoint(tensors=_named("network", network), state={"epoch": epoch, "score": score}))
        stop_reason = _stop_reason(trial, stopping, epoch)
        if stop_reason or time.monotonic() - saved_at >= _SECONDS_BETWEEN_LAST:
            checkpoints.save_last(_snapshot(network, optimizer, stopping, epoch))
            saved_at = time.monotonic()
        yield EpochResult(
            epoch=epoch,
            train_loss=train_loss,
            val_loss=val_loss,
            **recalls,
            selection_score=score,
            epoch_seconds=trained - started,
            validation_seconds=validated - trained,
            images_per_second=len(train.labels_N) / (trained - started),
            learning_rate=learning_rate,
            best_epoch=stopping.best_epoch,
            best_score=stopping.best_score,
            stop_reason=stop_reason,
            val_logits_NK=logits_NK,
        )
        if stop_reason:
            return


def _train_epoch(
    job: TrainingJob,
    network: Network,
    optimizer: Optimizer,
    loss_of_batch: Loss,
    train: Part,
    transform: InputTransform,
    epoch: int,
) -> float:
    trial = job.trial
    batches = epoch_batches(
        train.labels_N,
        batch_size=trial.batch_size,
        sampling=trial.batch_sampling,
        seed=derive_seed(job.trial_seed, "batches", epoch),
    )
    augmenter = AUGMENTERS.get(trial.augmentation)
    augmentation_draws = torch.Generator().manual_seed(derive_seed(job.trial_seed, "augmentation", epoch))
    labels_N = torch.from_numpy(train.labels_N)
    masks_NHW = train.masks_NHW if trial.input != "full" else None
    network.train()
    losses = []
    for indices in batches:
        chosen = indices.numpy()
        images_N1HW = transform.brightness(train.pixels_NHW[chosen], None if masks_NHW is None else masks_NHW[chosen], job.device)
        if augmenter is not None:
            images_N1HW = augmenter(images_N1HW, augmentation_draws)
        with autocast(job.device, trial.precision):
            logits_NK = network(transform.normalise(images_N1HW))
        loss = loss_of_batch(logits_NK.float(), labels_N[indices].to(job.device, non_blocking=True))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    return _finite(torch.stack(losses).mean().item(), "training", epoch)


def _optimizer(trial: TrialConfig, network: Network) -> Optimizer:
    parameters = trainable_parameters(network)
    decay = trial.weight_decay
    if trial.optimizer == "sgd":
        return SGD(parameters, lr=trial.learning_rate, momentum=_SGD_MOMENTUM, weight_decay=decay)
    kind = Adam if trial.optimizer == "adam" else AdamW
    return kind(parameters, lr=trial.learning_rate, weight_decay=decay, fused=True)


def _set_learning_rate(optimizer: Optimizer, trial: TrialConfig, epoch: int) -> float:
    share = 1.0
    if trial.learning_rate_schedule == "cosine":
        share = (1 + math.cos(math.pi * (epoch - 1) / trial.max_epochs)) / 2
    for group in optimizer.param_groups:
        group["lr"] = trial.learning_rate * share
    return trial.learning_rate * share


def _settle_prefix(job: TrainingJob, network: Network, train: Part, transform: InputTransform) -> None:
    """Set the batch-norm statistics of a frozen random prefix: left as they start, its features explode."""
    config = job.trial.network
    is_random = job.weights is not None and job.weights.kind == "random"
    if isinstance(config, ResNetConfig) and config.frozen_blocks and is_random and job.run.protocol == "strict":
        batches = input_batches(train, transform, batch_size=_VALIDATION_BATCH_SIZE, device=job.device)
        set_prefix_statistics(network, batches)


def _validation_loss(job: TrainingJob, logits_NK: Tensor, labels_N: Tensor, epoch: int) -> float:
    loss_of_batch = loss_of(job.run.protocol, label_smoothing=0.0)
    if job.run.protocol == "strict":
        return _finite(loss_of_batch(logits_NK, labels_N).item(), "validation", epoch)
    size = job.trial.batch_size
    means = [
        loss_of_batch(logits_NK[start : start + size], labels_N[start : start + size]) for start in range(0, len(labels_N), size)
    ]
    return _finite(torch.stack(means).mean().item(), "validation", epoch)


def _recalls(logits_NK: Tensor, part: Part, *, num_classes: int) -> dict[str, float]:
    answers_N = np.asarray(logits_NK.argmax(dim=1))
    confusion_KK = confusion_matrix(part.labels_N, answers_N, num_classes=num_classes)
    return {"val_macro_recall": macro_recall(confusion_KK), "val_micro_recall": micro_recall(confusion_KK)}


def _finite(loss: float, which: str, epoch: int) -> float:
    if not math.isfinite(loss):
        raise DivergedError(f"The {which} loss is {loss} at epoch {epoch}.")
    return loss


def _stop_reason(trial: TrialConfig, stopping: EarlyStopping, epoch: int) -> Literal["patience", "max_epochs"] | None:
    if stopping.is_spent(epoch):
        return "patience"
    return "max_epochs" if epoch == trial.max_epochs else None


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Copy an optimizer's tensor into its parameter's memory format: fused optimizers walk both as they lie in memory."""
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor


def _named(prefix: str, network: Network) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in network.state_dict().items()}


def _snapshot(network: Network, optimizer: Optimizer, stopping: EarlyStopping, epoch: int) -> Checkpoint:
    memory = optimizer.state_dict()["state"]
    tensors = {f"optimizer.{index}.{name}": value for index, values in memory.items() for name, value in values.items()}
    counters = {"epoch": epoch, "best_epoch": stopping.best_epoch, "best_score": stopping.best_score}
    return Checkpoint(tensors=_named("network", network) | tensors, state=counters)


def _resume(checkpoints: Checkpoints, network: Network, optimizer: Optimizer, stopping: EarlyStopping) -> int:
    """Load the newest state into network, optimizer and counters; return the epochs done, 0 without a checkpoint."""
    checkpoint = checkpoints.newest()
    if checkpoint is None:
        return 0
    network.load_state_dict(checkpoint.part("network"))
    parameters = trainable_parameters(network)
    memory: dict[int, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.part("optimizer").items():
        index, _, name = key.partition(".")
        memory.setdefault(int(index), {})[name] = _laid_out_as(parameters[int(index)], tensor)
    optimizer.load_state_dict({"state": memory, "param_groups": optimizer.state_dict()["param_groups"]})
    stopping.best_epoch = checkpoint.state["best_epoch"]
    stopping.best_score = checkpoint.state["best_score"]
    return int(checkpoint.state["epoch"])
