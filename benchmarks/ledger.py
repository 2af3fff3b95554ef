"""Does the ledger stay cheap? 10,000 made-up trials of 100 epochs, written as a search writes them, then read and drawn.

    python -m benchmarks.ledger

Eight trials run at a time. Each is written at its start and at its end, every fourth also half-way, as the flush every 10 s
does it for long ones. Flat means that the last tenth of the trials costs at most 1.5 times what the first does; a cost that
grew with the number of trials would show as a factor near 19. The first tenth is a little cheaper by design: parts hold
fewer trials while a run is small. Reading every table and drawing Figure 4 have 5 s and 1 GB, in a fresh process, its
imports not counted in the seconds.

Times are CPU times, the system's included: on a busy machine the clock on the wall tells what others do. For the same reason
the run lies in memory where the system has a place for that: to wait for a disk is no work of the ledger's. Validation
predictions are left out: each is its worker's own file, costs the driver nothing, and no figure reads it.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from benchmarks.bars import Bar, exit_status
from tune_lung.analysis.figures import figure4, save_figure
from tune_lung.config import RunConfig, TrialConfig
from tune_lung.results.ledger import Ledger, Row
from tune_lung.results.manifest import DataFacts, SearchFacts, ended, new_manifest
from tune_lung.results.reader import read_run
from tune_lung.results.schema import StopReason, TrialStatus, Verdict, probability_column
from tune_lung.space import SearchSpace
from tune_lung.space_files import load_space
from tune_lung.strategy import Strategy

NUM_TRIALS = 10_000
NUM_EPOCHS = 100
NUM_RUNNING = 8
FLUSHED_ONE_IN = 4
NUM_TEST_IMAGES = 2119
"""As many as the paper tested on."""
RUNGS = (4, 16, 64)
CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")

MEMORY_DISK = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it

MOST_GROWTH = 1.5
MOST_SECONDS = 5.0
MOST_BYTES = 1_000_000_000


class MadeUpSearch:
    """A search whose trials cost nothing but their rows."""

    def __init__(self, space: SearchSpace) -> None:
        """Lay out each cell's rows once.

        Args:
            space: Its cells are run in turn.
        """
        self._cells = space.cells()
        self._columns = [TrialConfig.from_point(next(cell.probes())).columns() for cell in self._cells]

    def trial_id(self, number: int) -> str:
        """Return 16 hexadecimal digits, as scattered as real ones."""
        return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"

    def row(self, number: int, *, epochs_run: int) -> Row:
        """Return a trial's row while it runs, and when all its epochs are done."""
        index = number % len(self._cells)
        has_ended = epochs_run == NUM_EPOCHS
        return {
            "trial_id": self.trial_id(number),
            "point_id": self.trial_id(number),
            "cell": self._cells[index].name,
            "repeat": 0,
            **self._columns[index],
            "trial_seed": number,
            "status": TrialStatus.COMPLETED if has_ended else TrialStatus.RUNNING,
            "stop_reason": StopReason.MAX_EPOCHS if has_ended else None,
            "attempts": 1,
            "epochs_run": epochs_run,
            "best_epoch": epochs_run or None,
            **(self._scores(number, epochs_run) if epochs_run else {}),
            "total_params": 11_178_564,
            "trainable_params": 11_178_564 >> index,
            "mult_adds": 600_000_000,
            "epoch_seconds_mean": 10.0 / (1 + index),
            "prefix_cached": False,
            "cpus": 1.0,
            "gpus": 0.0,
            "concurrent_trials": NUM_RUNNING,
            "device": "cpu",
        }

    def epochs(self, number: int, last: int) -> list[dict[str, Any]]:
        """Return a trial's epochs up to one."""
        return [
            {
                "epoch": epoch,
                "train_loss": 1.3 / (epoch + number % 7),
                **self._scores(number, epoch),
                "epoch_seconds": 10.0 + number % 13 / 100,
                "validation_seconds": 0.3,
                "images_per_second": 108.0 - number % 13 / 10,
                "learning_rate": 5e-4,
            }
            for epoch in range(1, last + 1)
        ]

    def decisions(self, number: int, last: int) -> list[Row]:
        """Return the comparisons of a trial up to an epoch."""
        return [
            {
                "decision": len(RUNGS) * number + rung,
                "trial_id": self.trial_id(number),
                "cell": self._cells[number % len(self._cells)].name,
                "rung_epoch": epoch,
                "value": self._scores(number, epoch)["selection_score"],
                "cutoff": 0.5,
                "verdict": Verdict.CONTINUE,
            }
            for rung, epoch in enumerate(RUNGS, start=1)
            if epoch <= last
        ]

    def _scores(self, number: int, epoch: int) -> dict[str, float]:
        recall = 0.9 - 0.4 / (epoch + 1) - number % 101 / 1000
        return {
            "val_loss": 1.4 / (epoch + 1),
            "val_macro_recall": recall,
            "val_micro_recall": recall + 0.01,
            "selection_score": recall - 1e-5,
        }


