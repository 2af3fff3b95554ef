"""What a trial costs: each kind of trial is trained for a few real steps, as the search would train it.

A probe is the learner's own `fit` on a few images, in a Ray task with a trial's resources, while as many tasks run as the
search will run trials. What it writes lies in the cache for as long as it runs.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import ray
import torch

from tune_lung.config import TrialConfig
from tune_lung.data.cache import Cache
from tune_lung.data.store import OpenPart, Part, PixelStore
from tune_lung.errors import InputError
from tune_lung.evaluation.predictions import predictions_frame, stored_tensors
from tune_lung.families.family import PointValue
from tune_lung.learners.kept import KeptModel
from tune_lung.learners.learner import Setting, Watch
from tune_lung.learners.registry import learner_of
from tune_lung.results.schema import FailureKind
from tune_lung.space import Cell
from tune_lung.training.batch_sources import bytes_kept_on_gpu
from tune_lung.training.checkpoints import Checkpoint, Checkpoints
from tune_lung.training.fit import EpochResult
from tune_lung.training.job import TrainingJob
from tune_lung.training.prefix_features import features_bytes, features_key, has_features, has_room_for_features, settle_prefix
from tune_lung.tuning.cluster import task_options
from tune_lung.tuning.device import GPU_CONTEXT_BYTES, claim_device, peak_memory_bytes
from tune_lung.tuning.failures import kind_of, line_of, text_of
from tune_lung.tuning.forecasting.forecast import TrialCost
from tune_lung.tuning.plan import SearchSetup

_EPOCHS = 3
"""Passes over the few images; the first warms up and is not counted."""
_LEAST_IMAGES = 64
_LEAST_STEPS = {"cpu": 1, "cuda": 8}
"""Steps of a pass; a GPU is measured only where the next step waits for the one before."""


@dataclass(frozen=True, kw_only=True)
class ProbeRequest:
    """One kind of trial to measure."""

    cell: str
    """Name of a cell that has such trials."""
    point: Mapping[str, PointValue]
    """What is trained."""
    repeats: int
    """Repeats of each point; each may have features of its own."""


def workload_of(trial: TrialConfig) -> TrialConfig:
    """Strip a trial of what plays no part in its cost: trials with the same workload take the same time and memory."""
    return trial.with_fields(
        learning_rate=1e-6,  # nothing diverges in a few steps
        learning_rate_schedule="constant",
        weight_decay=0.0,
        label_smoothing=0.0,
        max_epochs=_EPOCHS,
        patience=_EPOCHS,
    )


def largest_point(cell: Cell, *, image_size: int) -> dict[str, PointValue]:
    """Pick, among a cell's points at the ends of its axes, the one with the most work in a training step."""
    return max(cell.probes(), key=lambda point: work_of(TrialConfig.from_point(point), image_size=image_size))


def work_of(trial: TrialConfig, *, image_size: int) -> tuple[int, int, bool]:
    """Put a trial's training step in an order by its work: multiply-adds first, then what is not frozen, then augmentation."""
    network = trial.network
    setting = Setting(protocol="strict", num_classes=2, image_size=image_size)
    return learner_of(network.model).step_work(trial, setting), -network.frozen_blocks, trial.augmentation != "none"


def probe(
    requests: Sequence[ProbeRequest], setup: SearchSetup, *, slots: int, progress: Callable[[int], None]
) -> tuple[list[TrialCost], float]:
    """Measure every kind of trial once, each while all slots are busy.

    Args:
        requests: The kinds, those with most work first, so that the last ones run together.
        setup: What all trials share; its run's folder is not touched.
        slots: Tasks at once.
        progress: Told how many kinds are measured.

    Returns:
        The costs in the order of the requests; seconds from asking for a worker to its first line of work.

    Raises:
        InputError: A trial does not fit into memory.
    """
    started = time.monotonic()
    shared = ray.put(setup)
    options = task_options(cpus=setup.cpus_per_trial, gpus=setup.gpus_per_trial)
    begin, measure = ray.remote(**options)(begin_work), ray.remote(**options)(measure_trial)
    for begun in [begin.remote(shared) for _ in range(slots)]:
        _result_of(begun, slots)
    worker_seconds = time.monotonic() - started

    waiting, filler = deque(range(len(requests))), len(requests) - 1
    running: dict[Any, int] = {}
    costs: dict[int, TrialCost] = {}
    while len(costs) < len(requests):
        while len(running) < slots:
            number = waiting.popleft() if waiting else filler  # the one with least work again, only to keep the slot busy
            running[measure.remote(requests[number], shared)] = number
        (done,), _ = ray.wait(list(running), num_returns=1)
        costs.setdefault(running.pop(done), _result_of(done, slots))
        progress(len(costs))
    ray.wait(list(running), num_returns=max(1, len(running)))  # they tidy up after themselves
    return [costs[number] for number in range(len(requests))], worker_seconds


