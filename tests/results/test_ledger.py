"""The ledger writes whole, checked parts that pandas reads alone."""

import json

import numpy as np
import pandas as pd
import pytest

from tune_lung.errors import InputError
from tune_lung.results.layout import TABLES
from tune_lung.results.ledger import Ledger
from tune_lung.results.schema import StopReason, TrialStatus, Verdict, table_schema

from tests.fabricated_run import FREEZE_GRID, write_fabricated_run
from tests.whole_manifest import whole_manifest

CLASSES = ["COVID", "Viral Pneumonia"]


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger.create(tmp_path / "run", whole_manifest(CLASSES))


def read(ledger: Ledger, table: str) -> pd.DataFrame:
    return pd.read_parquet(ledger.paths.table(table))


@pytest.mark.parametrize("table", TABLES)
def test_a_new_ledger_has_every_table_readable_and_empty(ledger, table):
    frame = read(ledger, table)
    assert len(frame) == 0
    assert list(frame.columns) == table_schema(table, CLASSES).names


def test_a_run_folder_in_use_is_not_taken(ledger):
    with pytest.raises(InputError, match="'run' exists already"):
        Ledger.create(ledger.paths.root, whole_manifest(CLASSES))


def test_an_empty_folder_becomes_a_run(tmp_path):
    Ledger.create(tmp_path, whole_manifest(CLASSES))
    assert Ledger.open(tmp_path).classes == tuple(CLASSES)


def test_a_folder_without_manifest_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"holds no run\.json"):
        Ledger.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\xff"])
def test_a_damaged_manifest_is_one_clear_error(ledger, text):
    ledger.paths.manifest.write_bytes(text.encode("latin-1"))
    ledger.paths.manifest_copy.unlink()
    with pytest.raises(InputError, match=r"run\.json of .* (cannot be read|lacks what a run must say)"):
        ledger.read_manifest()


@pytest.mark.parametrize("where", [10, 40, -20])
def test_a_flipped_byte_in_the_manifest_is_noticed_and_its_copy_read(ledger, where, caplog):
    whole = ledger.read_manifest()
    content = bytearray(ledger.paths.manifest.read_bytes())
    content[where] ^= 1
    ledger.paths.manifest.write_bytes(content)
    assert ledger.read_manifest() == whole
    assert "run.json is damaged; its copy is used." in caplog.text


def test_the_manifest_is_json_without_nan(ledger):
    with pytest.raises(ValueError, match="JSON compliant"):
        ledger.write_manifest({"loss": float("nan")})
    assert json.loads(ledger.paths.manifest.read_text())["data"]["classes"] == CLASSES


def test_a_trial_is_replaced_as_it_goes_on(ledger):
    ledger.write_trial({"trial_id": "a", "status": TrialStatus.RUNNING, "epochs_run": 1})
    ledger.write_trial({"trial_id": "a", "status": TrialStatus.COMPLETED, "stop_reason": StopReason.PATIENCE, "epochs_run": 9})
    trial = read(ledger, "trials").set_index("trial_id").loc["a"]
    assert (trial["status"], trial["stop_reason"], trial["epochs_run"]) == ("completed", "patience", 9)


def test_what_is_missing_or_not_finite_is_null(ledger):
    ledger.write_trial({"trial_id": "a", "val_loss": float("nan"), "selection_score": float("inf")})
    trial = read(ledger, "trials").iloc[0].drop("trial_id")
    assert trial.isna().all()


