"""What other tools are told of a search: the ledger's numbers, and nothing of the machine."""

import logging
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tensorboardX.proto.event_pb2 import Event

from tune_lung.errors import InputError
from tune_lung.metrics import columns_on_validation
from tune_lung.search import steps as search_steps
from tune_lung.search.__main__ import main
from tune_lung.search.command_line import read_command_line
from tune_lung.search.interpretation import check_trackers
from tune_lung.search.options import OPTION_BY_NAME
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.watching import trackers
from tune_lung.tuning.watching.trackers import Tracker, make_trackers, require_trackers

from tests.tuning.conftest import LooksLikeATrial, epoch_result

NUMBERS = (
    "train_loss",
    "val_loss",
    "val_macro_recall",
    "val_micro_recall",
    "selection_score",
    "epoch_seconds",
    "validation_seconds",
    "images_per_second",
    "learning_rate",
)


class FakeLogger:
    """Stands for one of Ray's loggers and writes down what it is told; it raises when told a certain thing."""

    def __init__(self, raises_at: str = "") -> None:
        self.told: list[tuple[Any, ...]] = []
        self._raises_at = raises_at

    def log_trial_start(self, trial: Any) -> None:
        self._hear("start", str(trial), dict(trial.config))

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:  # noqa: ARG002 - Ray's signature
        self._hear("result", iteration, result)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:  # noqa: ARG002 - Ray's signature
        self._hear("end", failed)

    def on_experiment_end(self, trials: list[Any]) -> None:
        self._hear("experiment end", trials)

    def _hear(self, *what: Any) -> None:
        self.told.append(what)
        if what[0] == self._raises_at:
            raise ConnectionError("no answer\nfrom the server")


def run_trial(recorder: Recorder, tracker: Any, trial: LooksLikeATrial, *results: dict[str, Any]) -> None:
    """Let both hear of a trial as Ray tells it: the recorder first."""
    for callback in (recorder, tracker):
        callback.on_trial_start(0, [], trial)
    for result in results:
        trial.last_result = result
        for callback in (recorder, tracker):
            callback.on_trial_result(0, [], trial, result)
    for callback in (recorder, tracker):
        callback.on_trial_complete(0, [], trial)


def rays_result(epoch: int, score: float, **more: Any) -> dict[str, Any]:
    """An epoch's result as it comes from Ray, with what Ray adds of the worker."""
    added = {"hostname": socket.gethostname(), "node_ip": "10.1.2.3", "pid": 4711, "trial_id": "ray1", "time_total_s": 1.0}
    return epoch_result(epoch, score, **more) | {"config": {"point": {}}} | added


def events_of(folder: Path) -> list[Event]:
    """Read TensorBoard's event files of a folder: records of a length, its checksum, the event, its checksum."""
    events = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        content, position = file.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            events.append(Event.FromString(content[position + 12 : position + 12 + length]))
            position += 12 + length + 4
    return events


def scalars_of(folder: Path) -> dict[tuple[int, str], float]:
    """Every number of a trial by step and name."""
    return {
        (event.step, value.tag.removeprefix("ray/tune/")): value.simple_value
        for event in events_of(folder)
        for value in event.summary.value
        if value.tag.startswith("ray/tune/") and value.HasField("simple_value")
    }


def assert_says_nothing_of_the_machine(folder: Path, *secrets: str) -> None:
    for file in folder.rglob("*"):
        relative = str(file.relative_to(folder))
        content = file.read_bytes() if file.is_file() else b""
        for secret in (socket.gethostname(), str(folder.parent), str(Path.home()), *secrets):
            found = re.compile(rf"(?<!\w){re.escape(secret)}(?!\w)".encode())  # a host's name may be as short as two letters
            assert not found.search(relative.encode())
            assert not found.search(content)


def test_a_logger_is_told_the_point_and_the_ledgers_rows(recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial):
    logger = FakeLogger()
    tracker = Tracker("fake", logger, recorder, setup.run_root / "fake")
    run_trial(recorder, tracker, trial, rays_result(1, 0.5), rays_result(2, 0.7, stop_reason="patience"))
    tracker.on_experiment_end([])
    kinds = [what[0] for what in logger.told]
    assert kinds == ["start", "result", "result", "end", "experiment end"]
    _, name, point = logger.told[0]
    assert name == "resnet18 frozen_blocks=2"
    assert (point["cell"], point["frozen_blocks"], point["learning_rate"], point["repeat"]) == (name, 2, 5e-4, 0)
    for epoch, (_, step, row) in enumerate(logger.told[1:3], start=1):
        assert step == row["training_iteration"] == epoch
        assert set(row) == {*NUMBERS, "training_iteration"}
    ledger = pd.read_parquet(setup.run_root / "epochs").sort_values("epoch")
    assert [row["val_macro_recall"] for _, _, row in logger.told[1:3]] == list(ledger["val_macro_recall"]) == [0.5, 0.7]
    assert logger.told[3] == ("end", False)


