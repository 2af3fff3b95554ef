"""Train one trial, epoch by epoch.

Shapes: N images, K classes.
"""

import math
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from tune_lung.config import TrialConfig
from tune_lung.data.batches import epoch_batches
from tune_lung.evaluation.confusion import confusion_matrix
from tune_lung.evaluation.predictions import predict_logits
from tune_lung.metrics import Judged, columns_on_validation, measured_on_validation
from tune_lung.models.draws import drawn_from
from tune_lung.models.network import Network, changing_state, frozen_state, load_changing_state, trainable_parameters
from tune_lung.models.precision import autocast
from tune_lung.models.transfer import to_device
from tune_lung.randomness import derive_seed
from tune_lung.results.schema import TimePart
from tune_lung.shapes import built_from_json, require_shape
from tune_lung.training.batch_sources import Inputs, open_inputs
from tune_lung.training.checkpoints import FROZEN, Checkpoint, Checkpoints
from tune_lung.training.early_stopping import EarlyStopping
from tune_lung.training.job import TrainingJob
from tune_lung.training.loss import loss_of
from tune_lung.training.selection import selection_score
from tune_lung.training.stopwatch import StoppedStopwatch, Stopwatch

SECONDS_BETWEEN_LAST = 30.0
"""Least time from one saved state to go on from to the next."""

_SGD_MOMENTUM = 0.9
_MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1}
"""Numbers that each optimizer keeps for every number it trains."""

TrialEnd: TypeAlias = Literal["patience", "max_epochs", "fitted", "time"]
"""Why a trial ends by itself; `fitted` is what has no epochs."""

_VALIDATION_LOGITS = "validation.logits"


class DivergedError(Exception):
    """A loss became infinite or not a number; the text says which and when."""


@dataclass(frozen=True, kw_only=True)
class EpochNumbers:
    """What one epoch showed, in plain numbers; a checkpoint keeps those of every epoch before it."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    """Mean of the batch means, in nats."""
    validation: Mapping[str, float]
    """What was measured on validation, by column, as `tune_lung.metrics` declares it; without what is not defined, and without
    what an older version did not measure. `val_loss` is the mean over images or, published, of the batch means, as the
    program did."""
    selection_score: float
    """The number that decides; higher is better."""
    epoch_seconds: float
    """Time of the training pass alone."""
    validation_seconds: float
    """Time of the validation pass."""
    images_per_second: float
    """Training images a second."""
    learning_rate: float | None
    """Step size of this epoch; None where there is none."""
    best_epoch: int
    """Best epoch so far."""
    best_score: float
    """Its selection score."""
    stop_reason: TrialEnd | None
    """Why the trial ends with this epoch; None when it goes on."""
    prefix_seconds: float | None
    """What computing the frozen prefix's features took, once; None where they were not kept."""

    def columns(self) -> dict[str, Any]:
        """Lay everything out flat, what was measured on validation among the rest."""
        return {name: value for name, value in vars(self).items() if name != "validation"} | dict(self.validation)


@dataclass(frozen=True, kw_only=True)
class EpochResult(EpochNumbers):
    """What one epoch showed, and what else is told with it, once."""

    kept_logits_NK: Tensor | None
    """The best network's answers for the validation images, where its checkpoint was written, or found, since the result
    before; else None."""
    seconds_by_part: dict[TimePart, float]
    """Where the time since the result before went; empty without a stopwatch."""
    damaged_checkpoints: tuple[str, ...] = ()
    """Checkpoints that were passed over when the trial went on, such as `last`; told with its first result."""
    is_told_again: bool = False
    """Whether the epoch was trained before the trial went on."""

    def numbers(self) -> EpochNumbers:
        """Return what is kept with the state to go on from, and told again after a kill; all else is told once."""
        return EpochNumbers(**{field.name: getattr(self, field.name) for field in fields(EpochNumbers)})


_HISTORY = TypeAdapter(list[EpochNumbers])
_ROWS = TypeAdapter(list[dict[str, Any]])


def _never() -> bool:
    """Say no."""
    return False


def _unheard() -> None:
    """Tell nobody."""


