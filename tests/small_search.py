"""A small search on phantoms, run as a process of its own as a user starts it."""

import subprocess
import sys
from pathlib import Path

import pandas as pd

SPACE = """
\"\"\"Which of two tiny networks is better?\"\"\"
from tune_lung.space import Arm, Grid, SearchSpace

SPACE = SearchSpace(
    arms=(
        Arm(model="cnn", depth=3, base_channels=Grid(4, 8), batch_size=16, learning_rate=0.002),
        Arm(model="resnet18", frozen_blocks=Grid(4), batch_size=16),
    ),
)
"""
SAMPLED_SPACE = """
\"\"\"Which rate suits which depth?\"\"\"
from tune_lung.space import Arm, Grid, LogUniform, SearchSpace

SPACE = SearchSpace(
    arms=(Arm(model="cnn", depth=Grid(2, 3), base_channels=4, batch_size=16, learning_rate=LogUniform(1e-4, 1e-1)),),
    first_points=({"learning_rate": 2e-3},),
)
"""
METRICS = [
    "trial_id",
    "cell",
    "epochs_run",
    "best_epoch",
    "selection_score",
    "val_loss",
    "test_macro_recall",
    "test_micro_recall",
]
OPTIONS = ("--image-size", "64", "--limit", "100", "--max-epochs", "2", "--seed", "3")


def search_command(folder: Path, *options: str) -> list[str]:
    """The command line of a small search whose runs land in `folder`."""
    folder.mkdir(exist_ok=True)
    space = folder / "two_tiny.py"
    space.write_text(SPACE)
    return [sys.executable, "-m", "tune_lung.search", "--space", str(space), "--out", str(folder), *OPTIONS, *options]


def sampled_options(folder: Path) -> tuple[str, ...]:
    """Options of a small search that samples: with them, the space lies in `folder` and rungs are at epochs 1 and 2."""
    space = folder / "tuned.py"
    space.write_text(SAMPLED_SPACE)
    return "--space", str(space), "--grace-epochs", "1", "--reduction-factor", "2", "--max-epochs", "3"


def run_search(folder: Path, *options: str) -> tuple[Path, str]:
    """Run a small search to its end; return the run's folder and what was printed."""
    done = subprocess.run(search_command(folder, *options), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("Run: ")
    return Path(last.removeprefix("Run: ")), done.stdout


def metrics_of(run: Path) -> pd.DataFrame:
    """The part of the trials table that must be the same whenever and wherever it was computed."""
    return pd.read_parquet(run / "trials")[METRICS].sort_values("trial_id").reset_index(drop=True)
