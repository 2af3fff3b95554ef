"""What a run's trials share, and what each of them is: plain values that travel to the workers."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from tune_lung.config import Point, RunConfig, TrialConfig, point_id
from tune_lung.data.cache import Cache
from tune_lung.data.phantoms import ensure_phantoms
from tune_lung.data.prepare import PreparedData, Progress, prepare
from tune_lung.data.scan import EVERY_IMAGE, ImageChoice, scan
from tune_lung.data.store import PixelStore, StoreDamagedError
from tune_lung.models.weights import WeightsSource
from tune_lung.randomness import derive_seed
from tune_lung.results.layout import RunPaths
from tune_lung.results.ownership import is_out_of_time, require_attempt
from tune_lung.training.checkpoints import Checkpoints
from tune_lung.training.job import TrainingJob

DEFAULT_HANG_SECONDS = 1800.0


class OtherImagesError(RuntimeError):
    """A node sees other images than the driver."""


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """Which images a run uses, so that any node can prepare them for itself."""

    root: Path | None
    """The image folder; None for the synthetic phantoms."""
    run: RunConfig
    """Its image size, protocol and seed decide pixels and split."""
    choice: ImageChoice = EVERY_IMAGE
    """Which of its files."""
    cache_root: Path | None
    """Where decoded pixels lie; None for the user's cache folder."""
    cache_size_bytes: int
    """Room for them."""

    def check(self) -> None:
        """Refuse a folder that holds no classes of images, before anything is downloaded or decoded.

        Raises:
            InputError: The folder cannot serve as a data set.
        """
        if self.root is not None:
            scan(self.root, follow_links=self.choice.follow_links)

    def open_cache(self) -> Cache:
        """Open this node's cache.

        Raises:
            InputError: The folder cannot be written.
        """
        return Cache.open(self.cache_root, self.cache_size_bytes)

    def prepare(self, cache: Cache, progress: Progress | None = None) -> PreparedData:
        """Scan, decode and split the images, or find them prepared.

        Args:
            cache: Keeps the pixels for as long as it is open.
            progress: Told of each file done.

        Raises:
            InputError: The folder cannot serve as a data set.
        """
        root = self.root or ensure_phantoms(cache, seed=self.run.seed)
        return prepare(
            root,
            run=self.run,
            cache=cache,
            choice=self.choice,
            synthetic=self.root is None,
            progress=progress,
        )


@lru_cache(maxsize=1)
def _prepared_here(request: DataRequest) -> tuple[Cache, PreparedData]:
    """Prepare the images on a node that lacks them; the open cache holds them until this process ends."""
    cache = request.open_cache()
    return cache, request.prepare(cache)


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """One trial before it is trained."""

    trial_id: str
    """16 hexadecimal digits from point, cell, patience and repeat: the same on every machine and in every attempt."""
    point_id: str
    """Hash of what is trained."""
    cell: str
    """Readable name of its cell."""
    repeat: int
    """Number of the repeat, from 0."""
    trial: TrialConfig
    """What is trained, and how."""
    weights: WeightsSource | None
    """Where a backbone starts; None for a family that takes no weights."""
    trial_seed: int
    """Root of the trial's own draws."""
    network_seed: int
    """Root of the network's random start; trials of one model and repeat share it."""


@dataclass(frozen=True, kw_only=True)
class SearchSetup:
    """All that a worker needs besides the point."""

    run: RunConfig
    """What all trials share."""
    run_root: Path
    """The run's folder; every node must reach it."""
    data: DataRequest
    """How a node without the pixel store prepares its own."""
    store: Path
    """The pixel store of the driver's node."""
    data_fingerprint: str
    """Digest of pixels, labels and split."""
    weights: Mapping[str, WeightsSource]
    """Where each backbone starts, by model."""
    cpus_per_trial: float
    """CPUs, and so torch threads, of one trial."""
    gpus_per_trial: float
    """GPUs of one trial."""
    judged_epochs: frozenset[int] = frozenset()
    """Epochs after which trials are compared: each is reported at once, and its state saved."""
    profile: bool = False
    """Whether trials take the time of their parts."""
    attempt: int = 0
    """Number of the run's ownership that workers work for; 0 where nobody owns it."""
    owner_token: str = ""
    """What tells that ownership from one of the same number in a run that was begun anew."""
    has_time_budget: bool = False
    """Whether trials ask if the time is spent."""
    hang_seconds: float = DEFAULT_HANG_SECONDS
    """Longest time without a finished batch before a worker is given up."""

    def plan_trial(self, cell: str, point: Point, repeat: int = 0) -> TrialPlan:
        """Work out identity and seeds of one point; order, worker and attempt play no part.

        Raises:
            InputError: The point cannot be built.
        """
        trial = TrialConfig.from_point(point)
        backbone = trial.network.starts_from
        weights = None if backbone is None else self.weights.get(backbone)
        identity = point_id(
            trial, self.run, weights_sha256=weights.sha256 if weights else None, data_fingerprint=self.data_fingerprint
        )
        return TrialPlan(
            trial_id=hashlib.sha256(f"{identity} {cell} {trial.patience} {repeat}".encode()).hexdigest()[:16],
            point_id=identity,
            cell=cell,
            repeat=repeat,
            trial=trial,
            weights=weights,
            trial_seed=derive_seed(self.run.seed, "trial", identity, repeat),
            network_seed=derive_seed(self.run.seed, "network", backbone or trial.network.model, repeat),
        )

    def open_store(self) -> PixelStore:
        """Open the pixel store on this node, preparing it first where it is missing or damaged.

        Raises:
            OtherImagesError: This node sees other images than the driver saw.
            StoreDamagedError: It is damaged as soon as it is built.
        """
        with suppress(StoreDamagedError):
            return PixelStore.open(self.store)
        with suppress(StoreDamagedError):
            return self._own_store()
        _prepared_here.cache_clear()  # that one is damaged by now
        return self._own_store()

    def _own_store(self) -> PixelStore:
        """Open the store that this process prepares, or has prepared before."""
        _, prepared = _prepared_here(self.data)
        if prepared.fingerprint != self.data_fingerprint:
            _prepared_here.cache_clear()
            raise OtherImagesError(
                "This node's images are not those that the search began with: give every node the same --data, as it was."
            )
        return PixelStore.open(prepared.store)

    def checkpoints(self, plan: TrialPlan) -> Checkpoints:
        """Return a trial's checkpoint folder, closed to workers of an earlier attempt."""
        paths = RunPaths(self.run_root)
        return Checkpoints(paths.checkpoints(plan.trial_id), self.check_attempt, shared=paths.frozen_parts)

    def check_attempt(self) -> str:
        """Refuse to write for an attempt that another has followed.

        Returns:
            What unfinished files of this one are marked with.

        Raises:
            SupersededError: Another driver owns the run now.
        """
        return require_attempt(self.run_root, self.attempt, self.owner_token)

    def is_out_of_time(self) -> bool:
        """Whether the driver has announced that the time budget is spent."""
        return self.has_time_budget and is_out_of_time(self.run_root)

    def training_job(
        self, plan: TrialPlan, *, store: PixelStore, device: torch.device, cache: Cache | None = None
    ) -> TrainingJob:
        """Put together what training, and later evaluation, needs for one trial.

        Args:
            plan: The trial.
            store: This node's pixel store.
            device: Where to compute.
            cache: Where features of its frozen prefix may be kept.
        """
        return TrainingJob(
            trial=plan.trial,
            run=self.run,
            store=store,
            weights=plan.weights,
            trial_seed=plan.trial_seed,
            network_seed=plan.network_seed,
            device=device,
            cache=cache,
        )
