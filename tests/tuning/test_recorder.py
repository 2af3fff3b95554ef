"""What the driver writes down about trials."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from tune_lung import metrics
from tune_lung.errors import SupersededError
from tune_lung.results.layout import RunPaths
from tune_lung.results.ledger import Ledger
from tune_lung.results.ownership import Ownership
from tune_lung.results.schema import FailureKind, StopReason
from tune_lung.strategy import Objective
from tune_lung.tuning import recorder as recorder_module
from tune_lung.tuning.failures import MOST_FAILURES, Failure
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.recorder import Recorder, SearchHaltedError

from tests.tuning.conftest import RESOURCES, LooksLikeATrial, epoch_result


def only_row(setup: SearchSetup) -> pd.Series:
    """The one row of the table trials."""
    trials = pd.read_parquet(setup.run_root / "trials")
    assert len(trials) == 1
    return trials.iloc[0]


def test_a_started_trial_is_in_the_ledger_before_its_first_epoch(recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial):
    recorder.on_trial_start(0, [], trial)
    row = only_row(setup)
    assert (row["status"], row["cell"], row["epochs_run"]) == ("running", "resnet18 frozen_blocks=2", 0)


def test_a_completed_trial_keeps_the_numbers_of_its_best_epoch(recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial):
    recorder.on_trial_start(0, [], trial)
    for epoch, score in ((1, 0.4), (2, 0.8), (3, 0.8), (4, 0.6)):
        recorder.on_trial_result(0, [], trial, epoch_result(epoch, score))
    trial.last_result = epoch_result(4, 0.6, stop_reason="max_epochs")
    recorder.on_trial_complete(0, [], trial)
    row = only_row(setup)
    assert (row["status"], row["stop_reason"], row["epochs_run"]) == ("completed", "max_epochs", 4)
    # epochs 2 and 3 tie: the earlier one is the one whose checkpoint was kept
    assert (row["best_epoch"], row["selection_score"], row["epoch_seconds_mean"]) == (2, 0.8, 2.0)
    assert len(pd.read_parquet(setup.run_root / "epochs")) == 4


def test_the_recall_of_each_class_stands_in_both_tables_and_what_was_not_told_is_null(
    recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial
):
    recorder.on_trial_start(0, [], trial)
    recorder.on_trial_result(0, [], trial, epoch_result(1, 0.8, **{"val_recall:a": 0.9, "val_recall:b": 0.7}))
    recorder.on_trial_result(0, [], trial, epoch_result(2, 0.6, **{"val_recall:a": 1.0}))
    trial.last_result = epoch_result(2, 0.6, stop_reason="max_epochs")
    recorder.on_trial_complete(0, [], trial)
    assert tuple(only_row(setup)[["val_recall:a", "val_recall:b"]]) == (0.9, 0.7)  # of the kept epoch
    epochs = pd.read_parquet(setup.run_root / "epochs")
    assert list(epochs["val_recall:a"]) == [0.9, 1.0]
    assert list(epochs["val_recall:b"].isna()) == [False, True]


def test_a_metric_that_is_declared_stands_in_both_tables(
    monkeypatch: pytest.MonkeyPatch, setup: SearchSetup, trial: LooksLikeATrial, request: pytest.FixtureRequest
):
    added = replace(metrics.metric_of("val_micro_recall"), name="first_share")
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, added))
    recorder: Recorder = request.getfixturevalue("recorder")  # its tables are begun with the metric
    recorder.on_trial_start(0, [], trial)
    recorder.on_trial_result(0, [], trial, epoch_result(1, 0.8, val_first_share=0.3))
    recorder.on_trial_complete(0, [], replace(trial, last_result=epoch_result(1, 0.8, stop_reason="max_epochs")))
    assert only_row(setup)["val_first_share"] == 0.3
    assert list(pd.read_parquet(setup.run_root / "epochs")["val_first_share"]) == [0.3]
    assert recorder.values_of(trial.trial_id, [Objective("val_first_share", "min")]) == (0.3,)
    recorder.add_test_scores(only_row(setup)["trial_id"], {"test_first_share": 0.4})
    assert only_row(setup)["test_first_share"] == 0.4


def test_a_diverged_trial_is_failed_with_its_reason(recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial):
    recorder.on_trial_start(0, [], trial)
    recorder.on_trial_result(0, [], trial, epoch_result(1, 0.4))
    trial.last_result = {"failure": "diverged: The training loss is nan at epoch 2.", "done": True}
    recorder.on_trial_result(0, [], trial, trial.last_result)
    recorder.on_trial_complete(0, [], trial)
    row = only_row(setup)
    assert (row["status"], row["stop_reason"], row["epochs_run"]) == ("failed", "failure", 1)
    assert row["failure"] == "diverged: The training loss is nan at epoch 2."
    assert recorder.leader() is None


def test_a_trial_without_a_stop_reason_was_stopped_by_the_scheduler(
    recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial
):
    recorder.on_trial_start(0, [], trial)
    recorder.on_trial_result(0, [], trial, epoch_result(1, 0.4))
    recorder.note_stop(trial.trial_id, StopReason.ASHA)
    trial.last_result = epoch_result(1, 0.4)
    recorder.on_trial_complete(0, [], trial)
    assert (only_row(setup)["status"], only_row(setup)["stop_reason"]) == ("stopped", "asha")


def test_a_trial_that_raised_has_the_last_line_of_its_traceback(
    recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    error_file = tmp_path / "error.txt"
    error_file.write_text("Traceback (most recent call last):\n  ...\nRuntimeError: no room on the GPU\n")
    recorder.on_trial_start(0, [], trial)
    trial.error_file = str(error_file)
    recorder.on_trial_error(0, [], trial)
    assert (only_row(setup)["failure_kind"], only_row(setup)["failure"]) == ("bug", "bug: RuntimeError: no room on the GPU")
    assert "Traceback" in caplog.text


def test_a_worker_that_died_silently_is_lost_and_its_trial_tried_again(
    recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial
):
    for number in (1, 2, 3):
        again = LooksLikeATrial(trial_id=f"ray{number}", config=trial.config)
        recorder.on_trial_start(0, [], again)
        recorder.on_trial_error(0, [], again)
        assert (only_row(setup)["status"], only_row(setup)["attempts"]) == ("running" if number < 3 else "failed", number)
    assert only_row(setup)["failure"] == "lost_worker: its worker's process died"


NO_GPU = """Failure # 1
The actor died because of an error raised in its creation task, ray::LungTrial.__init__() (pid=7, ip=10.0.0.7, actor_id=5a)
  File "device.py", line 3, in claim_device
    raise UnusableGpuError(reason)
