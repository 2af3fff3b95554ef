"""A small search as a process that a fault befalls, and what its ledger must show afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from tune_lung.results.layout import TABLES, RunPaths
from tune_lung.results.reader import Run, read_run

SPACE = '''
"""Which of three tiny networks is better?"""
from tune_lung.space import Arm, Grid, SearchSpace

SPACE = SearchSpace(
    arms=(
        Arm(model="cnn", depth=3, base_channels=Grid(4, 8), batch_size=16, learning_rate=0.002),
        Arm(model="resnet18", frozen_blocks=Grid(4), batch_size=16),
    ),
)
'''
SAMPLED_SPACE = '''
"""Which rate suits which depth?"""
from tune_lung.space import Arm, Grid, LogUniform, SearchSpace

SPACE = SearchSpace(
    arms=(Arm(model="cnn", depth=Grid(2, 3), base_channels=4, batch_size=16, learning_rate=LogUniform(1e-4, 1e-1)),),
)
'''
OPTIONS = ("--image-size", "32", "--limit", "80", "--seed", "3", "--max-concurrent", "1")
SAMPLED = ("--samples", "4", "--grace-epochs", "1", "--reduction-factor", "2")
INJECTED = Path(__file__).parent / "injected"
_TIMES = ("epoch_seconds", "validation_seconds", "images_per_second", "started", "ended")
_OF_AN_ATTEMPT = ("epoch_seconds_mean", "prefix_seconds", "attempts", "concurrent_trials", "slot")
_KEYS: Mapping[str, list[str]] = {
    "trials": ["trial_id"],
    "epochs": ["trial_id", "epoch"],
    "decisions": ["decision"],
    "predictions": ["trial_id", "image_id"],
    "validation_predictions": ["trial_id", "image_id"],
    "images": ["path"],
}


@dataclass
class SearchProcess:
    """A search that runs."""

    process: subprocess.Popen[str]
    """The driver."""

    @classmethod
    def start(cls, *options: str, fault: Mapping[str, Any] | None = None, **environment: str) -> Self:
        """Start the command; a fault is injected by `tests/faults/injected`."""
        own = {**os.environ, **environment, **environment_of(fault)}
        process = subprocess.Popen(
            [sys.executable, "-m", "tune_lung.search", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=own,
            start_new_session=True,
            # A shell lets what it runs in the background ignore Ctrl-C, and so would all its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        return cls(process)

    def end(self, timeout: float = 120.0) -> tuple[int, str]:
        """Wait for the end; return the exit status and all that was printed."""
        try:
            printed, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            printed, _ = self.process.communicate()
            raise AssertionError(f"The search did not end.\n{printed}") from None
        return self.process.returncode, printed

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the driver alone."""
        self.process.send_signal(number)


def environment_of(fault: Mapping[str, Any] | None) -> dict[str, str]:
    """The variables that a process and its children need for a fault to befall them, or for none to."""
    return {
        "TUNE_LUNG_FAULT": json.dumps(fault),
        "PYTHONPATH": os.pathsep.join([str(INJECTED), str(Path.cwd())]),
        "RAY_prestart_worker_first_driver": "0",  # one worker trains: others need not wait
    }


def begin(folder: Path, *options: str, space: str = SPACE) -> list[str]:
    """The options of a new search whose run is `folder/run`."""
    folder.mkdir(exist_ok=True)
    path = folder / "space.py"
    path.write_text(space)
    return ["--space", str(path), "--out", str(folder), "--name", "run", "--no-report", *OPTIONS, *options]


def searched(*options: str, status: int = 0, fault: Mapping[str, Any] | None = None, **environment: str) -> str:
    """Run a search to its end, which must have that exit status; return what it printed."""
    found, printed = SearchProcess.start(*options, fault=fault, **environment).end()
    assert found == status, printed
    return printed


def wait_until(condition: Callable[[], bool], *, seconds: float = 90.0) -> None:
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "It did not come to be."
        time.sleep(0.01)


def num_epochs(root: Path) -> int:
    """Count the epochs in a run's ledger; 0 before there is one."""
    return len(read_run(root, only=("epochs",)).epochs) if (root / "run.json").exists() else 0


def comparable(run: Run, table: str) -> pd.DataFrame:
    """A table without what no two runs share: times, attempts and the order in which trials at once happened to end."""
    frame: pd.DataFrame = getattr(run, table)
    left_out = [*_TIMES, *_OF_AN_ATTEMPT, "proposed_order", "ended_order"]
    return frame.drop(columns=left_out, errors="ignore").sort_values(_KEYS[table]).reset_index(drop=True)


def assert_as_if_nothing_had_happened(root: Path, undisturbed: Path) -> None:
    """The run's tables equal those of an undisturbed one, bit for bit, and no part of it is damaged."""
    run, other = read_run(root), read_run(undisturbed)
    assert run.damaged == ()
    assert run.manifest["status"] == other.manifest["status"] == "completed"
    for table in _KEYS:
        pd.testing.assert_frame_equal(comparable(run, table), comparable(other, table), check_exact=True)


def keys_of(root: Path) -> dict[str, set[tuple[Any, ...]]]:
    """The rows of each table that a run has, by what names them."""
    if not (root / "run.json").exists():
        return {}
    run = read_run(root)
    return {table: set(getattr(run, table)[keys].itertuples(index=False, name=None)) for table, keys in _KEYS.items()}


def assert_nothing_lost(before: Mapping[str, set[tuple[Any, ...]]], root: Path) -> None:
    """Every row of before is still there, and none is there twice."""
    after = keys_of(root)
    lost = {table: rows - after[table] for table, rows in before.items()}
    assert not any(lost.values()), lost
    assert num_duplicates(root) == 0


def num_duplicates(root: Path) -> int:
    """Count rows that are in a run's tables twice."""
    run = read_run(root)
    return sum(int(getattr(run, table).duplicated(keys).sum()) for table, keys in _KEYS.items())


def working_folders(temporary: Path) -> list[Path]:
    """What searches have left in a temporary folder; torch's own cache of what it compiles has a name that never changes."""
    return [path for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]


def parts_of(root: Path) -> list[Path]:
    """Every Parquet part with rows of a run."""
    paths = RunPaths(root)
    return [part for table in TABLES for part in paths.parts(table) if part.stem != "schema"]