def begin_work(setup: SearchSetup) -> None:
    """Do in a new worker what comes before any trial."""
    claim_device(cpus=setup.cpus_per_trial, gpus=setup.gpus_per_trial)


def measure_trial(request: ProbeRequest, setup: SearchSetup) -> TrialCost:
    """Measure one kind of trial in this process.

    Raises:
        InputError: It does not fit into memory.
    """
    device = claim_device(cpus=setup.cpus_per_trial, gpus=setup.gpus_per_trial)
    store = setup.open_store()
    plans = [setup.plan_trial(request.cell, request.point, repeat) for repeat in range(request.repeats)]
    with setup.data.open_cache() as cache, cache.workplace() as folder:
        jobs = [setup.training_job(plan, store=store, device=device, cache=cache) for plan in plans]
        try:
            return _measure(jobs, cache, folder)
        except (RuntimeError, MemoryError) as error:
            if kind_of(text_of(error), silent_seconds=0.0, hang_seconds=math.inf) is not FailureKind.OUT_OF_MEMORY:
                raise
            room, share = "this machine's memory", "run fewer trials at once with --max-concurrent"
            if device.type == "cuda":
                room, share = "the GPU's memory", "give each trial more of a GPU with --gpus-per-trial"
            raise InputError(
                f"Trials of cell '{request.cell}' with batch_size {plans[0].trial.batch_size} do not fit into {room}."
                f" Lower batch_size or --image-size, or {share}."
            ) from error


def _result_of(reference: Any, slots: int) -> Any:
    """Wait for what a probe gives.

    Raises:
        InputError: It met what a trial would meet, and the user can mend.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, InputError):
            raise error.cause from error
        text = text_of(error)
        kind = kind_of(text, silent_seconds=0.0, hang_seconds=math.inf)
        if kind is FailureKind.UNFIT_NODE:
            fault = line_of(kind, text).removeprefix(f"{kind}: ").removesuffix(".")
            raise InputError(f"A trial cannot be trained here: {fault}. Mend that.") from error
        if kind in (FailureKind.OUT_OF_MEMORY, FailureKind.LOST_WORKER):
            raise InputError(
                f"A probe's process died, most likely for want of memory: {slots} trials ran at once. Lower --max-concurrent,"
                " batch_size or --image-size."
            ) from error
        raise


@dataclass(frozen=True, kw_only=True)
class _FewImages(PixelStore):
    """A pixel store that shows some images of each part only, spread over all of them: a part may begin with one class."""

    num_shown: int
    """How many."""

    def part(self, name: OpenPart) -> Part:
        """Map some images for training or validation."""
        part = super().part(name)
        return Part(**{own.name: _spread(getattr(part, own.name), self.num_shown) for own in fields(part)})


def _spread(values: Any, count: int) -> Any:
    return None if values is None else values[:: max(1, len(values) // count)][:count]


@dataclass(frozen=True)
class _TimedCheckpoints(Checkpoints):
    """Checkpoints that keep the time."""

    best_seconds: list[float] = field(default_factory=list)
    """What each `best` took."""
    last_seconds: list[float] = field(default_factory=list)
    """What each `last` took."""

    def seconds_of_first(self) -> float:
        """Add up what the first epoch's took."""
        return self.best_seconds[0] + sum(self.last_seconds[:1])

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Replace the best epoch's file."""
        self.best_seconds.append(_seconds(lambda: super(_TimedCheckpoints, self).save_best(checkpoint)))

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Write a new `last`."""
        self.last_seconds.append(_seconds(lambda: super(_TimedCheckpoints, self).save_last(checkpoint)))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _measure(jobs: Sequence[TrainingJob], cache: Cache, folder: Path) -> TrialCost:
    """Train the first repeat's job on a few images, and scale what depends on their number."""
    full = jobs[0]
    learner = learner_of(full.trial.network.model)
    job = _small_job(full, cache, folder)
    checkpoints = _TimedCheckpoints(folder / "checkpoints")
    started = time.perf_counter()
    learner.facts(job.trial, Setting.of(job.run, num_classes=len(job.store.classes)))
    epochs = learner.fit(job, checkpoints, Watch(rungs=range(1, job.trial.max_epochs)))  # saved after every epoch
    first = next(epochs)
    until_first_end = time.perf_counter() - started
    counted = list(epochs) or [first]  # of what has no epochs there is nothing to warm up

    train_share = _num_images(full, "train") / _num_images(job, "train")
    validation_share = _num_images(full, "validation") / _num_images(job, "validation")
    share = _num_images(full, "train", "validation") / _num_images(job, "train", "validation")
    on_gpu, uses_features = job.device.type == "cuda", first.prefix_seconds is not None
    gpu_bytes = torch.cuda.get_device_properties(job.device).total_memory if on_gpu else 0
    features_seconds = first.prefix_seconds or 0.0
    not_start = first.epoch_seconds + first.validation_seconds + checkpoints.seconds_of_first() + features_seconds
    settle_seconds = 0.0 if uses_features else _settle_seconds(job)
    sources = [learner.features_job(each) for each in jobs] if uses_features else [None] * len(jobs)
    return TrialCost(
        start_seconds=max(0.0, until_first_end - not_start) + settle_seconds * (train_share - 1),
        features_seconds=features_seconds * share,
        features_to_build=tuple(None if of is None or has_features(of, cache) else features_key(of) for of in sources),
        features_bytes=0 if sources[0] is None else features_bytes(sources[0]),
        epoch_seconds=fmean(result.epoch_seconds for result in counted) * train_share,
        validation_seconds=fmean(result.validation_seconds for result in counted) * validation_share,
        best_seconds=fmean(checkpoints.best_seconds) + _predictions_seconds(job, first, folder),
        last_seconds=fmean(checkpoints.last_seconds or [0.0]),
        test_seconds=_test_seconds(job, checkpoints, num_images=full.store.num_images["test"]),
        memory_bytes=peak_memory_bytes(),
        gpu_memory_bytes=gpu_bytes_of(
            full,
            job,
            uses_features=uses_features,
            reserved_bytes=torch.cuda.max_memory_reserved(job.device),
            gpu_bytes=gpu_bytes,
        )
        if on_gpu
        else 0,
        gpu_bytes=gpu_bytes,
    )