def test_a_diverged_trial_ends_as_failed_and_its_last_epoch_is_not_told(
    recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial
):
    logger = FakeLogger()
    failure = {"failure": "diverged: The training loss is nan at epoch 2.", "done": True}
    run_trial(recorder, Tracker("fake", logger, recorder, setup.run_root / "fake"), trial, rays_result(1, 0.5), failure)
    assert [what[0] for what in logger.told] == ["start", "result", "end"]
    assert logger.told[-1] == ("end", True)


@pytest.mark.parametrize("raises_at", ["start", "result", "end"])
def test_a_logger_that_fails_is_told_no_more_and_said_once(
    recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial, raises_at: str, caplog: pytest.LogCaptureFixture
):
    logger = FakeLogger(raises_at)
    tracker = Tracker("fake", logger, recorder, setup.run_root / "fake")
    with caplog.at_level(logging.WARNING):
        run_trial(recorder, tracker, trial, rays_result(1, 0.5), rays_result(2, 0.7))
        tracker.on_experiment_end([])
    assert [what[0] for what in logger.told][-1] == raises_at
    assert caplog.messages == [
        "--tracker fake failed and is told no more; the run's tables have it all. ConnectionError: no answer"
    ]
    assert len(pd.read_parquet(setup.run_root / "epochs")) == 2


def test_lists_are_told_as_text(recorder: Recorder, setup: SearchSetup):
    logger = FakeLogger()
    point = {"model": "cnn", "channels": (4, 8), "kernel_sizes": (3, 3), "padding": "same", "max_epochs": 4}
    trial = LooksLikeATrial(trial_id="ray1", config={"cell": "cnn", "point": point, "repeat": 1, "proposed_order": 1})
    run_trial(recorder, Tracker("fake", logger, recorder, setup.run_root / "fake"), trial, rays_result(1, 0.5))
    _, name, told = logger.told[0]
    assert (name, told["channels"], told["kernel_sizes"]) == ("cnn repeat=1", "4,8", "3,3")
    assert "frozen_blocks" not in told  # it does not apply to a CNN


def test_tensorboard_files_hold_the_epochs_and_the_point_and_nothing_of_the_machine(
    recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial
):
    (tracker,) = make_trackers(["tensorboard", "tensorboard"], recorder, setup.run_root)
    run_trial(recorder, tracker, trial, rays_result(1, 0.5), rays_result(2, 0.7, stop_reason="patience"))
    record = recorder.record_of(trial.trial_id)
    folder = setup.run_root / "tensorboard" / record.plan.trial_id
    expected = {(row["epoch"], name): row[name] for row in record.epochs for name in NUMBERS}
    assert {key: value for key, value in scalars_of(folder).items() if key[0]} == pytest.approx(expected, rel=1e-6)
    described = "".join(str(event) for event in events_of(folder))
    assert "frozen_blocks" in described
    assert_says_nothing_of_the_machine(setup.run_root / "tensorboard", "10.1.2.3")


