"""Old results folders of Ray Tune: json is read, everything else is left alone."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from tune_lung.errors import InputError
from tune_lung.results import ray_results
from tune_lung.results.imported import run_of
from tune_lung.results.ray_results import read_ray_results
from tune_lung.results.schema import TrialStatus


def write_trial(folder: Path, params: dict[str, Any], results: list[dict[str, Any]], *, error: bool = False) -> Path:
    """Write a trial's folder as Ray's own loggers do."""
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(params, indent=2))
    (folder / "result.json").write_text("".join(json.dumps(result) + "\n" for result in results))
    if error:
        (folder / "error.txt").write_text("Traceback: /home/somebody/secret.py")
    return folder


def results_of(*recalls: float, done: bool = True) -> list[dict[str, Any]]:
    """Results as a trainable of `epoch`, recall and loss reports them, with what Ray adds."""
    return [
        {
            "epoch": epoch,
            "val_macro_recall": recall,
            "val_loss": 1 / epoch,
            "accuracy": 0.5,
            "hostname": "somewhere",
            "timestamp": 1_600_000_000 + epoch,
            "training_iteration": epoch,
            "done": done and epoch == len(recalls),
        }
        for epoch, recall in enumerate(recalls, start=1)
    ]


PARAMS = {"model": "resnet18", "frozen_blocks": 2, "learning_rate": 0.001, "batch_size": 16, "dropout": 0.1}


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Four trials: whole, stopped after 2 of 4 epochs, failed, and one that never reported."""
    folder = tmp_path / "old experiment"
    write_trial(folder / "trial_a", PARAMS, results_of(0.5, 0.7, 0.6, 0.65))
    write_trial(folder / "trial_b", PARAMS | {"learning_rate": 0.01}, results_of(0.4, 0.3))
    write_trial(folder / "trial_c", PARAMS | {"batch_size": 32}, results_of(0.2, done=False), error=True)
    write_trial(folder / "trial_d", PARAMS, [])
    (folder / "experiment_state-2020.json").write_text("{}")
    return folder


def test_trials_are_read_with_params_epochs_and_how_they_ended(experiment: Path) -> None:
    search = read_ray_results(experiment)
    assert [(trial.name, trial.status) for trial in search.trials] == [
        ("trial_a", TrialStatus.COMPLETED),
        ("trial_b", TrialStatus.STOPPED),  # Ray says done, but of a shorter trial
        ("trial_c", TrialStatus.FAILED),
    ]
    assert search.trials[0].params == PARAMS
    assert search.trials[0].epochs[1] == {"epoch": 2, "val_macro_recall": 0.7, "val_loss": 0.5, "selection_score": 0.7}
    assert search.notes == ("Left out 1 of 4 trials without a readable result",)
    assert search.started_utc == "2020-09-13T12:26:41+00:00"  # the first result's 1,600,000,001 s


def test_the_best_epoch_is_the_trials_score(experiment: Path) -> None:
    row = run_of(read_ray_results(experiment)).trials[0].row
    assert (row["best_epoch"], row["selection_score"], row["val_macro_recall"], row["val_loss"]) == (2, 0.7, 0.7, 0.5)


def test_nothing_but_our_columns_is_kept(experiment: Path) -> None:
    recorded = run_of(read_ray_results(experiment))
    text = str(recorded)
    assert not [word for word in ("somewhere", "secret", "accuracy") if word in text]
    assert recorded.notes[1] == "Ignored, as no field of a trial has the name: dropout"


def test_a_loss_alone_ranks_the_lower_the_better(tmp_path: Path) -> None:
    losses = [{"val_loss": loss, "done": True} for loss in (0.9, 0.4, 0.6)]
    write_trial(tmp_path / "experiment" / "trial", PARAMS, losses)
    search = read_ray_results(tmp_path / "experiment")
    assert search.select_by == "val_loss"
    assert [row["selection_score"] for row in search.trials[0].epochs] == [-0.9, -0.4, -0.6]
    assert run_of(search).trials[0].row["best_epoch"] == 2


