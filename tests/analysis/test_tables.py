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
    repeats_table,
    transfer_table,
    transfer_text,
    tuned_table,
    weights_label,
)
from tune_lung.evaluation.statistics import wilson_interval
from tune_lung.results.ledger import Ledger
from tune_lung.results.reader import read_run
from tune_lung.space_files import load_space, shipped_space_files

from tests.fabricated_run import CNN_ONLY, FREEZE_GRID, SAMPLED, write_fabricated_run, write_sampled_run

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
            own = {"trial_id": f"{point}_{repeat}", "point_id": point, "repeat": repeat, "selection_score": score}
            Ledger(root).write_trial({"cell": "cnn", "model": "cnn", "status": "completed", "epochs_run": 3, **own})
    (root / "trials" / f"{trial['trial_id']}.parquet").unlink()
    assert list(comparison_table(read_run(root))["trial_id"]) == ["good_0", "good_1"]


def test_all_repeats_of_the_point_with_the_best_mean_lead_and_a_lucky_seed_does_not(repeated_run):
    lucky = comparison_table(repeated_run).query("cell == 'cnn'")["trial_id"].iloc[0]
    scores = repeated_run.trials["selection_score"].where(repeated_run.trials["trial_id"] != lucky, 0.99)
    table = comparison_table(with_trials(repeated_run, selection_score=scores))
    assert table.loc[table["selection_score"].idxmax(), "cell"] == "cnn"
    best = table.groupby("cell")["selection_score"].mean().idxmax()
    assert list(table.loc[table["leader"], "cell"]) == [best] * 3 != ["cnn"] * 3


def test_the_tuned_table_has_each_cells_counts_and_its_best_points_values(sampled_run):
    table = cells(tuned_table(sampled_run))
    assert list(table.index) == [cell.name for cell in SAMPLED.cells()]
    for name, row in table.iterrows():
        trials = sampled_run.trials[sampled_run.trials["cell"] == name]
        assert (row["points"], row[["completed", "stopped", "failed", "running"]].sum()) == (14, 14)
        assert [row[status] for status in ("completed", "stopped", "failed")] == [
            (trials["status"] == status).sum() for status in ("completed", "stopped", "failed")
        ]
        best = trials.loc[trials["selection_score"].idxmax()]
        axes = next(cell.axes for cell in SAMPLED.cells() if cell.name == name)
        assert {axis: row[axis] for axis in axes} == {axis: best[axis] for axis in axes}
        assert row.drop(["points", "completed", "stopped", "failed", "running", *axes]).isna().all()


def test_repeats_are_trials_of_one_point(repeated_run):
    table = tuned_table(repeated_run)
    assert list(table["points"]) == [5, 5, 5]
    assert list(table["completed"] + table["failed"]) == [15, 15, 15]


def test_a_cell_without_a_trained_trial_has_no_tuned_values(sampled_run):
    trials = sampled_run.trials[sampled_run.trials["cell"] != "cnn"]
    trials = trials.assign(status=trials["status"].where(trials["cell"] != "resnet18", "failed"))
    table = cells(tuned_table(replace(sampled_run, trials=trials)))
    assert list(table["points"]) == [0, 14, 14]
    assert table.loc[["cnn", "resnet18"], "learning_rate"].isna().all()
    assert table.loc["resnet34", "learning_rate"] > 0


def test_the_text_names_points_and_tuned_values_of_each_cell(sampled_run):
    text = comparison_text(sampled_run)
    for row in tuned_table(sampled_run).to_dict("records"):
        counts = [str(row[name]) for name in ("points", "completed", "stopped", "failed")]
        (line,) = [line for line in text.splitlines() if line.split()[:5] == [row["cell"], *counts]]
        assert f"{row['learning_rate']:.3g}" in line.split()
    headings = [line.split() for line in text.splitlines() if line.startswith("cell")]
    assert headings == [
        ["cell", "tried", "completed", "stopped", "failed", "depth", "base_channels", "learning_rate"],
        ["cell", "tried", "completed", "stopped", "failed", "frozen_blocks", "learning_rate", "batch_size", "weight_decay"],
    ]


def test_a_grid_with_one_seed_gets_neither_tuned_values_nor_means(random_run):
    text = comparison_text(random_run)
    assert "Tried in each cell" not in text
    assert "Mean and standard deviation" not in text
    assert repeats_table(random_run).empty


def test_mean_and_spread_over_the_repeats_of_the_best_point_are_told(repeated_run):
    table, text = repeats_table(repeated_run), comparison_text(repeated_run)
    for row in table.to_dict("records"):
        own = repeated_run.trials[(repeated_run.trials["cell"] == row["cell"]) & (repeated_run.trials["status"] == "completed")]
        points = own.groupby("point_id")
        best = points.get_group(points["selection_score"].mean().idxmax())
        assert row["repeats"] == len(best) >= 2
        for name in ("val_macro_recall", "test_macro_recall", "test_micro_recall"):
            values = best[name].to_numpy()
            assert row[f"{name}_mean"] == pytest.approx(np.mean(values))
            assert row[f"{name}_deviation"] == pytest.approx(np.std(values, ddof=1))
        shown = f"{100 * row['test_macro_recall_mean']:.1f} ± {100 * row['test_macro_recall_deviation']:.1f}"
        (line,) = [line for line in text.splitlines() if line.startswith(row["cell"]) and "±" in line]
        assert shown in line
    assert len(table) == 3


def test_a_run_of_another_tool_shows_its_own_score_and_what_it_does_not_know(imported_run):
    text = comparison_text(imported_run)
    assert "imported: Optuna study 'theirs', imported" in text
    assert "protocol and weights are not known" in text
    assert "selection" in text
    assert re.search(r"^\* resnet34 +4/4 .* 0\.8 ", text, re.MULTILINE)
    assert re.search(r"^cnn +2 +1 +0 +1 +0\.001 +4,8 +3,3$", text, re.MULTILINE)
    assert "nothing yet" not in text


@pytest.mark.parametrize("space", sorted(shipped_space_files()))
def test_the_text_of_every_shipped_space_fits_a_terminal_of_100_columns(space, tmp_path):
    loaded = load_space(space)
    choices = {"repeats": 2} if loaded.is_grid else {"samples": 3}
    run = read_run(write_sampled_run(tmp_path / "run", space=loaded, num_test=20, num_running=1, **choices))
    assert max(map(len, comparison_text(run).splitlines())) <= 100
    assert max(map(len, transfer_text(run, run).splitlines())) <= 100


def test_the_text_fits_a_terminal_of_100_columns(random_run, run_with_holes, real_run, repeated_run, imported_run):
    for run in (random_run, run_with_holes, real_run, repeated_run, imported_run):
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