def fit(
    job: TrainingJob,
    checkpoints: Checkpoints,
    *,
    rungs: Container[int] = (),
    known_epochs: int = 0,
    is_out_of_time: Callable[[], bool] = _never,
    note_progress: Callable[[], None] = _unheard,
    stopwatch: Stopwatch | None = None,
) -> Iterator[EpochResult]:
    """Train a trial to its early stop, from its newest checkpoint where there is one.

    The best epoch's network and the state to go on from are saved together: at rungs, at the end and at most every 30 s.

    Args:
        job: The trial.
        checkpoints: Its folder.
        rungs: Epochs at which trials are compared.
        known_epochs: Epochs whose results the caller has from before a kill. Of those that the checkpoint knows beside them
            the results are given again, and those that it does not know are trained again.
        is_out_of_time: Asked after each epoch; the trial ends with the first one that it says yes to.
        note_progress: Called after each batch of training.
        stopwatch: Takes the time of each part; None takes none.

    Yields:
        Each epoch's result, the last one with a stop reason.

    Raises:
        DivergedError: A training or validation loss is not finite.
        InputError: Stored images or features are damaged, or changed while they were read; no epoch that read them was given.
    """
    stopwatch = stopwatch or StoppedStopwatch()
    with stopwatch.measure(TimePart.START):
        state = _start_or_resume(job, checkpoints)
    for result in _results_again(state, job.trial, known_epochs):
        yield result
        if result.stop_reason:
            return
    with stopwatch.measure(TimePart.PREFIX):
        inputs = open_inputs(job, state.network, is_resumed=state.epochs_done > 0)
    saved_at = time.monotonic()
    for epoch in range(state.epochs_done + 1, job.trial.max_epochs + 1):
        learning_rate = _set_learning_rate(state.optimizer, job.trial, epoch)
        with _of_unchanged(inputs):
            started = time.perf_counter()
            train_loss = _train_epoch(job, inputs, state.optimizer, epoch, note_progress, stopwatch)
            trained = time.perf_counter()
            with stopwatch.measure(TimePart.EVALUATION):
                validation = _validate(job, inputs, epoch)
            validated = time.perf_counter()

        if state.stopping.is_best(epoch, validation.score):
            with stopwatch.measure(TimePart.CHECKPOINT):
                state.unsaved_best = _answering(state.network, epoch, validation)
        stop_reason = _stop_reason(job.trial, state.stopping, epoch) or ("time" if is_out_of_time() else None)
        result = EpochResult(
            epoch=epoch,
            train_loss=train_loss,
            validation=validation.measured,
            selection_score=validation.score,
            epoch_seconds=trained - started,
            validation_seconds=validated - trained,
            images_per_second=len(job.train.labels_N) / (trained - started),
            learning_rate=learning_rate,
            best_epoch=state.stopping.best_epoch,
            best_score=state.stopping.best_score,
            stop_reason=stop_reason,
            prefix_seconds=inputs.prefix_seconds,
            kept_logits_NK=state.take_found_logits(),
            seconds_by_part={},
            damaged_checkpoints=state.take_damaged(),
        )
        state.history.append(result.numbers())
        if stop_reason or epoch in rungs or time.monotonic() - saved_at >= SECONDS_BETWEEN_LAST:
            with stopwatch.measure(TimePart.CHECKPOINT):
                kept = _save(state, checkpoints, epoch)
            result = result if kept is None else replace(result, kept_logits_NK=kept)
            saved_at = time.monotonic()
        yield replace(result, seconds_by_part=stopwatch.take())
        if stop_reason:
            return


@contextmanager
def _of_unchanged(inputs: Inputs) -> Iterator[None]:
    """Let an epoch's numbers, or what failed in it, count only if all that it read was right; nothing of it is kept before."""
    try:
        yield
    except Exception:
        inputs.check()
        raise
    inputs.check()


@dataclass
class _State:
    """What changes while a trial is trained."""

    network: Network
    optimizer: Optimizer
    stopping: EarlyStopping
    epochs_done: int = 0
    history: list[EpochNumbers] = field(default_factory=list)
    """Of every epoch."""
    unsaved_best: Checkpoint | None = None
    """The best epoch's network while its file is not written yet."""
    found_logits_NK: Tensor | None = None
    """What the best network of a resumed trial answered, until it is told."""
    damaged: tuple[str, ...] = ()
    """Checkpoints that were passed over, until it is told."""
    named: dict[str, str | None] = field(default_factory=dict)
    """What the state of a `best` says of the frozen part, once that is kept."""

    def take_found_logits(self) -> Tensor | None:
        """Give the found best network's answers, once."""
        found, self.found_logits_NK = self.found_logits_NK, None
        return found

    def take_damaged(self) -> tuple[str, ...]:
        """Name the checkpoints passed over, once."""
        damaged, self.damaged = self.damaged, ()
        return damaged


