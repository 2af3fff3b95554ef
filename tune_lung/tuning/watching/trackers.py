"""Other tools that are told of a search, through Ray's own integrations: TensorBoard, MLflow, Weights & Biases.

They are handed our records, never Ray's results: those carry host name, address, process and folders of every worker.
"""

import hashlib
import logging
import os
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import chdir, redirect_stderr
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from ray.air.constants import TRAINING_ITERATION
from ray.tune import Callback
from ray.tune.logger import LoggerCallback, TBXLoggerCallback

from tune_lung.errors import InputError
from tune_lung.families.family import PointValue
from tune_lung.files import set_aside
from tune_lung.metrics import class_of
from tune_lung.results.schema import TrialStatus
from tune_lung.tuning.driver_only import DriverOnly
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.reports import EPOCHS, failure_of
from tune_lung.tuning.trial_record import TrialRecord
from tune_lung.working_folder import neutral_folder

_log = logging.getLogger(__name__)


def require_trackers(names: Iterable[str]) -> list[str]:
    """Refuse a tracker that could not be opened, before anything is done for the run.

    Args:
        names: As in `make_trackers`.

    Returns:
        Lines on how to see what they will have written, where no viewer is installed here.

    Raises:
        InputError: W&B has no key, or MLflow's server does not answer.
    """
    notes = []
    for name in dict.fromkeys(names):
        if name == "wandb":
            _require_wandb_key()
        elif name == "mlflow" and (address := os.environ.get("MLFLOW_TRACKING_URI", "")).startswith("http"):
            _require_server(address)
        viewer = _VIEWERS.get(name)
        if viewer is not None and find_spec(viewer.module) is None:
            notes.append(f"--tracker {name}: its viewer is not installed here. To see what is written: {viewer.command}")
    return notes


class _Viewer(NamedTuple):
    """What shows what a tracker has written."""

    module: str
    """There where it is installed."""
    command: str
    """Fetches and starts it."""


_VIEWERS = {
    "tensorboard": _Viewer("tensorboard", "pip install tensorboard; tensorboard --logdir RUN/tensorboard"),
    "mlflow": _Viewer("flask", "uvx mlflow ui --backend-store-uri sqlite:///RUN/mlflow/mlflow.db"),
}
_SECONDS_TO_ANSWER = 10.0


def _require_wandb_key() -> None:
    if os.environ.get("WANDB_MODE") in ("offline", "disabled") or os.environ.get("WANDB_API_KEY"):
        return
    if os.environ.get("WANDB_SETUP_API_KEY_HOOK"):  # Ray asks it
        return
    with neutral_folder() as neutral, chdir(neutral), redirect_stderr(StringIO()):  # it warns of how Ray, too, asks it
        import wandb

        key = wandb.api.api_key
    if not key:
        raise InputError(
            "--tracker wandb has no key. Run `wandb login`, set WANDB_API_KEY, or keep all on this machine with"
            " WANDB_MODE=offline; `wandb sync` sends that later."
        )


def _require_server(address: str) -> None:
    """See that something answers, whatever it says: MLflow itself would ask for minutes."""
    host = urlsplit(address).hostname  # no user, no password
    try:
        urlopen(address, timeout=_SECONDS_TO_ANSWER).close()  # noqa: S310 - it begins with http
    except HTTPError as answer:
        answer.close()
    except (OSError, ValueError, HTTPException) as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):  # it answers; whom it is trusted by is MLflow's to know
            return
        raise InputError(
            f"--tracker mlflow: no server answers at {host}, which MLFLOW_TRACKING_URI names. Start it, or unset the variable:"
            " then the run has a database of its own."
        ) from error


def make_trackers(names: Sequence[str], recorder: Recorder, run_root: Path) -> list[Callback]:
    """Open trackers for a run.

    Args:
        names: tensorboard, mlflow or wandb, each with its package installed; one named twice is opened once.
        recorder: What is told comes from it; it must hear of everything before the trackers.
        run_root: The run's folder; what a tracker keeps on this machine lies in it.

    Raises:
        InputError: A tracker cannot be opened.
    """
    trackers: list[Callback] = []
    for name in dict.fromkeys(names):
        try:
            logger = _OPEN[name](run_root)
            logger.setup()
        except Exception as error:
            raise InputError(f"--tracker {name} cannot be opened: {_one_line(error)}") from error
        trackers.append(Tracker(name, logger, recorder, run_root / name))
    return trackers


@dataclass(eq=False)
class TrackedTrial:
    """What Ray's loggers read of a trial, without what must not leave the machine."""

    trial_id: str
    """Ours, made unlike that of the same trial in another run: trackers keep runs side by side."""
    name: str
    """Its cell, and its repeat where there are several."""
    config: Mapping[str, PointValue]
    """What is trained, by field; lists as text."""
    local_path: str
    """Folder where a logger may write on this machine."""
    experiment_dir_name: str
    """The run's name."""

    @property
    def evaluated_params(self) -> Mapping[str, PointValue]:
        """The same, as TensorBoard's logger asks for it."""
        return self.config

    def init_local_path(self) -> None:
        """Make its folder."""
        Path(self.local_path).mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        """Return its name, as loggers show it."""
        return self.name