def test_numpy_values_and_tuples_fit(ledger):
    ledger.write_trial(
        {
            "trial_id": "a",
            "channels": (32, 64),
            "repeat": np.int64(1),
            "val_loss": np.float32(0.5),
            "prefix_cached": np.bool_(True),
        }
    )
    trial = read(ledger, "trials").iloc[0]
    assert list(trial["channels"]) == [32, 64]
    assert (trial["repeat"], trial["val_loss"], trial["prefix_cached"]) == (1, 0.5, True)


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"accuracy": 0.9}, "no column accuracy"),
        ({"status": "finished"}, "not a valid TrialStatus"),
        ({"stop_reason": "tired"}, "not a valid StopReason"),
        ({"repeat": "one"}, "does not fit its column of the table trials"),
        ({"repeat": 2**40}, "does not fit its column of the table trials"),
    ],
)
def test_what_the_schema_does_not_know_is_refused(ledger, row, error):
    with pytest.raises(ValueError, match=error):
        ledger.write_trial({"trial_id": "a", **row})
    assert len(read(ledger, "trials")) == 0


def test_epochs_of_a_trial_are_replaced_whole(ledger):
    for last in (1, 3):
        ledger.write_epochs("a", [{"epoch": epoch, "train_loss": 1 / epoch} for epoch in range(1, last + 1)])
    ledger.write_epochs("b", [{"epoch": 1}])
    assert read(ledger, "epochs").groupby("trial_id")["epoch"].max().to_dict() == {"a": 3, "b": 1}


def test_decisions_replace_only_those_of_the_trials_named(ledger):
    def decision(trial_id: str, rung: int, verdict: Verdict) -> dict:
        return {"trial_id": trial_id, "cell": "cnn", "rung_epoch": rung, "value": 0.5, "cutoff": None, "verdict": verdict}

    ledger.write_decisions([decision("a", 4, Verdict.CONTINUE), decision("b", 4, Verdict.STOP)])
    ledger.write_decisions([decision("a", 4, Verdict.CONTINUE), decision("a", 16, Verdict.STOP)])
    written = read(ledger, "decisions")
    assert sorted(zip(written["trial_id"], written["rung_epoch"], strict=True)) == [("a", 4), ("a", 16), ("b", 4)]


@pytest.mark.parametrize("table", ["predictions", "validation_predictions"])
def test_predictions_keep_label_and_probabilities(ledger, table):
    rows = {"image_id": ["x"], "label": ["COVID"], "p_Viral Pneumonia": [0.25], "p_COVID": [0.75]}
    getattr(ledger, f"write_{table}")("a", pd.DataFrame(rows))
    written = read(ledger, table).iloc[0].to_dict()
    assert written == {"trial_id": "a", "image_id": "x", "label": "COVID", "p_COVID": 0.75, "p_Viral Pneumonia": 0.25}


def test_a_prediction_for_another_class_is_refused(ledger):
    with pytest.raises(ValueError, match="no column p_Tuberculosis"):
        ledger.write_predictions("a", pd.DataFrame({"image_id": ["x"], "label": ["COVID"], "p_Tuberculosis": [1.0]}))


def test_a_worker_writes_by_the_folder_alone(ledger):
    rows = pd.DataFrame({"image_id": ["x"], "label": ["COVID"], "p_COVID": [1.0], "p_Viral Pneumonia": [0.0]})
    Ledger(ledger.paths.root).write_validation_predictions("a", rows)
    assert len(read(ledger, "validation_predictions")) == 1


def test_explanations_get_the_trials_id(ledger):
    ledger.write_explanations("a", [{"image_id": "x", "label": "COVID", "method": "gradcam", "lung_share": 0.6}])
    written = read(ledger, "explanations").iloc[0]
    assert (written["trial_id"], written["lung_share"]) == ("a", 0.6)
    assert pd.isna(written["lung_area_share"])


def test_a_whole_run_is_readable_with_pandas_alone_under_any_folder_name(tmp_path):
    run = write_fabricated_run(tmp_path / "cell=k" / "my run")
    trials = pd.read_parquet(run / "trials")
    predictions = pd.read_parquet(run / "predictions")
    probabilities = predictions.filter(like="p_")
    assert set(trials["cell"]) == {cell.name for cell in FREEZE_GRID.cells()}
    assert len(predictions) == 11 * (pd.read_parquet(run / "images")["split"] == "test").sum()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