def _start_or_resume(job: TrainingJob, checkpoints: Checkpoints) -> _State:
    state, found = _at_its_start(job), checkpoints.newest()
    state.damaged = found.damaged
    # A version that kept no history began its trials anew; a checkpoint of its is passed over.
    if found.state is not None and found.best is not None and "history" in found.state.state:
        try:
            _restore(state, found.state, found.best, job)
        except torch.OutOfMemoryError:
            raise
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError):  # another network's, or another trial's
            state = _at_its_start(job)
            state.damaged = (*found.damaged, checkpoints.last.stem)
        else:
            state.named = {FROZEN: _kept_frozen_part(state.network, checkpoints)}
            checkpoints.name_frozen_part(found.best, state.named[FROZEN])
    return state


def _kept_frozen_part(network: Network, checkpoints: Checkpoints) -> str | None:
    """See that what of a network is frozen is kept, and return its digest; None where nothing is."""
    frozen = frozen_state(network)
    return checkpoints.frozen_parts.keep(frozen) if frozen else None


def _at_its_start(job: TrainingJob) -> _State:
    network = job.build_network()
    return _State(network=network, optimizer=_optimizer(job.trial, network), stopping=EarlyStopping(patience=job.trial.patience))


def _results_again(state: _State, trial: TrialConfig, known_epochs: int) -> Iterator[EpochResult]:
    """Give the results that a checkpoint knows and the caller does not; the last one always, if the trial ends with it."""
    if not state.epochs_done:
        return
    stop_reason = _stop_reason(trial, state.stopping, state.epochs_done)
    first = min(known_epochs + 1, state.epochs_done) if stop_reason else known_epochs + 1
    for numbers in state.history[first - 1 :]:
        ends = {"stop_reason": stop_reason if numbers.epoch == state.epochs_done else None}
        once = {"kept_logits_NK": state.take_found_logits(), "damaged_checkpoints": state.take_damaged()}
        yield EpochResult(**(vars(numbers) | ends | once), seconds_by_part={}, is_told_again=True)


def _save(state: _State, checkpoints: Checkpoints, epoch: int) -> Tensor | None:
    """Save a best network that is not saved yet, then the state that belongs to it.

    Returns:
        What the saved best network answered for the validation images; None where it was saved before.
    """
    best, kept = state.unsaved_best, None
    if best is not None:
        if not state.named:
            state.named = {FROZEN: _kept_frozen_part(state.network, checkpoints)}
        checkpoints.save_best(replace(best, state={**best.state, **state.named}))
        kept, state.unsaved_best = best.tensors[_VALIDATION_LOGITS], None
    checkpoints.save_last(_snapshot(state, epoch))
    return kept


def _train_epoch(
    job: TrainingJob,
    inputs: Inputs,
    optimizer: Optimizer,
    epoch: int,
    note_progress: Callable[[], None],
    stopwatch: Stopwatch,
) -> float:
    trial, labels_N = job.trial, job.train.labels_N
    loss_of_batch = loss_of(job.run.protocol, label_smoothing=trial.label_smoothing)
    with stopwatch.measure(TimePart.STORE):
        batches = epoch_batches(
            labels_N,
            batch_size=trial.batch_size,
            sampling=trial.batch_sampling,
            seed=derive_seed(job.trial_seed, "batches", epoch),
        )
    augmentation_draws = torch.Generator().manual_seed(derive_seed(job.trial_seed, "augmentation", epoch))
    inputs.module.train()
    losses = []
    with drawn_from(derive_seed(job.trial_seed, "dropout", epoch), job.device):
        for indices in batches:
            with stopwatch.measure(TimePart.STORE):
                batch = inputs.train_batch(indices, augmentation_draws)
                labels_of_batch_N = inputs.train_labels_N[to_device(indices, job.device)]
            with stopwatch.measure(TimePart.STEP):
                with autocast(job.device, trial.precision):
                    logits_NK = inputs.module(batch)
                loss = loss_of_batch(logits_NK.float(), labels_of_batch_N)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(loss.detach())
            note_progress()
    return _finite(torch.stack(losses).mean().item(), "training", epoch)


class _Validation(NamedTuple):
    """One pass over the validation images."""

    logits_NK: Tensor
    measured: dict[str, float]
    score: float


def _validate(job: TrainingJob, inputs: Inputs, epoch: int) -> _Validation:
    logits_NK = predict_logits(inputs.module, inputs.validation_batches(), device=job.device, precision=job.trial.precision)
    labels_N = job.validation.labels_N
    loss = _validation_loss(job, logits_NK, torch.from_numpy(labels_N), epoch)
    confusion_KK = confusion_matrix(labels_N, np.asarray(logits_NK.argmax(dim=1)), num_classes=len(job.store.classes))
    measured = measured_on_validation(Judged(confusion_KK=confusion_KK, classes=job.store.classes, loss=loss))
    return _Validation(logits_NK=logits_NK, measured=measured, score=selection_score(measured, select_by=job.run.select_by))


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