def test_tensorboard_renames_no_file_but_its_own_and_writes_over_none(
    recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", lambda: 1_700_000_000.0)  # all in one second
    recorder.on_trial_start(0, [], trial)
    folder = setup.run_root / "tensorboard" / recorder.record_of(trial.trial_id).plan.trial_id
    folder.mkdir(parents=True)
    others = [folder / f"events.out.tfevents.{name}" for name in ("1600000000.desk", "1700000000.tune_lung", "mine.a.b")]
    for path in others:
        path.write_bytes(b"mine")
    (tracker,) = make_trackers(["tensorboard"], recorder, setup.run_root)
    tracker.on_trial_start(0, [], trial)
    tracker.on_trial_complete(0, [], trial)
    assert all(path.exists() and path.read_bytes() == b"mine" for path in others)
    (own,) = set(folder.iterdir()) - set(others)
    assert own.name == "events.out.tfevents.1700000000-2.tune_lung"


@pytest.mark.ray
def test_a_search_tells_tensorboard_what_stands_in_its_ledger(finished_search: tuple[Path, str]):
    run, _ = finished_search
    epochs = pd.read_parquet(run / "epochs")
    assert sorted(folder.name for folder in (run / "tensorboard").iterdir()) == sorted(epochs["trial_id"].unique())
    for trial_id, own in epochs.groupby("trial_id"):
        expected = {
            (row["epoch"], name): row[name] for row in own.to_dict("records") for name in {*NUMBERS, *columns_on_validation()}
        }
        told = {key: value for key, value in scalars_of(run / "tensorboard" / str(trial_id)).items() if key[0]}
        assert told == pytest.approx(expected, rel=1e-6)  # TensorBoard keeps 32 bits
    assert_says_nothing_of_the_machine(run / "tensorboard", str(run.parent))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_keeps_a_database_in_the_run_that_names_no_folder_of_the_machine(
    recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("mlflow", reason="mlflow is an extra: pip install 'tune-lung[mlflow]'")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tracker,) = make_trackers(["mlflow"], recorder, setup.run_root)
    run_trial(recorder, tracker, trial, rays_result(1, 0.5), rays_result(2, 0.7, stop_reason="patience"))
    client = MlflowClient(f"sqlite:///{setup.run_root / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name(setup.run_root.name).experiment_id])
    assert (run.info.run_name, run.info.status) == ("resnet18 frozen_blocks=2", "FINISHED")
    assert run.data.params["frozen_blocks"] == "2"
    for name in NUMBERS:
        told = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        assert told == {row["epoch"]: row[name] for row in recorder.record_of(trial.trial_id).epochs}
    assert_says_nothing_of_the_machine(setup.run_root / "mlflow", "10.1.2.3")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_wandb_offline_keeps_nothing_of_the_machine(
    recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("wandb", reason="wandb is an extra: pip install 'tune-lung[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tracker,) = make_trackers(["wandb"], recorder, setup.run_root)
    run_trial(recorder, tracker, trial, rays_result(1, 0.5), rays_result(2, 0.7, stop_reason="patience"))
    tracker.on_experiment_end([])
    (file,) = (setup.run_root / "wandb").rglob("*.wandb")
    for told in (b"val_macro_recall", b"frozen_blocks", b"resnet18 frozen_blocks=2"):
        assert told in file.read_bytes()
    shutil.rmtree(file.parent / "logs")  # of wandb's own doings; they are never sent
    assert_says_nothing_of_the_machine(setup.run_root / "wandb", "10.1.2.3")


def test_wandb_without_a_key_says_so_before_anything_is_trained(
    recorder: Recorder, setup: SearchSetup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    pytest.importorskip("wandb", reason="wandb is an extra: pip install 'tune-lung[wandb]'")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"^--tracker wandb cannot be opened: .*wandb login"):
        make_trackers(["wandb"], recorder, setup.run_root)


@pytest.mark.parametrize("name", sorted(trackers._OPEN))
def test_a_tracker_without_its_package_names_the_extra_to_install(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tune_lung.search.interpretation.find_spec", lambda _: None)
    options = read_command_line(["--tracker", name]).options
    with pytest.raises(InputError, match=rf"^--tracker {name} .* pip install 'tune-lung\[{name}\]'\.$"):
        check_trackers(options)


def test_an_empty_folder_of_the_packages_name_is_no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "tensorboardX").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(__import__("sys").modules, "tensorboardX")
    with pytest.raises(InputError, match="tensorboard"):
        check_trackers(read_command_line(["--tracker", "tensorboard"]).options)


def test_every_tracker_that_can_be_asked_for_can_be_opened():
    assert set(OPTION_BY_NAME["tracker"].choices) == set(trackers._OPEN)


class Silent(BaseHTTPRequestHandler):
    """Answers, and logs nothing."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def answering() -> Iterator[str]:
    """The address of a server that answers everything with an error."""
    with HTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_tracker_without_its_key_or_server_is_refused_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("wandb", reason="wandb is an extra: pip install 'tune-lung[wandb]'")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_SETUP_API_KEY_HOOK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setattr(search_steps, "_prepare", lambda *_: pytest.fail("Images are decoded."))
    messages = {
        "wandb": "--tracker wandb has no key. Run `wandb login`, set WANDB_API_KEY, or keep all on this machine with WANDB_MODE=",
        "mlflow": "--tracker mlflow: no server answers at 127.0.0.1, which MLFLOW_TRACKING_URI names.",
    }
    for name, message in messages.items():
        assert main(["--tracker", name, "--out", str(tmp_path / "runs")]) == 2
        printed = capsys.readouterr().err
        assert printed.startswith(f"error: {message}")
        assert printed.count("\n") == 1
        assert "secret" not in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["WANDB_MODE", "WANDB_API_KEY"])
def test_wandb_is_taken_with_a_key_or_offline(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv(name, "offline")
    assert require_trackers(["wandb"]) == []


def test_a_server_that_answers_anything_is_one(answering: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", answering)
    assert len(require_trackers(["mlflow"])) <= 1


def test_how_to_see_what_is_written_is_said_where_no_viewer_is_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    assert require_trackers(["tensorboard", "mlflow", "tensorboard"]) == [
        "--tracker tensorboard: its viewer is not installed here. To see what is written: pip install tensorboard; tensorboard"
        " --logdir RUN/tensorboard",
        "--tracker mlflow: its viewer is not installed here. To see what is written: uvx mlflow ui --backend-store-uri"
        " sqlite:///RUN/mlflow/mlflow.db",
    ]
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    assert require_trackers(["tensorboard", "mlflow"]) == []


def test_mlflow_says_nothing_of_the_tables_that_it_makes(tmp_path: Path):
    pytest.importorskip("mlflow", reason="mlflow is an extra: pip install 'tune-lung[mlflow]'")
    code = (
        "import sys; from pathlib import Path; from tune_lung.tuning.watching.trackers import make_trackers;"
        " make_trackers(['mlflow'], None, Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, timeout=200, check=True
    )
    assert "INFO" not in done.stdout + done.stderr
