"""The room that a search needs on disk and in memory, against what is free; what cannot fit is refused."""

import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tune_lung.config import RunConfig, TrialConfig
from tune_lung.errors import InputError
from tune_lung.models.network import network_outline
from tune_lung.space import SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.training.fit import checkpoint_bytes
from tune_lung.tuning.cluster import NodeOffer, Resources, trials_a_gpu
from tune_lung.tuning.forecasting.forecast import foresee_trials, plan_cells

_LEAST_WORKER_BYTES = 600_000_000
"""Memory of a worker that has imported torch and trains next to nothing; 790 MB measured, and other builds are smaller."""
_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6))


@dataclass(frozen=True, kw_only=True)
class DiskNeed:
    """Files that a search will write."""

    what: str
    """What they are, in the plural."""
    folder: Path
    """Where; it need not exist yet."""
    num_bytes: int
    """How much, at most."""
    option: str
    """The option that moves them elsewhere."""


def checkpoints_need(trials: Iterable[TrialConfig], run: RunConfig, *, num_classes: int, out: Path) -> DiskNeed:
    """Count the checkpoints of a search: `best`, `last` and the ones before them, of every trial.

    Args:
        trials: Every trial of the search.
        run: Its protocol and image size.
        num_classes: Of the data.
        out: The parent of runs.
    """

    @cache
    def trial_bytes(trial: TrialConfig) -> int:
        outline = network_outline(trial.network, protocol=run.protocol, num_classes=num_classes, image_size=run.image_size)
        best, last = checkpoint_bytes(trial, outline)
        return 2 * (best + last)

    return DiskNeed(what="checkpoints", folder=out, num_bytes=sum(map(trial_bytes, trials)), option="--out")


def warnings_of_room(
    space: SearchSpace,
    strategy: Strategy,
    run: RunConfig,
    resources: Resources,
    offers: Iterable[NodeOffer],
    *,
    num_classes: int,
    out: Path,
) -> list[str]:
    """Say in a line each what disk and memory may not hold, from what is known without training; a dry run measures.

    Args:
        space: What is tried.
        strategy: How.
        run: Its protocol and image size.
        resources: How many trials run at once.
        offers: The nodes.
        num_classes: Of the data.
        out: The parent of runs.
    """
    trials = [trial.trial for trial in foresee_trials(plan_cells(space.cells(), strategy), strategy)]
    warnings = []
    need, free = checkpoints_need(trials, run, num_classes=num_classes, out=out), free_bytes(out)
    if need.num_bytes > free:
        warnings.append(
            f"The search may write {size_text(need.num_bytes)} of checkpoints, and {size_text(free)} are free there: when the"
            " disk is full it stops, and goes on with --resume"
        )
    shortage = _shortage_of_memory(offers, slots=min(resources.max_concurrent, len(trials)), trial_bytes=_LEAST_WORKER_BYTES)
    if shortage is not None:
        warnings.append(f"{shortage} A trial that ends for want of memory is tried once more, alone")
    return warnings


def check_disk(needs: Sequence[DiskNeed]) -> None:
    """Refuse files that their disks cannot take.

    Raises:
        InputError: A disk has too little room for the files that belong there.
    """
    by_disk: dict[int, list[DiskNeed]] = defaultdict(list)
    for need in needs:
        by_disk[_existing(need.folder).stat().st_dev].append(need)
    for together in by_disk.values():
        wanted, free = sum(need.num_bytes for need in together), free_bytes(together[0].folder)
        if wanted > free:
            what = " and ".join(f"{size_text(need.num_bytes)} of {need.what}" for need in together)
            options = " or ".join(need.option for need in together)
            raise InputError(
                f"The search may write {what}, and {size_text(free)} are free there. Free some, give another disk with"
                f" {options}, or try fewer points."
            )


def free_bytes(folder: Path) -> int:
    """Count what is free on a folder's disk; the folder need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def check_memory(offers: Iterable[NodeOffer], *, slots: int, trial_bytes: int) -> None:
    """Refuse more trials at once than a node's memory holds.

    Args:
        offers: The nodes.
        slots: Trials at once, at most.
        trial_bytes: Memory of one trial.

    Raises:
        InputError: A node has too little.
    """
    shortage = _shortage_of_memory(offers, slots=slots, trial_bytes=trial_bytes)
    if shortage is not None:
        raise InputError(shortage)


def _shortage_of_memory(offers: Iterable[NodeOffer], *, slots: int, trial_bytes: int) -> str | None:
    """Say which trials at once a node's memory does not hold, and what to do; None where all have room."""
    for offer in offers:
        at_once = min(slots, offer.slots)
        if at_once * trial_bytes > offer.memory_bytes:
            fitting = int(offer.memory_bytes // trial_bytes)
            mend = f"Use --max-concurrent {fitting}" if fitting else "Lower batch_size or --image-size"
            return (
                f"{at_once} trials at once need {size_text(at_once * trial_bytes)} of memory, and"
                f" {size_text(offer.memory_bytes)} are free. {mend}, or free some."
            )
    return None


def check_gpu_memory(*, gpus_per_trial: float, trial_bytes: int, gpu_bytes: int) -> None:
    """Refuse trials that share a GPU and do not fit into it together.

    Args:
        gpus_per_trial: A trial's share; under 1 trials share a GPU.
        trial_bytes: GPU memory of one trial.
        gpu_bytes: Memory of the GPU.

    Raises:
        InputError: The GPU has too little.
    """
    num_sharing = trials_a_gpu(gpus_per_trial) if gpus_per_trial else 1
    if num_sharing * trial_bytes > gpu_bytes:
        raise InputError(
            f"{num_sharing} trials on one GPU need {size_text(num_sharing * trial_bytes)} of its memory, and it has"
            f" {size_text(gpu_bytes)}. Raise --gpus-per-trial, or lower batch_size or --image-size."
        )


def size_text(num_bytes: float) -> str:
    """Write a size for people, in decimal units."""
    unit, size = next(((unit, size) for unit, size in _UNITS if num_bytes >= size), ("kB", 1e3))
    number = num_bytes / size
    return f"{number:.{0 if number >= 10 else 1}f} {unit}"


def _existing(folder: Path) -> Path:
    """Find the nearest folder above that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
