"""In which order a search takes up its cells: long ones first, so that no slot idles long at the end.

References:
    Graham, "Bounds on multiprocessing timing anomalies", SIAM Journal on Applied Mathematics 17, 1969: the longest work
    first ends at most a third later than the best order.
"""

from collections.abc import Hashable

from tune_lung.config import RunConfig, TrialConfig
from tune_lung.learners.learner import Setting
from tune_lung.learners.registry import learner_of
from tune_lung.space import Cell, SearchSpace
from tune_lung.strategy import Strategy


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
    setting = Setting.of(run, num_classes=num_classes)
    works = [learner_of(trial.network.model).work(trial, setting) for trial in trials]
    shared = [learner_of(trial.network.model).shares(trial, setting) or number for number, trial in enumerate(trials)]
    first: dict[Hashable, int] = {}
    most: dict[Hashable, int] = {}
    for number, (key, work) in enumerate(zip(shared, works, strict=True)):
        first.setdefault(key, number)
        most[key] = max(work, most.get(key, 0))
    order = sorted(range(len(cells)), key=lambda number: (-most[shared[number]], first[shared[number]], number))
    return tuple(cells[number] for number in order)


def _largest(cell: Cell) -> TrialConfig:
    *_, largest = cell.probes()
    return TrialConfig.from_point(largest)