class Tracker(DriverOnly, Callback):
    """Tells one of Ray's loggers of each trial as the ledger has it; a logger that fails is told no more."""

    def __init__(self, name: str, logger: Any, recorder: Recorder, folder: Path) -> None:
        """Bind a logger to a search.

        Args:
            name: What it is called in a warning.
            logger: One of Ray's `LoggerCallback`s, set up; it is given a TrackedTrial for Ray's trial.
            recorder: Knows every trial.
            folder: Where its files go, in a folder a trial.
        """
        self._name, self._logger, self._recorder, self._folder = name, logger, recorder, folder
        self._trials: dict[str, TrackedTrial] = {}
        self._has_failed = False

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Tell what is trained."""
        record = self._recorder.record_of(trial.trial_id)
        if record is not None:
            tracked = self._trials[trial.trial_id] = tracked_trial(record, self._folder)
            tracked.init_local_path()
            self._tell(lambda: self._logger.log_trial_start(tracked))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Tell the epochs' rows of the table `epochs`; a diverged epoch has none."""
        record, tracked = self._recorder.record_of(trial.trial_id), self._trials.get(trial.trial_id)
        if record is not None and tracked is not None and failure_of(result) is None:
            for row in record.epochs[-len(result[EPOCHS]) :]:
                self._tell(partial(self._log_epoch, tracked, row))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Tell whether it failed."""
        record, tracked = self._recorder.record_of(trial.trial_id), self._trials.pop(trial.trial_id, None)
        if record is not None and tracked is not None:
            self._tell(lambda: self._logger.log_trial_end(tracked, failed=record.status is TrialStatus.FAILED))

    on_trial_error = on_trial_complete

    def _log_epoch(self, tracked: TrackedTrial, row: Mapping[str, Any]) -> None:
        epoch = row["epoch"]
        untold = ("epoch", "ended")  # nor the names of classes: they stay here, and a server may refuse them as names of numbers
        numbers = {
            name: value for name, value in row.items() if name not in untold and class_of(name) is None and value is not None
        }
        self._logger.log_trial_result(epoch, tracked, numbers | {TRAINING_ITERATION: epoch})

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        """Let it finish what it has been told."""
        self._tell(lambda: self._logger.on_experiment_end([]))

    def _tell(self, message: Callable[[], None]) -> None:
        """Send a message; a search does not end because somebody else's server does not answer."""
        if self._has_failed:
            return
        try:
            message()
        except Exception as error:  # whatever a server, a driver or a disk may raise
            self._has_failed = True
            _log.warning(
                "--tracker %s failed and is told no more; the run's tables have it all. %s", self._name, _one_line(error)
            )


def tracked_trial(record: TrialRecord, folder: Path) -> TrackedTrial:
    """Describe a trial to a logger.

    Args:
        record: The trial.
        folder: Where the logger's files of the run go.
    """
    plan, run_name = record.plan, folder.parent.name
    columns = {name: value for name, value in plan.trial.columns().items() if value is not None}
    config = {"cell": plan.cell, "repeat": plan.repeat, **columns}
    return TrackedTrial(
        trial_id=hashlib.sha256(f"{run_name} {plan.trial_id}".encode()).hexdigest()[:16],
        name=f"{plan.cell} repeat={plan.repeat}" if plan.repeat else plan.cell,
        config={name: ",".join(map(str, value)) if isinstance(value, list | tuple) else value for name, value in config.items()},
        local_path=str(folder / plan.trial_id),
        experiment_dir_name=run_name,
    )


class _TensorBoard(TBXLoggerCallback):
    """Ray's logger, without the host's name in the names of its files."""

    def log_trial_start(self, trial: Any) -> None:
        folder, names = Path(trial.local_path), "events.out.tfevents.*"
        before = set(folder.glob(names))
        super().log_trial_start(trial)
        for file in set(folder.glob(names)) - before:
            moment = file.name.split(".")[3]
            set_aside(file, file.with_name(f"events.out.tfevents.{moment}.tune_lung"))


def _open_tensorboard(_: Path) -> LoggerCallback:
    return _TensorBoard()  # type: ignore[no-untyped-call]


def _open_mlflow(run_root: Path) -> LoggerCallback:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing about a run leaves the machine unasked
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it tells of every table that it makes
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    address = os.environ.get("MLFLOW_TRACKING_URI") or _local_mlflow(run_root)
    return MLflowLoggerCallback(tracking_uri=address, experiment_name=run_root.name)


def _local_mlflow(run_root: Path) -> str:
    """Make a database for a run; left to itself, MLflow would write this machine's folders into it."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = run_root / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    address = f"sqlite:///{folder / 'mlflow.db'}"
    SqlAlchemyStore(address, "mlflow-artifacts:/").create_experiment(run_root.name)
    return address


def _open_wandb(run_root: Path) -> LoggerCallback:
    # A folder `wandb` in the working folder may hold a stranger's settings, the address of a server among them.
    with neutral_folder() as neutral, chdir(neutral):
        import wandb
        from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor

        wandb.setup()

    class PathlessActor(_WandbLoggingActor):
        """Takes the folder out of the configuration that Ray sends."""

        def __init__(self, logdir: str, *args: Any, **kwargs: Any) -> None:
            super().__init__(logdir, *args, **kwargs)
            self._logdir = Path(logdir).name

    settings = wandb.Settings(
        host="unnamed",
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        disable_git=True,
        save_code=False,
        console="off",
    )
    logger = WandbLoggerCallback(
        project=os.environ.get("WANDB_PROJECT", "tune_lung"),
        group=run_root.name,
        mode=os.environ.get("WANDB_MODE"),
        settings=settings,
    )
    logger._logger_actor_cls = PathlessActor
    return logger


_OPEN: dict[str, Callable[[Path], LoggerCallback]] = {
    "tensorboard": _open_tensorboard,
    "mlflow": _open_mlflow,
    "wandb": _open_wandb,
}


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