def gpu_bytes_of(full: TrainingJob, few: TrainingJob, *, uses_features: bool, reserved_bytes: int, gpu_bytes: int) -> int:
    """Count the GPU memory of a trial by what a few images took: all its images, or features, may lie there, and a context.

    Args:
        full: The trial.
        few: The same over a few images.
        uses_features: Whether it trains on features.
        reserved_bytes: Most that torch took for the few.
        gpu_bytes: All memory of the GPU.
    """
    all_kept, few_kept = (
        bytes_kept_on_gpu(_train_bytes(job, uses_features=uses_features), free_bytes=gpu_bytes) for job in (full, few)
    )
    return reserved_bytes + all_kept - few_kept + GPU_CONTEXT_BYTES


def _train_bytes(job: TrainingJob, *, uses_features: bool) -> int:
    """Count the bytes of what batches are taken from: features of the training images, or their pixels and masks."""
    if uses_features:
        return features_bytes(job) * _num_images(job, "train") // _num_images(job, "train", "validation")
    return sum(values.nbytes for values in stored_tensors(job.train, job.transform()) if values is not None)


def _small_job(full: TrainingJob, cache: Cache, folder: Path) -> TrainingJob:
    """Make the same job over a few images, its features, if they would be used, in a cache of its own."""
    num_steps = max(_LEAST_STEPS[full.device.type], -(-_LEAST_IMAGES // full.trial.batch_size))
    few = _FewImages(**vars(full.store), num_shown=num_steps * full.trial.batch_size)
    source = learner_of(full.trial.network.model).features_job(full)
    own = Cache(root=folder, size_bytes=cache.size_bytes) if source is None or has_room_for_features(source, cache) else None
    return replace(full, trial=workload_of(full.trial), store=few, cache=own)


def _num_images(job: TrainingJob, *parts: OpenPart) -> int:
    return sum(len(job.store.part(part).labels_N) for part in parts)


def _settle_seconds(job: TrainingJob) -> float:
    if not job.has_random_prefix:
        return 0.0
    network = job.build_network()
    return _seconds(lambda: settle_prefix(job, network))


def _predictions_seconds(job: TrainingJob, result: EpochResult, folder: Path) -> float:
    """Time the writing of the first epoch's validation predictions; it is the best so far, and saved."""
    logits_NK = result.kept_logits_NK
    if logits_NK is None:
        return 0.0
    return _seconds(lambda: predictions_frame(logits_NK, job.validation, job.store.classes).to_parquet(folder / "predictions"))


def _test_seconds(job: TrainingJob, checkpoints: Checkpoints, *, num_images: int) -> float:
    """Time the way from a checkpoint to answers for so many images, on validation images."""
    store, trial = job.store, job.trial
    started = time.perf_counter()
    kept = KeptModel.load(checkpoints, trial)
    learner = learner_of(trial.network.model)
    answering = learner.answering(kept, trial, job.run, pixels=store.pixel_facts, classes=store.classes, device=job.device)
    loading_seconds = time.perf_counter() - started
    answering_seconds = _seconds(lambda: answering.answer(job.validation))
    return loading_seconds + answering_seconds * num_images / len(job.validation.labels_N)
