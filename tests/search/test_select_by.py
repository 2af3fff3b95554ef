"""A search that goes by what its user names: end to end on phantoms, and what is refused before anything is trained."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tune_lung.metrics import class_of
from tune_lung.results.layout import RunPaths
from tune_lung.results.parts import write_part
from tune_lung.search.__main__ import main

from tests.small_search import OPTIONS, run_search

COLUMN = "val_recall:Viral Pneumonia"
SPACE = """
\"\"\"How well does one tiny network do?\"\"\"
from tune_lung.space import Arm, SearchSpace

SPACE = SearchSpace(arms=(Arm(model="cnn", depth=3, base_channels=4, batch_size=16, learning_rate=0.002),))
"""


@pytest.fixture
def space(tmp_path: Path) -> str:
    path = tmp_path / "one_tiny.py"
    path.write_text(SPACE)
    return str(path)


@pytest.mark.ray
def test_the_kept_epoch_is_the_best_one_by_the_column_that_was_named(tmp_path: Path, space: str) -> None:
    run, output = run_search(tmp_path, "--space", space, "--max-epochs", "4", "--select-by", COLUMN)
    (trial,) = pd.read_parquet(run / "trials").to_dict("records")
    epochs = pd.read_parquet(run / "epochs").sort_values("epoch").reset_index(drop=True)
    scores = epochs[COLUMN] - 1e-5 * epochs["val_loss"].clip(upper=10)
    assert list(epochs["selection_score"]) == list(scores)
    assert trial["best_epoch"] == epochs["epoch"][scores.idxmax()]
    assert trial[COLUMN] == epochs[COLUMN].max()
    predictions = pd.read_parquet(run / "validation_predictions")
    own = predictions[predictions["label"] == class_of(COLUMN)]
    answers = own.filter(like="p_").idxmax(axis=1).str.removeprefix("p_")
    assert trial[COLUMN] == pytest.approx((answers == own["label"]).mean())
    assert f"* leads on validation ({COLUMN});" in output
    assert f"recall {100 * trial[COLUMN]:.1f}% at epoch {trial['best_epoch']} of 4" in output


@pytest.mark.ray
def test_a_run_that_knew_fewer_metrics_goes_on_and_measures_them_from_there(tmp_path: Path, space: str) -> None:
    run, _ = run_search(tmp_path, "--space", space, "--max-epochs", "1", "--keep", "all")
    before = pd.read_parquet(run / "trials")
    new = [name for name in before.columns if class_of(name) or name.endswith("_cohen_kappa")]
    assert before[new].notna().all(axis=None)
    for table in ("trials", "epochs"):
        for part in (RunPaths(run).schema_part(table), *RunPaths(run).parts(table)):
            rows = pq.read_table(part)
            write_part(part, rows.drop_columns([name for name in new if name in rows.column_names]))
    assert not set(new) & set(pd.read_parquet(run / "trials").columns)

    command = [sys.executable, "-m", "tune_lung.search", "--resume", str(run), "--max-epochs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    epochs = pd.read_parquet(run / "epochs").sort_values("epoch")
    measured = [name for name in new if name in epochs.columns]
    assert list(epochs["epoch"]) == [1, 2]
    assert epochs[measured].isna().all(axis=1).tolist() == [True, False]
    assert epochs[["val_loss", "val_macro_recall", "val_micro_recall", "selection_score"]].notna().all(axis=None)
    (trial,) = pd.read_parquet(run / "trials").to_dict("records")
    assert (trial["status"], trial["epochs_run"]) == ("completed", 2)
    assert pd.isna(trial["val_cohen_kappa"]) == (trial["best_epoch"] == 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--select-by", "val_recall:COVD"], "--select-by val_recall:COVD: no image is of class 'COVD'. Did you mean 'COVID'?"),
        (
            ["--objective", "val_recall:Lung:max,trainable_params:min"],
            "--objective val_recall:Lung: no image is of class 'Lung'. Allowed: COVID, ",
        ),
    ],
)
def test_a_class_that_the_images_do_not_have_is_refused_before_anything_is_trained(
    tmp_path: Path, space: str, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["--space", space, "--out", str(tmp_path / "runs"), *OPTIONS, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