tune_lung.tuning.device.UnusableGpuError: Found no NVIDIA driver on your system.
"""


def fail(recorder: Recorder, trial: LooksLikeATrial, error_file: Path, *, name: str) -> Failure:
    """Let Ray tell of a trial whose set-up raised: it never started."""
    again = LooksLikeATrial(trial_id=name, config=trial.config, error_file=str(error_file))
    failure = recorder.note_error(again)
    recorder.on_trial_error(0, [], again)
    return failure


def test_a_trial_on_an_unfit_node_is_tried_three_times_and_its_nodes_are_remembered(
    recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recorder_module, "nodes_at", lambda address: {f"node at {address}"})
    (tmp_path / "error.txt").write_text(NO_GPU)
    failures = [fail(recorder, trial, tmp_path / "error.txt", name=f"ray{number}") for number in range(3)]
    assert [failure.is_final for failure in failures] == [False, False, True]
    row = only_row(setup)
    assert (row["status"], row["failure_kind"], row["attempts"]) == ("failed", "unfit_node", 3)
    assert row["failure"] == "unfit_node: its node's GPU cannot be used: Found no NVIDIA driver on your system."
    assert recorder.unfit_nodes_for(trial.config) == {"node at 10.0.0.7"}


def test_a_search_whose_first_trials_all_meet_unfit_nodes_ends_and_can_go_on(
    recorder: Recorder, trial: LooksLikeATrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recorder_module, "nodes_at", lambda _: set())
    monkeypatch.setitem(MOST_FAILURES, FailureKind.UNFIT_NODE, 1)
    (tmp_path / "error.txt").write_text(NO_GPU)
    others = [replace(trial, config=trial.config | {"repeat": repeat}) for repeat in range(3)]
    for other in others[:2]:
        fail(recorder, other, tmp_path / "error.txt", name=f"ray{other.config['repeat']}")
    told = r"^The first 3 trials all failed, the last with unfit_node: .* go on with --resume\.$"
    with pytest.raises(SearchHaltedError, match=told):
        fail(recorder, others[2], tmp_path / "error.txt", name="ray2")


def test_epochs_trained_again_replace_the_old_one_by_one(recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial):
    recorder.on_trial_start(0, [], trial)
    for epoch, score in ((1, 0.4), (2, 0.5), (3, 0.6)):
        recorder.on_trial_result(0, [], trial, epoch_result(epoch, score))
    again = LooksLikeATrial(trial_id="ray2", config=trial.config)
    recorder.on_trial_error(0, [], trial)  # its worker is lost
    recorder.on_trial_start(0, [], again)
    recorder.on_trial_result(0, [], again, epoch_result(2, 0.55))
    recorder.flush()
    kept = pd.read_parquet(setup.run_root / "epochs")
    assert kept[["epoch", "selection_score"]].to_numpy().tolist() == [[1, 0.4], [2, 0.55], [3, 0.6]]
    again.last_result = epoch_result(2, 0.55, stop_reason="patience")
    recorder.on_trial_complete(0, [], again)
    assert (only_row(setup)["epochs_run"], only_row(setup)["best_epoch"], only_row(setup)["attempts"]) == (2, 2, 2)


@pytest.fixture
def superseded(recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial) -> Recorder:
    """A recorder with one trial under way, whose driver another has followed."""
    own = Ownership.claim(setup.run_root)
    recorder = Recorder(Ledger(setup.run_root, check_writer=own.check), setup, RESOURCES)
    recorder.on_trial_start(0, [], trial)
    own.release()
    RunPaths(setup.run_root).owner(2).write_text("{}")
    return recorder


CALLS = {
    "step": lambda recorder, _: recorder.on_step_begin(0, []),
    "result": lambda recorder, trial: recorder.on_trial_result(0, [], trial, epoch_result(1, 0.4)),
    "end": lambda recorder, trial: recorder.on_trial_complete(0, [], trial),
    "error": lambda recorder, trial: recorder.on_trial_error(0, [], trial),
    "error to be sorted": lambda recorder, trial: recorder.note_error(trial),
    "test": lambda recorder, _: recorder.add_test_scores(recorder.records[0].plan.trial_id, {"test_macro_recall": 0.5}),
    "flush": lambda recorder, _: recorder.flush(),
}


@pytest.mark.parametrize("call", CALLS)
def test_whatever_comes_to_a_superseded_driver_ends_its_search(superseded: Recorder, trial: LooksLikeATrial, call: str) -> None:
    trial.last_result = epoch_result(1, 0.4)
    with pytest.raises(SupersededError, match=r"taken over by another search \(attempt 2\)"):
        CALLS[call](superseded, trial)
    assert isinstance(superseded.halted_by, SupersededError)


def test_what_a_worker_found_of_another_owner_ends_the_search(recorder: Recorder, trial: LooksLikeATrial, tmp_path: Path) -> None:
    """Folders on the network may show it to the worker first: its trial has not failed."""
    recorder.on_trial_start(0, [], trial)
    trial.error_file = str(tmp_path / "error.txt")
    text = "The run 'run' was taken over by another search (attempt 2). This one stops."
    (tmp_path / "error.txt").write_text(f"Traceback\n  ...\ntune_lung.errors.SupersededError: {text}\n")
    with pytest.raises(SupersededError, match=f"^{re.escape(text)}$"):
        recorder.note_error(trial)


def rows(setup: SearchSetup, table: str = "trials") -> pd.DataFrame:
    return pd.read_parquet(setup.run_root / table)


def others_of(trial: LooksLikeATrial, number: int) -> list[LooksLikeATrial]:
    """Trials of the same cell, a repeat each."""
    return [LooksLikeATrial(trial_id=f"ray{index}", config=trial.config | {"repeat": index}) for index in range(number)]


def test_how_many_ran_at_once_is_counted_and_not_what_was_asked_for(
    recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial
):
    """Up to two may run here: the first runs alone, then three at once, then the last again alone."""
    first, *three, last = others_of(trial, 5)
    for started in ([first], three, [last]):
        for one in started:
            recorder.on_trial_start(0, [], one)
        for one in started:
            one.last_result = epoch_result(1, 0.5, stop_reason="max_epochs")
            recorder.on_trial_complete(0, [], one)
    found = rows(setup).sort_values("repeat")
    assert found["concurrent_trials"].to_list() == [1, 3, 3, 3, 1]
    assert found["slot"].to_list() == [0, 0, 1, 2, 0]


def test_a_trial_whose_worker_is_gone_runs_no_more_and_no_longer_takes_a_slot(
    recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial
):
    lost, stays = others_of(trial, 2)
    for one in (lost, stays):
        recorder.on_trial_start(0, [], one)
    recorder.on_trial_error(0, [], lost)  # tried again, when there is a node
    assert [record.plan.repeat for record in recorder.running()] == [1]
    again = LooksLikeATrial(trial_id="ray9", config=lost.config)
    recorder.on_trial_start(0, [], again)
    assert [record.plan.repeat for record in recorder.running()] == [0, 1]
    recorder.flush()
    assert rows(setup).sort_values("repeat")["slot"].to_list() == [0, 1]


def test_a_trial_whose_worker_never_came_up_has_no_start(recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial):
    for number in (1, 2, 3):
        recorder.on_trial_error(0, [], LooksLikeATrial(trial_id=f"ray{number}", config=trial.config))
    row = only_row(setup)
    assert row["status"] == "failed"
    assert row[["started", "slot", "concurrent_trials"]].isna().all()
    assert abs(datetime.now(UTC) - row["ended"]) < timedelta(minutes=1)


def test_a_trial_starts_once_and_ends_when_it_ended_last(recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial):
    before = datetime.now(UTC)
    recorder.on_trial_start(0, [], trial)
    started = only_row(setup)["started"]
    assert before <= started <= datetime.now(UTC)
    assert pd.isna(only_row(setup)["ended"])
    recorder.on_trial_error(0, [], trial)
    again = LooksLikeATrial(trial_id="ray2", config=trial.config)
    recorder.on_trial_start(0, [], again)
    restarted = datetime.now(UTC)
    again.last_result = epoch_result(1, 0.5, stop_reason="max_epochs")
    recorder.on_trial_complete(0, [], again)
    assert only_row(setup)["started"] == started
    assert restarted <= only_row(setup)["ended"] <= datetime.now(UTC)


def test_epochs_of_one_report_end_one_after_another_before_it_comes(
    recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial
):
    recorder.on_trial_start(0, [], trial)
    report = {"epochs": [epoch_result(epoch, 0.5)["epochs"][0] for epoch in (1, 2, 3)], "done": False}  # 2.5 s each
    before = datetime.now(UTC)
    recorder.on_trial_result(0, [], trial, report)
    recorder.flush()
    ended = rows(setup, "epochs").sort_values("epoch")["ended"]
    assert before <= ended.iloc[-1] <= datetime.now(UTC)
    assert ended.diff().dropna().to_list() == [timedelta(seconds=2.5)] * 2


def test_epochs_told_again_ended_when_they_did(recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial):
    """Epoch 1 is known; the worker is lost, and the next one tells 1 and 2 of its checkpoint before it trains 3."""
    recorder.on_trial_start(0, [], trial)
    recorder.on_trial_result(0, [], trial, epoch_result(1, 0.5))
    recorder.flush()
    first = rows(setup, "epochs")["ended"].iloc[0]
    recorder.on_trial_error(0, [], trial)
    again = LooksLikeATrial(trial_id="ray2", config=trial.config)
    recorder.on_trial_start(0, [], again)
    told_again = [epoch_result(epoch, 0.5, is_told_again=True)["epochs"][0] for epoch in (1, 2)]
    recorder.on_trial_result(0, [], again, {"epochs": [*told_again, *epoch_result(3, 0.5)["epochs"]], "done": False})
    recorder.flush()
    ended = rows(setup, "epochs").sort_values("epoch")["ended"].to_list()
    assert ended[0] == first
    assert pd.isna(ended[1])
    assert ended[2] > first
    record = recorder.record_of("ray2")
    assert record is not None
    assert len(record.moments) == 2  # its start, and the one epoch that it has trained since
