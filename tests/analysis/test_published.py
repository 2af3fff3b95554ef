"""The published numbers are those of the paper's logs."""

import pandas as pd
import pytest

from tune_lung.analysis.published import published_runs

from tests.conftest import SHARED
from tests.fabricated_run import FREEZE_GRID


def test_there_is_one_published_run_on_whole_images_for_each_cell_of_the_freeze_grid():
    runs = published_runs()
    cells = {(cell.point["model"], cell.point.get("frozen_blocks", -1)) for cell in FREEZE_GRID.cells()}
    assert set(zip(runs["model"], runs["frozen_blocks"].fillna(-1), strict=True)) == cells
    assert len(runs) == 11


def test_every_published_run_ended_by_patience():
    runs = published_runs()
    assert (runs["epochs_run"] - runs["best_epoch"] == 20).all()


def test_no_published_loss_lies_under_the_floor_of_softmax_fed_to_cross_entropy():
    runs = published_runs()
    assert runs[["min_val_loss", "train_loss_at_best"]].min().min() >= 0.7436


def test_the_published_numbers_equal_the_reference():
    reference = SHARED / "reference" / "lykos2022_runs.csv"
    if not reference.is_file():
        pytest.skip("no reference: there is no ../shared/reference/lykos2022_runs.csv")
    expected = pd.read_csv(reference).query("not masked").drop(columns="masked").reset_index(drop=True)
    pd.testing.assert_frame_equal(published_runs(), expected, check_dtype=False)
