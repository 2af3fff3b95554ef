"""The room that a search needs on disk and in memory, against what is free; what cannot fit is refused."""

import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

from tune_lung.config import RunConfig, TrialConfig, model_of
from tune_lung.errors import InputError
from tune_lung.families.family import ModelConfig
from tune_lung.families.registry import family_of
from tune_lung.learners.learner import Setting
from tune_lung.learners.registry import learner_of
from tune_lung.results.layout import KeepName
from tune_lung.strategy import Strategy
from tune_lung.tuning.cluster import NodeOffer, trials_a_gpu
from tune_lung.tuning.forecasting.forecast import CellPlan, plan_cells
from tune_lung.tuning.search_plan import SearchPlan

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


class CheckpointSizes(NamedTuple):
    """The largest checkpoints of a cell's trials, in bytes."""

    best: int
    """A network."""
    last: int
    """What training goes on from."""

    @property
    def ended(self) -> int:
        """All that a trial leaves: its `best` and `last`, and the ones before them."""
        return 2 * (self.best + self.last)

    @property
    def running(self) -> int:
        """All that a trial takes while it runs: the same, and a new `last` that is being written."""
        return self.ended + self.last


def checkpoints_need(
    plans: Sequence[CellPlan], strategy: Strategy, run: RunConfig, *, keep: KeepName, slots: int, num_classes: int, out: Path
) -> DiskNeed:
    """Count the checkpoints of a search when it has most of them: of the trials that run, and what is kept of the others.

    What networks leave out, their frozen parts, counts once for all trials that share it.

    Args:
        plans: Cells, and how many points each is given.
        strategy: Repeats and objectives.
        run: Protocol and image size.
        keep: Which checkpoints stay.
        slots: Trials at once at most.
        num_classes: Of the data.
        out: The parent of runs.
    """
    sizes = _sizes_by_cell(plans, run, num_classes=num_classes)
    counted = [(sizes[plan.cell.name], plan.num_points * strategy.repeats) for plan in plans]
    num_bytes = sum(size.running for size in _largest(counted, slots))
    if keep == "all":
        num_bytes += sum(size.ended * count for size, count in counted)
    elif keep == "best" or not strategy.has_one_objective:  # every point may be on the front
        num_bytes += sum(size.best * count for size, count in counted)
    else:
        # Of each cell's first and best point every repeat; of a point some of whose repeats still run, the others.
        points_kept = (
            size.best * min(2, plan.num_points) * strategy.repeats for plan, (size, _) in zip(plans, counted, strict=True)
        )
        num_bytes += sum(points_kept) + sum(size.best for size in _largest(counted, slots)) * (strategy.repeats - 1)
    num_bytes += _frozen_bytes(plans, run, repeats=strategy.repeats, num_classes=num_classes)
    return DiskNeed(what="checkpoints", folder=out, num_bytes=num_bytes, option="--out")


def _sizes_by_cell(plans: Sequence[CellPlan], run: RunConfig, *, num_classes: int) -> dict[str, CheckpointSizes]:
    setting = Setting.of(run, num_classes=num_classes)
    sizes = {}
    for plan in plans:
        trials = [TrialConfig.from_point(point) for point in (*plan.samples, *plan.cell.probes())]
        best, last = zip(*(learner_of(trial.network.model).checkpoint_bytes(trial, setting) for trial in trials), strict=True)
        sizes[plan.cell.name] = CheckpointSizes(best=max(best), last=max(last))
    return sizes


def _frozen_bytes(plans: Sequence[CellPlan], run: RunConfig, *, repeats: int, num_classes: int) -> int:
    """Count the frozen parts of a search's networks: each once, and once a repeat where the start is random."""
    setting = Setting.of(run, num_classes=num_classes)

    def bytes_of(network: ModelConfig) -> int:
        return learner_of(network.model).frozen_bytes(network, setting)

    networks = {network for plan in plans for network in nlargest(plan.num_points, _networks_of(plan), key=bytes_of)}
    return sum(bytes_of(network) * (repeats if network.own_fields().get("weights") == "random" else 1) for network in networks)


def _networks_of(plan: CellPlan) -> set[ModelConfig]:
    """List the networks of a cell that may leave something out, each depth that it may draw included."""
    points = [*plan.samples, *plan.cell.probes()]
    if "frozen_blocks" in plan.cell.axes:
        num_blocks = family_of(model_of(points[0])).num_blocks
        points = [{**point, "frozen_blocks": blocks} for point in points for blocks in range(num_blocks + 1)]
    return {TrialConfig.from_point(point).network for point in points}


def _largest(counted: Iterable[tuple[CheckpointSizes, int]], slots: int) -> list[CheckpointSizes]:
    """Give the trials that take most room, as many as run at once."""
    return nlargest(slots, chain.from_iterable(repeat(size, min(count, slots)) for size, count in counted))


def warnings_of_room(plan: SearchPlan, offers: Iterable[NodeOffer], *, num_classes: int) -> list[str]:
    """Say in a line each what disk and memory may not hold, from what is known without training; a dry run measures.

    Args:
        plan: The search.
        offers: The nodes.
        num_classes: Of the data.
    """
    strategy, run, out = plan.strategy, plan.setup.run, plan.setup.run_root.parent
    plans, warnings = plan_cells(plan.space.cells(), strategy), []
    slots = min(plan.resources.max_concurrent, strategy.repeats * sum(cell.num_points for cell in plans))
    need = checkpoints_need(plans, strategy, run, keep=plan.keep, slots=slots, num_classes=num_classes, out=out)
    free = free_bytes(out)
    if need.num_bytes > free:
        warnings.append(
            f"The search may write {size_text(need.num_bytes)} of checkpoints, and {size_text(free)} are free there: when the"
            " disk is full it stops, and goes on with --resume"
        )
    shortage = _shortage_of_memory(offers, slots=slots, trial_bytes=_LEAST_WORKER_BYTES)
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
                f" {options}, or train fewer at once with --max-concurrent."
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
