"""Does the search find good networks for few epochs? Ours against three rivals, on problems of known learning curves.

    python -m benchmarks.search_quality

Each method searches each problem with 30 seeds, four trials at a time, until the same number of epochs is spent: those of
96 whole trainings. Regret is the score of the problem's best configuration less the best score that the search has seen.
The bars, for every problem:

- against each rival ours is not worse, neither with a quarter of the epochs nor with all: the one-sided Wilcoxon test over
  the seeds does not find its regret the larger one (p > 0.05), and its median regret is at most 10% above the rival's;
- with a quarter of the epochs ours has a median regret no larger than random search without stopping has with all of them.

The tables of `cnn_architecture` and `resnet_finetune` were recorded by `benchmarks.record_curves`; README.md beside them says
how. `cnn_architecture` was not looked at while the search was tuned.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from scipy.stats import wilcoxon

from benchmarks.bars import Bar, exit_status
from benchmarks.crossing import crossing_problem
from benchmarks.methods import METHODS, OURS, UNSTOPPED
from benchmarks.simulation import simulate
from benchmarks.tabulated import TABLES, TabulatedProblem, read_table

NUM_SEEDS = 30
NUM_WORKERS = 4
NUM_TRAININGS = 96
"""Whole trainings that the budget would pay for."""
QUARTER = 4
LEAST_P = 0.05
MOST_MEDIAN = 1.1
"""Times a rival's median regret."""
CROSSING = "crossing"

Regrets = Mapping[str, np.ndarray]
"""Of each method the regrets; shape (seeds, epochs)."""


@cache
def problem_named(name: str) -> TabulatedProblem:
    """Open a problem: `crossing`, or a table's name."""
    return crossing_problem() if name == CROSSING else read_table(TABLES / f"{name}.parquet")


def problem_names() -> list[str]:
    """List the problems there are."""
    return [CROSSING, *sorted(path.stem for path in TABLES.glob("*.parquet"))]


def regret_of(problem_name: str, method: str, seed: int) -> np.ndarray:
    """Search a problem once.

    Returns:
        The regret after each epoch; shape (epochs,). Infinite until a configuration that does not fail was seen.
    """
    problem = problem_named(problem_name)
    num_epochs = NUM_TRAININGS * problem.max_epochs
    best = simulate(METHODS[method](problem, seed), problem, num_workers=NUM_WORKERS, num_epochs=num_epochs)
    return problem.best_value - best


def bars(regrets: Regrets) -> list[Bar]:
    """Hold one problem's regrets against what is allowed.

    Returns:
        Each bar, and whether it holds.
    """
    num_epochs = regrets[OURS].shape[1]
    lines: list[Bar] = []
    for moment in (num_epochs // QUARTER, num_epochs):
        for rival in regrets:
            if rival != OURS:
                lines += _comparison(regrets, rival, moment)
    early = float(np.median(regrets[OURS][:, num_epochs // QUARTER - 1]))
    late = float(np.median(regrets[UNSTOPPED][:, -1]))
    text = f"a quarter of the epochs, median {early:.4f}, against {UNSTOPPED} with all of them, {late:.4f}: at most that"
    lines.append(Bar(text, early <= late))
    return lines


def _comparison(regrets: Regrets, rival: str, moment: int) -> list[Bar]:
    ours, theirs = regrets[OURS][:, moment - 1], regrets[rival][:, moment - 1]
    p = _p_that_larger(ours, theirs)
    median, most = float(np.median(ours)), MOST_MEDIAN * float(np.median(theirs))
    start = f"{moment} epochs, against {rival}:"
    return [
        Bar(f"{start} not worse, p = {p:.3f}, above {LEAST_P}", p > LEAST_P),
        Bar(f"{start} median {median:.4f}, at most {MOST_MEDIAN} x its own = {most:.4f}", median <= most),
    ]


def _p_that_larger(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Test whether ours are the larger of pairs; equal pairs speak for neither side."""
    if np.array_equal(ours, theirs):
        return 1.0
    return float(wilcoxon(ours, theirs, alternative="greater").pvalue)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        arguments: The command line without the program; None for the process's own.

    Returns:
        The exit status: 0 when all bars hold, else 1.
    """
    options = _parser().parse_args(arguments)
    console = Console(highlight=False)
    status = 0
    with ProcessPoolExecutor() as pool:
        for name in options.problem or problem_names():
            regrets = _searched(pool, name, options.seeds, console)
            console.print(_table(name, regrets))
            status |= exit_status(bars(regrets), console)
            console.print()
    return status


def _searched(pool: ProcessPoolExecutor, name: str, num_seeds: int, console: Console) -> Regrets:
    runs = [(name, method, seed) for method in METHODS for seed in range(num_seeds)]
    done: Iterator[np.ndarray] = pool.map(regret_of, *zip(*runs, strict=True))
    curves = list(track(done, description=name, total=len(runs), console=console, transient=True))
    return dict(zip(METHODS, np.reshape(curves, (len(METHODS), num_seeds, -1)), strict=True))


def _table(name: str, regrets: Regrets) -> Table:
    num_epochs = next(iter(regrets.values())).shape[1]
    problem = problem_named(name)
    title = f"{name}, {len(problem.configurations)} configurations: median regret and quartiles"
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    moments = [num_epochs // QUARTER, num_epochs]
    for moment in moments:
        table.add_column(f"{moment} epochs", justify="right", no_wrap=True)
    for method, curves in regrets.items():
        table.add_row(method, *(_quartiles(curves[:, moment - 1]) for moment in moments))
    return table


def _quartiles(regrets: np.ndarray) -> str:
    low, median, high = np.quantile(regrets, (0.25, 0.5, 0.75), method="nearest")
    return f"{median:.4f}, {low:.4f} to {high:.4f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search_quality",
        description="Hold the search against three rivals, on problems of known learning curves.",
    )
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS, metavar="N", help="searches of each kind (default: %(default)s)")
    parser.add_argument(
        "--problem", action="append", choices=problem_names(), help="search this problem alone; repeatable (default: all)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
