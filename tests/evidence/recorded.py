"""What tiny searches of two shipped spaces gave before, in `recorded.json`: `python -m tests.evidence.recorded` writes it anew.

Between them they use a grid and a sampler, rungs, both first families, frozen blocks, masks and augmentation.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

RECORDED = Path(__file__).with_name("recorded.json")
_OPTIONS = (
    *("--image-size", "64", "--limit", "80", "--seed", "3", "--weights", "random", "--precision", "fp32", "--no-report"),
    *("--max-concurrent", "1", "--cpus-per-trial", "1"),
)
SEARCHES: Mapping[str, tuple[str, ...]] = {
    "everything": ("--samples", "2", "--max-epochs", "2", "--grace-epochs", "1", "--reduction-factor", "2"),
    "inputs": ("--max-epochs", "2", "--set", "padding=same", "--set", "model=cnn"),
}
"""Options of each space's search beside those of all; in fp32, which every machine has, and with few steps: what rounding
differs by between processors grows with each."""

_SAMPLED = ("depth", "base_channels", "channel_growth", "first_kernel_size", "frozen_blocks", "batch_size", "learning_rate")
_EXACT = (
    *("trial_id", "cell", *_SAMPLED, "weight_decay", "input", "augmentation", "trial_seed"),
    *("total_params", "trainable_params", "mult_adds", "status", "stop_reason", "epochs_run"),
)
_LOSSES = ("train_loss", "val_loss")
_RECALLS = ("val_macro_recall", "val_micro_recall")


def search(space: str, folder: Path) -> Path:
    """Run the tiny search of a shipped space, and return the run's folder."""
    command = [sys.executable, "-m", "tune_lung.search", "--space", space, "--out", str(folder), "--name", space, *_OPTIONS]
    done = subprocess.run([*command, *SEARCHES[space]], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return folder / space


def numbers_of(run: Path) -> dict[str, Any]:
    """Take a run's numbers from its tables, trial after trial as they were proposed.

    Returns:
        JSON values: `trials`, what must be the same on every machine; `verdicts`, trial, epoch and verdict of each decision;
        `losses` and `recalls` of each trial's epochs.
    """
    trials = pd.read_parquet(run / "trials").sort_values("proposed_order")
    decisions = pd.read_parquet(run / "decisions").sort_values("decision")
    epochs = pd.read_parquet(run / "epochs").sort_values("epoch")
    epochs_of = [epochs[epochs["trial_id"] == trial_id] for trial_id in trials["trial_id"]]
    return {
        "trials": [trial.dropna().to_dict() for _, trial in trials[list(_EXACT)].astype(object).iterrows()],
        "verdicts": decisions[["trial_id", "rung_epoch", "verdict"]].to_numpy(dtype=object).tolist(),
        "losses": [each[list(_LOSSES)].to_numpy().tolist() for each in epochs_of],
        "recalls": [each[list(_RECALLS)].to_numpy().tolist() for each in epochs_of],
    }


def main() -> None:
    """Run the tiny searches, and write their numbers down."""
    with tempfile.TemporaryDirectory(prefix="tune_lung-recorded-") as name:
        numbers = {space: numbers_of(search(space, Path(name))) for space in SEARCHES}
    RECORDED.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
