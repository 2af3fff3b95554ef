"""In which order a search takes up its cells: long ones first, so that no slot idles long at the end.

References:
    Graham, "Bounds on multiprocessing timing anomalies", SIAM Journal on Applied Mathematics 17, 1969: the longest work
    first ends at most a third later than the best order.
"""

from collections.abc import Hashable
from functools import cache

from tune_lung.config import Protocol, RunConfig, TrialConfig
from tune_lung.families.family import ModelConfig
from tune_lung.models.cost import mult_adds, prefix_mult_adds
from tune_lung.models.network import network_outline
from tune_lung.space import Cell, SearchSpace
from tune_lung.strategy import Strategy

_PASSES_WITH_GRADIENT = 3
"""Forward, and back to inputs and weights."""


def search_order(space: SearchSpace, strategy: Strategy, run: RunConfig, *, num_classes: int) -> tuple[Cell, ...]:
    """Order a space's cells as a search takes them up.

    Where trials are stopped early the space's own order is kept, from small to large in the shipped ones: a long trial is
    stopped only if others stand at its rungs before it.
    """
    return longest_first(space, run, num_classes=num_classes) if strategy.scheduler == "none" else space.cells()


def longest_first(space: SearchSpace, run: RunConfig, *, num_classes: int) -> tuple[Cell, ...]:
    """Order a space's cells by the work of a trial; those that share a frozen prefix stay together.

    Args:
        space: What is tried.
        run: Its protocol and image size.
        num_classes: Number of logits.

    Returns:
        Every cell; of equal ones the space's order is kept.
    """
    cells = space.cells()
    trials = [_largest(cell) for cell in cells]
    works = [training_work(trial, run, num_classes=num_classes) for trial in trials]
    shared = [_shared_by(trial, run, number) for number, trial in enumerate(trials)]
    first: dict[Hashable, int] = {}
    most: dict[Hashable, int] = {}
    for number, (key, work) in enumerate(zip(shared, works, strict=True)):
        first.setdefault(key, number)
        most[key] = max(work, most.get(key, 0))
    order = sorted(range(len(cells)), key=lambda number: (-most[shared[number]], first[shared[number]], number))
    return tuple(cells[number] for number in order)


def training_work(trial: TrialConfig, run: RunConfig, *, num_classes: int) -> int:
    """Count the multiply-adds that a trial spends on one training image, from its first epoch to its last.

    A frozen prefix whose features are kept is computed once, one before augmented images in every epoch.
    """
    prefix, rest = _work_of_parts(trial.network, run.protocol, num_classes, run.image_size)
    num_prefix_passes = 1 if trial.augmentation == "none" else trial.max_epochs
    return trial.max_epochs * _PASSES_WITH_GRADIENT * rest + num_prefix_passes * prefix


@cache
def _work_of_parts(network: ModelConfig, protocol: Protocol, num_classes: int, image_size: int) -> tuple[int, int]:
    """Count the multiply-adds of a network's frozen prefix and of the rest."""
    outline = network_outline(network, protocol=protocol, num_classes=num_classes, image_size=image_size)
    prefix = prefix_mult_adds(outline, image_size)
    return prefix, mult_adds(outline, image_size) - prefix


def _largest(cell: Cell) -> TrialConfig:
    *_, largest = cell.probes()
    return TrialConfig.from_point(largest)


def _shared_by(trial: TrialConfig, run: RunConfig, number: int) -> Hashable:
    """Name what trials with the same prefix features have in common; a cell without such features shares nothing."""
    network = trial.network
    if not network.frozen_blocks or run.protocol != "strict":
        return number
    return network.model, network.frozen_blocks, trial.input, trial.precision, trial.augmentation
