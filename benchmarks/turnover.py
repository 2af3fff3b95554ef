"""Do slots stay busy from trial to trial, and does the driver stay small?

    python -m benchmarks.turnover --data DIR

`freeze_grid` is searched on two slots. A slot is busy while its trial works: from its start to its end in the driver, less
what the trial itself waited for the driver (`--profile`). A gap is the time from a trial's end to the start of the next one
on the slot that became free. Then 2,000 trials that do nothing are searched, and the driver's memory is measured after the
first 200 and at the end.
"""

import dataclasses
import gc
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from rich.console import Console

from benchmarks.bars import Bar, exit_status
from benchmarks.trials import data_parser, new_ledger, prepared_setup
from tune_lung.results.schema import TimePart
from tune_lung.space import Arm, Grid, SearchSpace
from tune_lung.space_files import load_space
from tune_lung.strategy import Strategy
from tune_lung.tuning.cell_order import search_order
from tune_lung.tuning.cluster import Resources, ray_session
from tune_lung.tuning.driver_only import DriverOnly
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.proposals.studies import Studies
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.reports import EPOCHS
from tune_lung.tuning.search_plan import SearchPlan
from tune_lung.tuning.search_run import train
from tune_lung.tuning.trainable import LungTrial

LEAST_BUSY = 0.95
MOST_GAP_SECONDS = 0.3
MOST_BYTES_A_TRIAL = 20_000
NUM_EPOCHS = 5
NUM_TRIVIAL = 2000
NUM_WARM = 200
"""Trivial trials before the driver's memory is measured first: by then all that is made once is there."""
SLOTS = Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        arguments: The command line without the program; None for the process's own.

    Returns:
        The exit status: 0 when its bars hold, else 1.
    """
    parser = data_parser("turnover", __doc__)
    parser.add_argument("--max-epochs", type=int, default=NUM_EPOCHS, metavar="N", help="of each cell (default: %(default)s)")
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    with prepared_setup(options) as setup, ray_session(None):
        spans = search_freeze_grid(setup, max_epochs=options.max_epochs)
        bytes_a_trial = growth(setup)
    busy, gap = busy_share(spans), statistics.median(gaps(spans))
    bars = [
        Bar(f"slots busy {busy:.1%} of the time, at least {LEAST_BUSY:.0%}", busy >= LEAST_BUSY),
        Bar(f"{gap:.2f} s from trial to trial in the median, at most {MOST_GAP_SECONDS:g} s", gap <= MOST_GAP_SECONDS),
        Bar(
            f"{bytes_a_trial / 1000:.1f} KB of the driver's memory a trial, less than {MOST_BYTES_A_TRIAL / 1000:g}",
            bytes_a_trial < MOST_BYTES_A_TRIAL,
        ),
    ]
    return exit_status(bars, console)


@dataclass
class Span:
    """One trial on its slot, in monotonic seconds."""

    start: float
    end: float = 0.0
    waited: float = 0.0
    """Of that, waiting for the driver between reports."""


@dataclass
class Timekeeper(DriverOnly, Callback):
    """Notes when each trial starts and ends."""

    spans: dict[str, Span] = field(default_factory=dict)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Note a start."""
        self.spans[trial.trial_id] = Span(start=time.monotonic())

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Add what the trial waited since its first report."""
        if result[EPOCHS][0]["epoch"] > 1:  # before it, its slot waited for a trial: that is a gap
            self.spans[trial.trial_id].waited += sum(row["seconds_by_part"].get(TimePart.IDLE, 0.0) for row in result[EPOCHS])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Note an end."""
        self.spans[trial.trial_id].end = time.monotonic()


def busy_share(spans: Sequence[Span]) -> float:
    """Compute the share of the slots' time, between the first and the last trial's start, in which a trial worked."""
    first, last = min(span.start for span in spans), max(span.start for span in spans)
    within = [max(0.0, min(span.end, last) - span.start) for span in spans]
    waited = [span.waited * share / (span.end - span.start) for span, share in zip(spans, within, strict=True)]
    return (sum(within) - sum(waited)) / (SLOTS.max_concurrent * (last - first))