def test_nested_settings_are_read_by_their_innermost_names(tmp_path: Path) -> None:
    write_trial(tmp_path / "experiment" / "trial", {"train_loop_config": {"batch_size": 16}}, results_of(0.5))
    assert read_ray_results(tmp_path / "experiment").trials[0].params == {"batch_size": 16}


def test_a_setting_that_was_left_open_is_none(tmp_path: Path) -> None:
    write_trial(tmp_path / "experiment" / "trial", PARAMS | {"channels": None}, results_of(0.5))
    row = run_of(read_ray_results(tmp_path / "experiment")).trials[0].row
    assert "channels" not in row


def test_an_epoch_reported_again_after_a_restart_counts_once(tmp_path: Path) -> None:
    again = [*results_of(0.1, 0.2), *results_of(0.1, 0.4, 0.5)]
    write_trial(tmp_path / "experiment" / "trial", PARAMS, again)
    epochs = read_ray_results(tmp_path / "experiment").trials[0].epochs
    assert [(row["epoch"], row["val_macro_recall"]) for row in epochs] == [(1, 0.1), (2, 0.4), (3, 0.5)]


def test_a_torn_last_line_and_values_that_are_no_numbers_are_passed_over(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "experiment" / "trial", PARAMS, results_of(0.5, 0.6))
    with (folder / "result.json").open("a") as file:
        file.write('{"epoch": 3, "val_macro_recall": "high", "val_loss": NaN}\n{"epoch": 4, "val_ma')
    epochs = read_ray_results(tmp_path / "experiment").trials[0].epochs
    assert [row["epoch"] for row in epochs] == [1, 2, 3]
    assert "val_macro_recall" not in epochs[2]
    assert run_of(read_ray_results(tmp_path / "experiment")).trials[0].row["best_epoch"] == 2


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.sprung, "executed")


def test_a_planted_pickle_is_not_executed(experiment: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    for name in ("tuner.pkl", "searcher-state-2020.pkl", "trial_a/params.pkl", "trial_c/error.pkl"):
        (experiment / name).write_bytes(trap)
    (experiment / "trial_b" / "params.json").write_bytes(trap)  # under a name that is read
    search = read_ray_results(experiment)
    assert [trial.name for trial in search.trials] == ["trial_a", "trial_c"]
    assert not sprung.exists()
    pickle.loads(trap)  # noqa: S301 - the trap works
    assert sprung.exists()


@pytest.mark.parametrize("content", ["[1, 2]", "[" * 100_000, "null", ""])
def test_params_that_are_no_settings_leave_a_trial_out(content: str, tmp_path: Path) -> None:
    write_trial(tmp_path / "experiment" / "good", PARAMS, results_of(0.5))
    folder = write_trial(tmp_path / "experiment" / "odd", PARAMS, results_of(0.5))
    (folder / "params.json").write_text(content)
    assert [trial.name for trial in read_ray_results(tmp_path / "experiment").trials] == ["good"]


def test_a_folder_without_trials_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="'photos' is no results folder of Ray Tune: none of the folders in it"):
        read_ray_results(tmp_path / "photos")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["params.json", "result.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "terabytes"])
def test_a_trial_whose_files_have_no_end_is_left_out(tmp_path: Path, name: str, kind: str) -> None:
    write_trial(tmp_path / "good", {"learning_rate": 0.1}, results_of(0.5))
    path = write_trial(tmp_path / "bad", {"learning_rate": 0.1}, results_of(0.5)) / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(2**42)
    found = read_ray_results(tmp_path)
    assert [trial.name for trial in found.trials] == ["good"]
    assert found.notes == ("Left out 1 of 2 trials without a readable result",)


def test_of_a_result_only_numbers_that_are_used_are_kept(tmp_path: Path) -> None:
    write_trial(tmp_path / "a", {"learning_rate": 0.1}, [{**result, "config": ["x"] * 1000} for result in results_of(0.5)])
    assert "config" not in ray_results._results(tmp_path / "a" / "result.json")[0]