def _validation_loss(job: TrainingJob, logits_NK: Tensor, labels_N: Tensor, epoch: int) -> float:
    loss_of_batch = loss_of(job.run.protocol, label_smoothing=0.0)
    if job.run.protocol == "strict":
        return _finite(loss_of_batch(logits_NK, labels_N).item(), "validation", epoch)
    size = job.trial.batch_size
    means = [
        loss_of_batch(logits_NK[start : start + size], labels_N[start : start + size]) for start in range(0, len(labels_N), size)
    ]
    return _finite(torch.stack(means).mean().item(), "validation", epoch)


def _finite(loss: float, which: str, epoch: int) -> float:
    if not math.isfinite(loss):
        raise DivergedError(f"The {which} loss is {loss} at epoch {epoch}.")
    return loss


def _stop_reason(trial: TrialConfig, stopping: EarlyStopping, epoch: int) -> TrialEnd | None:
    if stopping.is_spent(epoch):
        return "patience"
    return "max_epochs" if epoch >= trial.max_epochs else None


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Copy an optimizer's tensor into its parameter's memory format: fused optimizers walk both as they lie in memory."""
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor


def _named(prefix: str, network: Network) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in changing_state(network).items()}


def _answering(network: Network, epoch: int, validation: _Validation) -> Checkpoint:
    """Keep what answers: a copy of the network's part that training changes, and its answers."""
    tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in _named("network", network).items()}
    tensors[_VALIDATION_LOGITS] = validation.logits_NK
    return Checkpoint(tensors=tensors, state={"epoch": epoch, "score": validation.score})


def _snapshot(state: _State, epoch: int) -> Checkpoint:
    """Keep all that training goes on from."""
    memory = state.optimizer.state_dict()["state"]
    tensors = {f"optimizer.{index}.{name}": value for index, values in memory.items() for name, value in values.items()}
    counters = {"epoch": epoch, "best_epoch": state.stopping.best_epoch, "best_score": state.stopping.best_score}
    history = [numbers.columns() for numbers in state.history]
    return Checkpoint(tensors=_named("network", state.network) | tensors, state={**counters, "history": history})


def checkpoint_bytes(optimizer: str, network: Network) -> tuple[int, int]:
    """Count the bytes of the tensors in a trial's `best` and in its `last` checkpoint.

    Args:
        optimizer: Its name.
        network: The trial's network, or an outline of it.
    """
    best = sum(tensor.numel() * tensor.element_size() for tensor in changing_state(network).values())
    trained = sum(parameter.numel() * parameter.element_size() for parameter in trainable_parameters(network))
    return best, best + _MOMENTS[optimizer] * trained


def _restore(state: _State, checkpoint: Checkpoint, best: Checkpoint, job: TrainingJob) -> None:
    """Bring a trial at its start to where a checkpoint has it.

    Raises:
        ValueError: It is no checkpoint of this trial; as do an IndexError, a KeyError, a RuntimeError and a TypeError.
    """
    load_changing_state(state.network, checkpoint.part("network"))
    parameters = trainable_parameters(state.network)
    memory: dict[int, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.part("optimizer").items():
        index, _, name = key.partition(".")
        if tensor.shape not in (parameters[int(index)].shape, torch.Size([])):
            raise ValueError("Its optimizer is another network's.")
        memory.setdefault(int(index), {})[name] = _laid_out_as(parameters[int(index)], tensor)
    state.optimizer.load_state_dict({"state": memory, "param_groups": state.optimizer.state_dict()["param_groups"]})
    state.stopping.best_epoch = checkpoint.state["best_epoch"]
    state.stopping.best_score = checkpoint.state["best_score"]
    state.epochs_done = int(checkpoint.state["epoch"])
    state.history = _history_of(checkpoint.state["history"], job.store.classes)
    if [numbers.epoch for numbers in state.history] != list(range(1, state.epochs_done + 1)):
        raise ValueError("Its history is not that of its epochs.")
    state.found_logits_NK = best.tensors[_VALIDATION_LOGITS]
    if state.found_logits_NK.shape != (len(job.validation.labels_N), len(job.store.classes)):
        raise ValueError("Its answers are not for these images.")


def _history_of(content: object, classes: Sequence[str]) -> list[EpochNumbers]:
    """Read back what `EpochNumbers.columns` laid out; metrics that an older version did not measure are missing.

    Raises:
        WrongShapeError: It is something else.
    """
    columns = columns_on_validation(classes)
    return built_from_json(
        _HISTORY,
        [row | {"validation": {name: row[name] for name in columns if name in row}} for row in require_shape(_ROWS, content)],
    )