def gaps(spans: Sequence[Span]) -> list[float]:
    """List the seconds from each trial's end to the start of the next one that could begin then."""
    ends = sorted(span.end for span in spans)
    starts = sorted(span.start for span in spans)[SLOTS.max_concurrent :]
    return [max(0.0, start - end) for start, end in zip(starts, ends, strict=False)]


def search_freeze_grid(setup: SearchSetup, *, max_epochs: int) -> list[Span]:
    """Train every cell, as the command does but for the sealed evaluation and what is shown."""
    space = load_space("freeze_grid").with_fixed({"max_epochs": max_epochs, "precision": "bf16", "weights": "random"})
    timekeeper = Timekeeper()
    _search(space, dataclasses.replace(setup, profile=True), timekeeper, LungTrial)
    return list(timekeeper.spans.values())


class TrivialTrial(LungTrial):
    """Trains nothing, and reports one epoch of made-up numbers."""

    def setup(self, config: dict[str, Any], setup: SearchSetup | None = None) -> None:
        """Keep nothing."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on with the next trial."""
        return True

    def cleanup(self) -> None:
        """Let go of nothing."""

    def step(self) -> dict[str, Any]:
        """Report and end."""
        numbers = ("train_loss", "val_loss", "val_macro_recall", "val_micro_recall", "selection_score", "best_score")
        times = ("epoch_seconds", "validation_seconds", "images_per_second", "learning_rate")
        facts = ("total_params", "trainable_params", "mult_adds")
        row: dict[str, Any] = dict.fromkeys((*numbers, *times), 0.5) | dict.fromkeys(facts, 1)
        row |= {"epoch": 1, "best_epoch": 1, "stop_reason": "max_epochs", "seconds_by_part": {}, "prefix_seconds": None}
        return {EPOCHS: [row | {"device": "cpu"}], "done": True}


@dataclass
class MemoryMeter(DriverOnly, Callback):
    """Measures the driver's memory when the warm trials have ended, and at the end."""

    num_ended: int = 0
    bytes_when_warm: int = 0
    bytes_at_end: int = 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Measure at the two moments."""
        self.num_ended += 1
        if self.num_ended == NUM_WARM:
            self.bytes_when_warm = _own_bytes()
        elif self.num_ended == NUM_TRIVIAL:
            self.bytes_at_end = _own_bytes()


def _own_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * resource.getpagesize()


def growth(setup: SearchSetup) -> float:
    """Search trivial trials and return the bytes by which each makes the driver grow."""
    seeds = Grid(*range(2, NUM_TRIVIAL + 2))
    space = SearchSpace(arms=(Arm(model="cnn", batch_size=seeds, precision="fp32"),), name="trivial")
    meter = MemoryMeter()
    _search(space, setup, meter, TrivialTrial)
    return (meter.bytes_at_end - meter.bytes_when_warm) / (NUM_TRIVIAL - NUM_WARM)


def _search(space: SearchSpace, setup: SearchSetup, callback: Callback, trainable: type[tune.Trainable]) -> None:
    setup = dataclasses.replace(setup, run_root=Path(setup.run_root, space.name))
    strategy = Strategy.for_space(space)
    ledger = new_ledger(space, strategy, setup)
    recorder = Recorder(ledger, setup, SLOTS)
    cells = search_order(space, strategy, setup.run, num_classes=len(ledger.classes))
    studies = Studies(space, strategy, seed=setup.run.seed, cells=cells)
    train(
        SearchPlan(space=space, strategy=strategy, setup=setup, resources=SLOTS),
        studies,
        recorder,
        callbacks=[callback],
        trainable=trainable,
    )


if __name__ == "__main__":
    sys.exit(main())
