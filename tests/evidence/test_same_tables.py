"""What is compared of two runs, and what is not."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tune_lung.space_files import shipped_space_files

from tests.evidence.same_tables import SEARCHES, Tree, differences_of
from tests.tuned_run import write_tuned_run


@pytest.fixture
def two_runs(tmp_path: Path) -> tuple[Path, Path]:
    """A made-up run, and a copy of it."""
    run = write_tuned_run(tmp_path / "run")
    return run, Path(shutil.copytree(run, tmp_path / "copy"))


def _change(run: Path, table: str, **columns: object) -> None:
    for part in (run / table).glob("*.parquet"):
        pd.read_parquet(part).assign(**columns).to_parquet(part)


def test_times_and_added_columns_are_no_differences(two_runs: tuple[Path, Path]) -> None:
    _change(two_runs[1], "epochs", epoch_seconds=7.0, grace=1)
    assert list(differences_of(*two_runs)) == []


@pytest.mark.parametrize(
    ("columns", "difference"),
    [
        ({"train_loss": lambda table: np.nextafter(table["train_loss"], 9.0)}, "epochs has other values in train_loss"),
        ({"epoch": lambda table: table["epoch"].astype("int64")}, "epochs has other values in epoch"),
    ],
)
def test_other_values_and_types_are(two_runs: tuple[Path, Path], columns: dict[str, object], difference: str) -> None:
    _change(two_runs[1], "epochs", **columns)
    assert list(differences_of(*two_runs)) == [difference]


def test_rows_and_columns_that_are_gone_are(two_runs: tuple[Path, Path]) -> None:
    run, copy = two_runs
    next((copy / "trials").glob("*.parquet")).unlink()
    for part in (copy / "epochs").glob("*.parquet"):
        pd.read_parquet(part).drop(columns="val_loss").to_parquet(part)
    num_trials = len(pd.read_parquet(run / "trials"))
    assert list(differences_of(run, copy)) == [f"trials has {num_trials - 1} rows, not {num_trials}", "epochs has no val_loss"]


def test_every_shipped_space_has_a_small_search() -> None:
    assert set(SEARCHES) == set(shipped_space_files())


def test_a_tree_runs_its_own_code(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Python finds tune_lung at"):
        Tree(root=tmp_path, runs=tmp_path).check_imports()