def write_run(root: Path) -> Iterator[int]:
    """Write the made-up run.

    Args:
        root: The run's folder, not there yet.

    Yields:
        How many trials have ended, each time that one does.
    """
    space = load_space("freeze_tuned")
    search = MadeUpSearch(space)
    ledger = Ledger.create(root, _manifest(root.name, space))
    ledger.write_images(_images())
    for number in range(NUM_TRIALS + NUM_RUNNING):
        if number < NUM_TRIALS:
            _record(ledger, search, number, epochs_run=0)
        halfway = number - NUM_RUNNING // 2
        if 0 <= halfway < NUM_TRIALS and halfway % FLUSHED_ONE_IN == 0:
            _record(ledger, search, halfway, epochs_run=NUM_EPOCHS // 2)
        if number >= NUM_RUNNING:
            _record(ledger, search, number - NUM_RUNNING, epochs_run=NUM_EPOCHS)
            yield number - NUM_RUNNING + 1
    for number in range(len(space.cells())):
        ledger.write_predictions(search.trial_id(number), _predictions())
    ledger.write_manifest(ended(ledger.read_manifest(), "completed"))


def seconds_by_tenth(root: Path) -> list[float]:
    """Write the made-up run and measure the CPU seconds of each tenth of its trials."""
    moments = [time.process_time()]
    for num_ended in write_run(root):
        if num_ended % (NUM_TRIALS // 10) == 0:
            moments.append(time.process_time())
    return [end - start for start, end in pairwise(moments)]


def read_and_draw(root: Path) -> dict[str, float]:
    """Read a run and draw its Figure 4, in this process.

    Returns:
        CPU seconds of either, and the process's largest memory in bytes.
    """
    start = time.process_time()
    run = read_run(root)
    read = time.process_time()
    save_figure(figure4(run), run.paths.figure("figure4"))
    drawn = time.process_time()
    if (len(run.trials), len(run.epochs)) != (NUM_TRIALS, NUM_TRIALS * NUM_EPOCHS):
        raise RuntimeError(f"{len(run.trials)} trials and {len(run.epochs)} epochs came back.")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"read_seconds": read - start, "draw_seconds": drawn - read, "peak_bytes": peak}


def bars(seconds: Sequence[float], reading: Mapping[str, float]) -> list[Bar]:
    """Hold what was measured against what is allowed.

    Args:
        seconds: Of each tenth of the trials, as `seconds_by_tenth` measures them.
        reading: As `read_and_draw` measures it.

    Returns:
        Each bar, and whether it holds.
    """
    growth = seconds[-1] / seconds[0]
    read, draw, peak = reading["read_seconds"], reading["draw_seconds"], reading["peak_bytes"]
    return [
        Bar(f"last tenth / first tenth {growth:.2f}, at most {MOST_GROWTH}", growth <= MOST_GROWTH),
        Bar(f"reading {read:.1f} s + Figure 4 {draw:.1f} s, at most {MOST_SECONDS:g} s", read + draw <= MOST_SECONDS),
        Bar(f"memory of that {peak / 1e6:,.0f} MB, at most {MOST_BYTES / 1e6:,.0f} MB", peak <= MOST_BYTES),
    ]


def main() -> int:
    """Run the benchmark.

    Returns:
        The exit status: 0 when its bars hold, else 1.
    """
    console = Console(highlight=False)
    place = MEMORY_DISK if MEMORY_DISK.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="tune_lung-ledger-", dir=place) as folder:
        root = Path(folder) / "run"
        with console.status(f"writing {NUM_TRIALS:,} trials, some minutes"):
            seconds = seconds_by_tenth(root)
        num_files = sum(path.is_file() for path in root.rglob("*"))
        reading = _in_fresh_process(root)
    console.print(
        f"{NUM_TRIALS:,} trials of {NUM_EPOCHS} epochs: {1000 * sum(seconds) / NUM_TRIALS:.1f} ms a trial, {num_files:,} files"
    )
    console.print(f"each tenth next to the first: {'  '.join(f'{tenth / seconds[0]:.2f}' for tenth in seconds)}")
    return exit_status(bars(seconds, reading), console)


def _record(ledger: Ledger, search: MadeUpSearch, number: int, *, epochs_run: int) -> None:
    """Write what a trial has shown by now: the tables, and their order, are those of the search's recorder."""
    if epochs_run:
        ledger.write_epochs(search.trial_id(number), search.epochs(number, epochs_run))
        ledger.write_decisions(search.decisions(number, epochs_run))
    ledger.write_trial(search.row(number, epochs_run=epochs_run))


def _manifest(name: str, space: SearchSpace) -> dict[str, Any]:
    return new_manifest(
        SearchFacts(space=space, strategy=Strategy.for_space(space), sampler_options={}, run=RunConfig()),
        name=name,
        arguments=["--space", space.name],
        data=DataFacts(
            fingerprint="0" * 64, synthetic=True, classes=CLASSES, counts={"train": 0, "validation": 0, "test": NUM_TEST_IMAGES}
        ),
        weights={},
    )


def _images() -> pd.DataFrame:
    image_ids = [f"image-{number}" for number in range(NUM_TEST_IMAGES)]
    return pd.DataFrame({"image_id": image_ids, "path": image_ids, "class": CLASSES[0], "split": "test"})


def _predictions() -> pd.DataFrame:
    image_ids = [f"image-{number}" for number in range(NUM_TEST_IMAGES)]
    labels = [CLASSES[number % len(CLASSES)] for number in range(NUM_TEST_IMAGES)]
    probabilities = {probability_column(name): 1 / len(CLASSES) for name in CLASSES}
    return pd.DataFrame({"image_id": image_ids, "label": labels, **probabilities})


def _in_fresh_process(root: Path) -> dict[str, float]:
    program = (
        "import json, sys, pathlib; from benchmarks.ledger import read_and_draw;"
        "print(json.dumps(read_and_draw(pathlib.Path(sys.argv[1]))))"
    )
    command = [sys.executable, "-c", program, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - this interpreter
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


if __name__ == "__main__":
    sys.exit(main())
