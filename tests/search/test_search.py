"""The main job, end to end on phantoms: each search is a process of its own, as a user starts it."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, precision_score

from tune_lung.results.layout import TABLES
from tune_lung.results.schema import table_schema
from tune_lung.search.__main__ import main

from tests.small_search import metrics_of, run_search, search_command

pytestmark = pytest.mark.ray


def test_every_table_has_every_column(finished_search: tuple[Path, str]) -> None:
    run, _ = finished_search
    classes = json.loads((run / "run.json").read_text())["data"]["classes"]
    for table in TABLES:
        assert list(pd.read_parquet(run / table).columns) == table_schema(table, classes).names


def test_every_cell_is_trained_once_and_tested(finished_search: tuple[Path, str]) -> None:
    run, _ = finished_search
    trials = pd.read_parquet(run / "trials")
    assert sorted(trials["cell"]) == ["cnn base_channels=4", "cnn base_channels=8", "resnet18 frozen_blocks=4"]
    assert set(trials["status"]) == {"completed"}
    assert set(trials["stop_reason"]) == {"max_epochs"}
    assert trials[["test_macro_recall", "test_micro_recall", "total_params", "mult_adds"]].notna().all(axis=None)


def test_predictions_cover_the_test_images_and_sum_to_1(finished_search: tuple[Path, str]) -> None:
    run, _ = finished_search
    predictions, images = pd.read_parquet(run / "predictions"), pd.read_parquet(run / "images")
    num_test = (images["split"] == "test").sum()
    assert len(predictions) == 3 * num_test
    assert set(predictions["image_id"]) == set(images.loc[images["split"] == "test", "image_id"])
    sums = predictions.filter(like="p_").sum(axis=1)
    assert sums.between(1 - 1e-12, 1 + 1e-12).all()


def test_recalls_agree_with_scikit_learn_on_the_predictions(finished_search: tuple[Path, str]) -> None:
    run, _ = finished_search
    predictions = pd.read_parquet(run / "predictions")
    for trial in pd.read_parquet(run / "trials").itertuples():
        own = predictions[predictions["trial_id"] == trial.trial_id]
        answers = own.filter(like="p_").idxmax(axis=1).str.removeprefix("p_")
        assert trial.test_micro_recall == pytest.approx(accuracy_score(own["label"], answers))
        assert trial.test_micro_recall == pytest.approx(precision_score(own["label"], answers, average="micro"))
        assert trial.test_macro_recall == pytest.approx(balanced_accuracy_score(own["label"], answers))


def test_validation_predictions_are_those_of_the_kept_epoch(finished_search: tuple[Path, str]) -> None:
    run, _ = finished_search
    predictions = pd.read_parquet(run / "validation_predictions")
    for trial in pd.read_parquet(run / "trials").itertuples():
        own = predictions[predictions["trial_id"] == trial.trial_id]
        answers = own.filter(like="p_").idxmax(axis=1).str.removeprefix("p_")
        assert trial.val_macro_recall == pytest.approx(balanced_accuracy_score(own["label"], answers))


def test_the_manifest_tells_the_run_and_one_opening_of_the_test(finished_search: tuple[Path, str]) -> None:
    run, _ = finished_search
    text = (run / "run.json").read_text()
    manifest = json.loads(text)
    assert manifest["status"] == "completed"
    assert len(manifest["test_openings"]) == 1
    assert sorted(manifest["test_openings"][0]["trial_ids"]) == sorted(pd.read_parquet(run / "trials")["trial_id"])
    assert str(run.parent) not in text


def test_the_output_ends_with_table_figure_and_run(finished_search: tuple[Path, str]) -> None:
    run, output = finished_search
    assert "figure4.png" in output
    assert (run / "figures" / "figure4.png").stat().st_size > 10_000
    assert "resnet18 frozen_blocks=4" in output or "resnet18" in output


def test_the_same_seed_gives_the_same_table_one_trial_at_a_time(finished_search: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = finished_search
    again, _ = run_search(tmp_path, "--max-concurrent", "1", "--no-report")
    pd.testing.assert_frame_equal(metrics_of(again), metrics_of(run), check_exact=True)


def test_sampled_cells_get_equal_shares_and_their_tuned_values_are_named(sampled_search: tuple[Path, str]) -> None:
    run, output = sampled_search
    trials, decisions = pd.read_parquet(run / "trials"), pd.read_parquet(run / "decisions")
    assert trials["cell"].value_counts().to_dict() == {"cnn depth=2": 3, "cnn depth=3": 3}
    assert trials["learning_rate"].nunique() == 6 - 1  # both cells try the first point
    assert set(trials["status"]) <= {"completed", "stopped"}
    assert sorted(decisions["decision"]) == list(range(1, len(decisions) + 1))
    assert set(decisions["rung_epoch"]) == {1, 2}
    assert trials["test_macro_recall"].notna().sum() == 2  # each cell's best point
    best = trials.sort_values("selection_score").groupby("cell").tail(1)
    assert best["test_macro_recall"].notna().all()
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["strategy"]["sampler_options"]["constant_liar"] is True
    assert "learning_rate" in output


def test_ctrl_c_ends_within_10_seconds_and_leaves_a_readable_ledger(tmp_path: Path) -> None:
    command = search_command(tmp_path, "--max-epochs", "100000", "--patience", "100000", "--name", "cut")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell lets what it runs in the background ignore Ctrl-C, and so would all its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    epochs = tmp_path / "cut" / "epochs"
    deadline = time.monotonic() + 90
    while len(list(epochs.glob("*.parquet"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    time.sleep(1)
    sent = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - sent < 10, output
    assert process.returncode == 130, output
    assert "--resume" in output
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "interrupted"
    assert set(pd.read_parquet(tmp_path / "cut" / "trials")["status"]) == {"running"}
    assert len(pd.read_parquet(tmp_path / "cut" / "epochs")) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--space", "freez_grid"], "No search space 'freez_grid'. Did you mean 'freeze_grid'?"),
        (["--image-size", "16"], "--image-size 16 is too small for this CNN: its 5 stages need at least 100 pixels."),
        (["--set", "batch_sise=3"], "There is no field 'batch_sise'. Did you mean 'batch_size'?"),
        (["--set", "batch_size"], "write KEY=VALUE"),
        (["--set", "max_epochs=3"], "use --max-epochs instead"),
        (["--set", "weights=file"], "use --weights instead"),
        (["--set", "model=resnet50"], "no arm of 'freeze_grid' offers it"),
        (["--max-epochs", "0"], "max_epochs must be at least 1, not 0."),
        (["--select-by", "test_macro_recall"], "the test images stay sealed"),
        (["--cache-size", "much"], "write a number and a unit"),
        (["--samples", "3"], "--samples: 'freeze_grid' samples nothing"),
        (["--repeats", "3", "--scheduler", "asha"], "--repeats 3 needs --scheduler none"),
        (["--objective", "val_loss:min,test_macro_recall:max"], "the test images stay sealed"),
        (["--time-budget", "soon"], "write a number and a unit"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--max-concurrent", "0"], "--max-concurrent must be at least 1, not 0."),
        (["--cpus-per-trial", "0"], "--cpus-per-trial must be at least 0.1, not 0."),
        (["--gpus-per-trial", "nan"], "--gpus-per-trial must be at most 100000, not nan."),
        (["--cpus-per-trial", "inf"], "--cpus-per-trial must be at most 100000, not inf."),
        (["--gpus-per-trial", "1.5"], "--gpus-per-trial 1.5: a trial takes a share of one GPU, 0.0001 to 1, or whole ones"),
        (["--gpus-per-trial", "0.00001"], "--gpus-per-trial 0.00001: a trial takes a share of one GPU"),
        (["--data", "/nonexistent/folder"], "folder"),
        (["--weights", "/nonexistent/weights.pth"], "weights"),
        (["--name", ""], "--name '' cannot be a run's folder: write one name"),
        (["--name", ".."], "--name '..' cannot be a run's folder: write one name"),
        (["--name", ".hidden"], "--name '.hidden' cannot be a run's folder: write one name"),
        (["--name", "sub/run"], "Its parent is given by --out."),
    ],
)
def test_bad_options_are_one_line_and_exit_2(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--out", str(tmp_path / "runs")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.real
def test_masked_input_without_masks_is_refused_with_the_count(
    radiography: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(radiography), "--weights", "random", "--limit", "60", "--set", "input=lungs"]
    assert main([*options, "--out", str(tmp_path / "runs")]) == 2
    assert re.search(r"input lungs needs a lung mask for every image, and \d+ of 60 have none", capsys.readouterr().err)


def test_an_existing_run_is_never_written_over(finished_search: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = finished_search
    assert main(["--out", str(run.parent), "--name", run.name]) == 2
    assert "exists already" in capsys.readouterr().err
