"""What does a whole grid save, and does it choose as well?

    python -m benchmarks.grid --data DIR

`freeze_grid`, a few epochs a cell, by the command itself: with everything on; with everything off, by `--precision fp32
--cache-size 0` and memory as glibc keeps it (`MALLOC_MMAP_MAX_=65536`); and plainly under `freeze_grid_published`, which sends
gradients through the frozen blocks as the paper's program does. Then with ASHA on top and more epochs at most. The plain
sides are trained for one epoch and extrapolated: each further epoch adds its training and validation passes and its checkpoint,
divided by the slots. The ratios are those of the whole commands' seconds.

Last, over several seeds and on smaller images, so that it takes minutes: what validation chooses. A cell's worth is its mean
score on validation, plainly trained, over the other seeds; a choice's regret is what the best cell is worth more. The fast
search's regret may be larger by no more than a standard error of the difference.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from benchmarks.bars import Bar, exit_status
from benchmarks.trials import PLAIN_MEMORY, data_parser
from tune_lung.results.reader import Run, read_run
from tune_lung.results.schema import TimePart
from tune_lung.training.fit import SECONDS_BETWEEN_LAST

LEAST_OVER_OFF = 2.6
LEAST_OVER_GRADIENTS = 3.8
LEAST_WITH_ASHA = 6.0
NUM_EPOCHS, MOST_EPOCHS = 5, 20
NUM_SEEDS = 5
OFF = ("--precision", "fp32", "--cache-size", "0")
CHOOSING = ("--image-size", "64", "--set", "padding=same", "--set", "batch_size=32")
"""Small images, and batches small enough for few of them."""
CHOOSING_IMAGES, CHOOSING_EPOCHS = 240, 6


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One command, ended."""

    seconds: float
    """From its start to its end."""
    run: Run
    """What it wrote."""

    def seconds_for(self, num_epochs: int) -> float:
        """Extrapolate to more epochs a cell than the run had, by the mean of those it had.

        A further epoch costs its two passes, and a checkpoint where it takes as long as lies between two, else its share of one.
        """
        epochs, profile = self.run.epochs, self.run.profile
        trials = epochs.groupby("trial_id")["epoch"]
        passes = (epochs["epoch_seconds"] + epochs["validation_seconds"]).groupby(epochs["trial_id"]).mean()
        saving = profile[profile["part"] == TimePart.CHECKPOINT].groupby("trial_id")["seconds"].sum() / trials.count()
        shares = (passes / SECONDS_BETWEEN_LAST).clip(upper=1.0)
        further = (passes + shares * saving) * (num_epochs - trials.max())
        return self.seconds + float(further.sum()) / int(self.run.trials["concurrent_trials"].max())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        arguments: The command line without the program; None for the process's own.

    Returns:
        The exit status: 0 when its bars hold, else 1.
    """
    parser = data_parser("grid", __doc__)
    parser.add_argument("--weights", default="random", metavar="FROM", help="as the search takes it (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=NUM_SEEDS, metavar="N", help="of the choices (default: %(default)s)")
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="tune_lung-grid-") as folder:
        searches = Searches(options, Path(folder))
        return exit_status(bars(searches, options.seeds), console)


class Searches:
    """Runs the command, each time into a run of its own, all but the plain ones over one cache."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        """Take what all commands share.

        Args:
            options: Images and weights.
            folder: For runs and cache.
        """
        self._folder = folder
        self._common = ["--weights", options.weights, "--cache", str(folder / "cache")]
        self._common += [] if options.data is None else ["--data", str(options.data)]
        self._sized = ["--image-size", str(options.image_size)]
        self._sized += [] if options.limit is None else ["--limit", str(options.limit)]

    def full(self, name: str, *more: str, space: str = "freeze_grid", is_plain: bool = False) -> Timed:
        """Search the images as the benchmark was given them."""
        return self._search(name, space, [*self._sized, *more], is_plain=is_plain)

    def small(self, name: str, *more: str, is_plain: bool = False) -> Timed:
        """Search a few small images."""
        sized = [*CHOOSING, "--limit", str(CHOOSING_IMAGES), "--max-epochs", str(CHOOSING_EPOCHS)]
        return self._search(name, "freeze_grid", [*sized, *more], is_plain=is_plain)

    def _search(self, name: str, space: str, more: Sequence[str], *, is_plain: bool) -> Timed:
        environment: Mapping[str, str] = PLAIN_MEMORY if is_plain else {}
        command = [sys.executable, "-m", "tune_lung.search", "--space", space, "--out", str(self._folder), "--name", name]
        command += [*self._common, *more, *(OFF if is_plain else ()), "--no-report", "--profile"]
        started = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | environment)  # noqa: S603 - this interpreter
        return Timed(seconds=time.monotonic() - started, run=read_run(self._folder / name))


def bars(searches: Searches, num_seeds: int) -> Iterator[Bar]:
    """Measure one thing after another, and give each bar when it is there."""
    yield from speed_bars(searches)
    yield choice_bar(searches, num_seeds)


def speed_bars(searches: Searches) -> list[Bar]:
    """Time the grid in each way; the plain sides are extrapolated from one epoch."""
    off = searches.full("off", "--max-epochs", "1", is_plain=True)
    fast = searches.full("fast", "--max-epochs", str(NUM_EPOCHS))  # between the two that it is set against: machines drift
    gradients = searches.full("gradients", "--max-epochs", "1", space="freeze_grid_published", is_plain=True)
    asha = searches.full("asha", "--max-epochs", str(MOST_EPOCHS), "--scheduler", "asha")
    return [
        ratio_bar("everything on against everything off", fast, off, NUM_EPOCHS, LEAST_OVER_OFF),
        ratio_bar("everything on against gradients through the frozen blocks", fast, gradients, NUM_EPOCHS, LEAST_OVER_GRADIENTS),
        ratio_bar("with ASHA on top against everything off", asha, off, MOST_EPOCHS, LEAST_WITH_ASHA),
    ]


def ratio_bar(text: str, quick: Timed, plain: Timed, num_epochs: int, least: float) -> Bar:
    """Set a quick search against a plain one that is extrapolated to so many epochs."""
    ratio = plain.seconds_for(num_epochs) / quick.seconds
    told = f"{text}, at most {num_epochs} epochs: {ratio:.2f} times as fast, at least {least} (plain extrapolated from one epoch)"
    return Bar(told, ratio >= least)


def choice_bar(searches: Searches, num_seeds: int) -> Bar:
    """Compare what the fast and the plain search choose."""
    seeds = [str(seed) for seed in range(num_seeds)]
    plain = [searches.small(f"plain-{seed}", "--seed", seed, is_plain=True).run for seed in seeds]
    fast = [searches.small(f"fast-{seed}", "--seed", seed, "--scheduler", "asha").run for seed in seeds]
    worth = pd.DataFrame({seed: run.trials.set_index("cell")["selection_score"] for seed, run in enumerate(plain)})
    differences = [
        regret_of(fast_run, worth.drop(columns=seed)) - regret_of(plain_run, worth.drop(columns=seed))
        for seed, (fast_run, plain_run) in enumerate(zip(fast, plain, strict=True))
    ]
    mean, error = statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    text = (
        f"its choice is worth {100 * mean:.1f} points less than the plain search's, at most {100 * error:.1f}, one standard error"
    )
    return Bar(f"{text} of {num_seeds} seeds", mean <= error)


def regret_of(run: Run, worth: pd.DataFrame) -> float:
    """Say how much less the cell that a run chooses is worth than the best.

    Args:
        run: Its leader on validation is what it chooses.
        worth: Scores by cell, a column for each other seed.

    Returns:
        At least 0, in units of the score.
    """
    means = {str(cell): float(mean) for cell, mean in worth.mean(axis=1).items()}
    leader = run.trials.sort_values("selection_score", ascending=False, kind="stable")["cell"].iloc[0]
    return max(means.values()) - means[leader]


if __name__ == "__main__":
    sys.exit(main())
