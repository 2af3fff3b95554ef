"""The comparison says what the ledger says, in the space's order, with what is missing named."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from tune_lung.analysis.tables import (
    cell_names,
    comparison_table,
    comparison_text,
    transfer_table,
    transfer_text,
    weights_label,
)
from tune_lung.evaluation.statistics import wilson_interval
from tune_lung.results.ledger import Ledger
from tune_lung.results.reader import read_run

from tests.fabricated_run import CNN_ONLY, FREEZE_GRID, write_fabricated_run

CELLS = [cell.name for cell in FREEZE_GRID.cells()]


def cells(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_index("cell")


def with_trials(run, **columns):
    """The same run with some columns of its trials replaced."""
    return replace(run, trials=run.trials.assign(**columns))


def test_cells_stand_in_the_order_of_the_space(random_run, run_with_holes):
    assert list(comparison_table(random_run)["cell"]) == CELLS
    assert list(comparison_table(run_with_holes)["cell"]) == CELLS


def test_cells_of_a_space_that_cannot_be_read_come_in_the_order_of_the_trials(random_run):
    manifest = random_run.manifest | {"space": {"arms": [{"model": "cnn", "depth": "deep"}]}}
    assert set(cell_names(replace(random_run, manifest=manifest))) == set(CELLS)


def test_sampled_axes_are_no_part_of_a_cells_name(random_run):
    space = random_run.manifest["space"]
    sampled = {"model": "cnn", "learning_rate": {"log_uniform": {"low": 1e-5, "high": 1e-2}}}
    manifest = random_run.manifest | {"space": space | {"arms": [sampled, *space["arms"][1:]]}}
    assert list(cell_names(replace(random_run, manifest=manifest))) == CELLS


def test_test_recalls_equal_scikit_learns_on_the_predictions(random_run):
    table = comparison_table(random_run).set_index("trial_id")
    classes = np.array(random_run.classes)
    for trial_id, predictions in random_run.predictions.groupby("trial_id"):
        answers = classes[predictions[[f"p_{name}" for name in classes]].to_numpy().argmax(axis=1)]
        assert table.loc[trial_id, "test_micro_recall"] == pytest.approx(accuracy_score(predictions["label"], answers))
        assert table.loc[trial_id, "test_macro_recall"] == pytest.approx(balanced_accuracy_score(predictions["label"], answers))


def test_the_interval_of_micro_recall_is_wilsons(random_run):
    row = cells(comparison_table(random_run)).loc["cnn"]
    images = (random_run.images["split"] == "test").sum()
    low, high = wilson_interval(round(row["test_micro_recall"] * images), images)
    assert (row["test_micro_recall_low"], row["test_micro_recall_high"]) == pytest.approx((low, high))


def test_the_leader_is_chosen_on_validation_and_never_on_test(random_run):
    scores = random_run.trials["selection_score"].where(random_run.trials["cell"] != "cnn", 0.999)
    table = comparison_table(with_trials(random_run, selection_score=scores))
    assert list(table.loc[table["leader"], "cell"]) == ["cnn"]
    assert table["test_macro_recall"].idxmax() != table["leader"].idxmax()


def test_a_failed_trial_never_leads(random_run):
    best = random_run.trials["selection_score"].idxmax()
    status = random_run.trials["status"].where(random_run.trials.index != best, "failed")
    table = comparison_table(with_trials(random_run, status=status))
    assert not cells(table).loc[random_run.trials.loc[best, "cell"], "leader"]


def test_differences_to_the_cnn_are_percentage_points_of_macro_recall(random_run):
    table = cells(comparison_table(random_run))
    difference = table.loc["resnet34 frozen_blocks=2", "test_macro_recall"] - table.loc["cnn", "test_macro_recall"]
    assert table.loc["resnet34 frozen_blocks=2", "macro_points_over_cnn"] == pytest.approx(100 * difference)
    assert np.isnan(table.loc["cnn", "macro_points_over_cnn"])


def test_failed_and_absent_cells_keep_their_rows(run_with_holes):
    table = cells(comparison_table(run_with_holes))
    assert table.loc["resnet34 frozen_blocks=3", "status"] == "failed"
    assert pd.isna(table.loc["resnet18 frozen_blocks=1", "status"])
    assert table["test_macro_recall"].isna().sum() == 3


def test_a_cell_with_several_points_shows_the_best_one_with_all_its_repeats(tmp_path):
    root = write_fabricated_run(tmp_path / "run", space=CNN_ONLY)
    trial = read_run(root).trials.iloc[0]
    points = {"good": (0.8, 0.9), "lucky": (0.95, 0.5)}
    for point, scores in points.items():
        for repeat, score in enumerate(scores):
            own = {"trial_id": f"{point}-{repeat}", "point_id": point, "repeat": repeat, "selection_score": score}
            Ledger(root).write_trial({"cell": "cnn", "model": "cnn", "status": "completed", "epochs_run": 3, **own})
    (root / "trials" / f"{trial['trial_id']}.parquet").unlink()
    assert list(comparison_table(read_run(root))["trial_id"]) == ["good-0", "good-1"]


def test_the_text_fits_a_terminal_of_100_columns(random_run, run_with_holes, real_run):
    for run in (random_run, run_with_holes, real_run):
        assert max(map(len, comparison_text(run).splitlines())) <= 100


def test_the_text_names_leader_data_weights_failure_and_absence(run_with_holes):
    text = comparison_text(run_with_holes)
    table = comparison_table(run_with_holes)
    assert f"* {table.loc[table['leader'], 'cell'].item()}" in text
    assert "SYNTHETIC X-rays" in text
    assert "weights: random" in text
    assert "resnet34 frozen_blocks=3 failed: The train loss is nan at epoch 1." in text
    assert "resnet18 frozen_blocks=1 not started" in text
    assert "Trials not ended by patience might have improved" in text


def test_the_text_calls_only_phantoms_synthetic(real_run):
    assert "synthetic" not in comparison_text(real_run).lower()


def test_kinds_of_weights_get_a_column_where_they_differ(random_run):
    assert " file" not in comparison_text(random_run)
    mixed = random_run.trials["weights"].where(random_run.trials["cell"] != CELLS[3], "file")
    assert " file" in comparison_text(with_trials(random_run, weights=mixed))


def test_the_text_of_an_interrupted_run_says_so_and_names_damaged_parts(random_run):
    run = replace(random_run, manifest=random_run.manifest | {"status": "interrupted"}, damaged=("epochs/3f2a.parquet",))
    text = comparison_text(run)
    assert "The search itself is interrupted" in text
    assert "Left out, since damaged: epochs/3f2a.parquet." in text


def test_a_run_without_trials_has_rows_that_never_started(random_run):
    run = replace(random_run, trials=random_run.trials.iloc[:0], predictions=random_run.predictions.iloc[:0])
    assert comparison_text(run).count("not started") == 11


def test_a_tested_trial_without_predictions_has_its_recall_and_no_interval(random_run):
    text = comparison_text(replace(random_run, predictions=random_run.predictions.iloc[:0]))
    assert f"{100 * random_run.trials['test_macro_recall'].max():.1f}" in text
    assert not re.search(r"\[\d+\.\d", text)


def test_transfer_is_the_second_run_less_the_first(random_run, pretrained_run):
    table = cells(transfer_table(random_run, pretrained_run))
    first, second = (cells(comparison_table(run))["test_macro_recall"] for run in (random_run, pretrained_run))
    np.testing.assert_allclose(table["macro_points"], 100 * (second - first))
    assert (table["macro_points_low"] < table["macro_points"]).all()
    assert (table["macro_points"] < table["macro_points_high"]).all()


def test_transfer_covers_the_cells_of_both_runs_in_order(random_run, run_with_holes):
    table = transfer_table(random_run, run_with_holes)
    assert list(table["cell"]) == CELLS
    assert table["macro_points"].isna().sum() == 3


def test_the_transfer_text_names_both_weights_and_warns_of_other_images(random_run, pretrained_run):
    text = transfer_text(random_run, pretrained_run)
    assert "random" in text
    assert "resnet18-cifar10-64px.pth" in text
    assert "different images" not in text
    other = random_run.manifest | {"data": random_run.manifest["data"] | {"fingerprint": "other"}}
    assert "different images or splits" in transfer_text(replace(random_run, manifest=other), pretrained_run)


def test_weights_are_named_once_each(random_run, pretrained_run):
    assert weights_label(random_run) == "random"
    assert weights_label(pretrained_run) == "resnet18-cifar10-64px.pth"
