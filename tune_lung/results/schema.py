"""The ledger's tables: columns, types and what each means.

Units stand in the names (`epoch_seconds_mean`), what was not measured is null, and what may be one of a few words is
an enum here. The version in each part's metadata rises whenever a column changes its meaning, type or name.
"""

from collections.abc import Sequence
from enum import StrEnum

import pyarrow as pa

from tune_lung.config import FIELD_TYPES
from tune_lung.metrics import metrics_on_test, metrics_on_validation

SCHEMA_VERSION = 3
"""Version of all tables and of the manifest."""


class TrialStatus(StrEnum):
    """Where a trial stands."""

    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"


class StopReason(StrEnum):
    """What ended a trial."""

    PATIENCE = "patience"
    MAX_EPOCHS = "max_epochs"
    ASHA = "asha"
    MEDIAN = "median"
    FITTED = "fitted"
    """It has no epochs, and was fitted once."""
    TIME = "time"
    FAILURE = "failure"


class FailureKind(StrEnum):
    """What sort of failure ended a trial, or one of its attempts."""

    DIVERGED = "diverged"
    """A loss or a score was not finite."""
    BAD_DATA = "bad_data"
    """A node has other images than the driver."""
    DAMAGED_CACHE = "damaged_cache"
    """Stored images or features were damaged, or changed while they were read."""
    OUT_OF_MEMORY = "out_of_memory"
    """The device's memory, or the node's, was too small."""
    LOST_WORKER = "lost_worker"
    """The worker's process died."""
    LOST_NODE = "lost_node"
    """The worker's node went away."""
    HUNG = "hung"
    """Nothing moved for longer than `--hang-timeout`."""
    UNFIT_NODE = "unfit_node"
    """The node cannot use its GPU, its data, its disk or a part of the installation, as others can."""
    BUG = "bug"
    """Anything else."""


class Verdict(StrEnum):
    """What the scheduler decided about a trial at a rung."""

    CONTINUE = "continue"
    STOP = "stop"
    STAND = "stand"
    """It had run to its own end before; its best score counts there for those to come."""


class TimePart(StrEnum):
    """What time was spent on."""

    START = "start"
    """Of a trial: building its network. Of the run: everything before the first trial but the pixel store."""
    STORE = "store"
    """Of a trial: drawing batches and reading them, pixels or features. Of the run: preparing the pixel store."""
    PREFIX = "prefix"
    """Computing or opening the frozen prefix's features."""
    STEP = "step"
    """Training steps."""
    EVALUATION = "evaluation"
    """Of a trial: validation passes. Of the run: the sealed test."""
    CHECKPOINT = "checkpoint"
    """Writing checkpoints and validation predictions."""
    IDLE = "idle"
    """Of a trial: waiting for the driver before and between reports. Of the run: slots that trained nothing."""


def _column(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    return pa.field(name, kind, metadata={"meaning": meaning})


_TEXT, _COUNT, _LARGE, _NUMBER, _FLAG = pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_()
MOMENT = pa.timestamp("us", tz="UTC")
_CONFIG_TYPES = {str: _TEXT, int: _COUNT, float: _NUMBER, tuple: pa.list_(_COUNT)}

_TRIAL_ID = _column("trial_id", _TEXT, "The trial: one point trained once with one seed.")
_IMAGE_ID = _column("image_id", _TEXT, "The image, as in the table images.")
_LABEL = _column("label", _TEXT, "The image's true class.")

_TRIALS_TO_SCORE = (
    _TRIAL_ID,
    _column("point_id", _TEXT, "Hash of what is trained, budget and seed left out."),
    _column("cell", _TEXT, "Arm and grid values, readable."),
    _column("repeat", _COUNT, "Number of the repeat of the point, from 0."),
    *(
        _column(name, _CONFIG_TYPES[kind], "Field of the trial's configuration; null where the model has none such.")
        for name, kind in FIELD_TYPES.items()
    ),
    _column("weights_name", _TEXT, "Name of the backbone's weights, never a path; null for the CNN."),
    _column("weights_sha256", _TEXT, "Digest of the backbone's weights; null for a random start and the CNN."),
    _column("trial_seed", _LARGE, "Seed that all of the trial's random choices are derived from."),
    _column("status", _TEXT, "running, completed, stopped (by the scheduler) or failed."),
    _column("stop_reason", _TEXT, "patience, max_epochs, fitted, asha, median, time or failure; null while running."),
    _column("failure", _TEXT, "One line on why the trial failed; null otherwise."),
    _column(
        "failure_kind",
        _TEXT,
        "diverged, bad_data, damaged_cache, out_of_memory, lost_worker, lost_node, unfit_node, hung or bug; null unless it"
        " failed.",
    ),
    _column("attempts", _COUNT, "How often the trial was started."),
    _column("proposed_order", _LARGE, "Place of its proposal among all proposals and ends of trials of the run, from 1."),
    _column("ended_order", _LARGE, "Place of its end among the same; null while running."),
    _column("started", MOMENT, "When a worker was first ready for it, UTC; null where none ever was."),
    _column("ended", MOMENT, "When it ended last, UTC; null while running."),
    _column("epochs_run", _COUNT, "Epochs trained."),
    _column("best_epoch", _COUNT, "Epoch, from 1, whose checkpoint was kept."),
    _column("selection_score", _NUMBER, "The kept epoch's score on validation: it alone ranks trials."),
)

_TRIALS_FROM_COST = (
    _column("total_params", _LARGE, "All parameters of the network."),
    _column("trainable_params", _LARGE, "Parameters that training changes."),
    _column("mult_adds", _LARGE, "Multiply-adds of one image's forward pass."),
    _column("epoch_seconds_mean", _NUMBER, "Mean seconds of a training pass, the first left out where there are epochs."),
    _column("prefix_seconds", _NUMBER, "Seconds spent computing the frozen prefix's features; null without a cache."),
    _column("prefix_cached", _FLAG, "Whether the trial trained on stored features of its frozen prefix."),
    _column("cpus", _NUMBER, "CPUs of the trial."),
    _column("gpus", _NUMBER, "GPUs of the trial."),
    _column(
        "concurrent_trials", _COUNT, "Trials of the run that ran at the same time as it at most, itself included, as counted."
    ),
    _column("slot", _COUNT, "Where it ran last: the lowest number, from 0, that no other running trial of the run had then."),
    _column("device", _TEXT, "What it was trained on, such as cpu or the GPU's name."),
)

_EPOCHS_TO_LOSS = (
    _TRIAL_ID,
    _column("epoch", _COUNT, "Number of the epoch, from 1."),
    _column("train_loss", _NUMBER, "Mean training loss of the epoch."),
)

_EPOCHS_FROM_SCORE = (
    _column("selection_score", _NUMBER, "What early stopping, rungs and the kept checkpoint go by."),
    _column("epoch_seconds", _NUMBER, "Seconds of the training pass."),
    _column("validation_seconds", _NUMBER, "Seconds of the validation pass."),
    _column("images_per_second", _NUMBER, "Training images a second."),
    _column("learning_rate", _NUMBER, "Learning rate of the epoch."),
    _column("ended", MOMENT, "When its validation pass ended, UTC, counted back from the report that told of it."),
)

_DECISIONS = (
    _column("decision", _LARGE, "Number of the decision in the run, from 1, in the order they were taken."),
    _TRIAL_ID,
    _column("cell", _TEXT, "The trial's cell."),
    _column("rung_epoch", _COUNT, "Epoch at which trials were compared."),
    _column("value", _NUMBER, "The trial's best selection score by then."),
    _column("cutoff", _NUMBER, "Score it had to reach; null while too few trials stood there."),
    _column("verdict", _TEXT, "continue, stop, or stand: the trial had run to its own end before."),
)

_IMAGES = (
    _IMAGE_ID,
    _column("path", _TEXT, "Path relative to the image folder, with forward slashes."),
    _column("class", _TEXT, "The image's class."),
    _column("split", _TEXT, "train, validation or test; null for an image left out."),
    _column("group", _TEXT, "Group of near-duplicates; never on two sides of the split."),
    _column("source", _TEXT, "Where the image came from, as the metadata says."),
    _column("sha256", _TEXT, "Digest of the file's bytes; null where it could not be read."),
    _column("excluded_reason", _TEXT, "Why the file was left out; null for the images used."),
)

_EXPLANATIONS = (
    _TRIAL_ID,
    _IMAGE_ID,
    _LABEL,
    _column("method", _TEXT, "How the explanation was computed."),
    _column("lung_share", _NUMBER, "Share of the attribution inside the lung mask, 0 to 1."),
    _column("lung_area_share", _NUMBER, "Share of the image inside the lung mask, 0 to 1: what chance would give."),
)

_PROFILE = (
    _column("trial_id", _TEXT, "The trial; null for the run itself, whose training is counted by slots."),
    _column("epoch", _COUNT, "Epoch that the time belongs to, from 1; null for the run itself."),
    _column("part", _TEXT, "start, store, prefix, step, evaluation, checkpoint or idle."),
    _column("seconds", _NUMBER, "Seconds spent on it."),
)

_FIXED_TABLES = {
    "decisions": _DECISIONS,
    "images": _IMAGES,
    "explanations": _EXPLANATIONS,
    "profile": _PROFILE,
}


def _trials(classes: Sequence[str]) -> tuple[pa.Field, ...]:
    """List the columns of `trials`, those of the metrics as they are declared."""
    kept = (
        _column(metric.column, _NUMBER, f"{metric.meaning_on('validation')} at the kept epoch{metric.bounds}.")
        for metric in metrics_on_validation(classes)
    )
    tested = (
        _column(metric.test_column, _NUMBER, f"{metric.meaning_on('test')}; null where the test was not opened.")
        for metric in metrics_on_test()
    )
    return (*_TRIALS_TO_SCORE, *kept, *tested, *_TRIALS_FROM_COST)


def _epochs(classes: Sequence[str]) -> tuple[pa.Field, ...]:
    """List the columns of `epochs`, likewise."""
    shown = (
        _column(metric.column, _NUMBER, f"{metric.meaning_on('validation')}{metric.bounds}.")
        for metric in metrics_on_validation(classes)
    )
    return (*_EPOCHS_TO_LOSS, *shown, *_EPOCHS_FROM_SCORE)


ALLOWED_WORDS: dict[str, type[StrEnum]] = {
    "status": TrialStatus,
    "stop_reason": StopReason,
    "failure_kind": FailureKind,
    "verdict": Verdict,
    "part": TimePart,
}
"""Columns that hold one of a few words."""


def probability_column(class_name: str) -> str:
    """Name the column of a class's predicted probability; the class name stays as it is."""
    return f"p_{class_name}"


def predictions_schema(classes: Sequence[str]) -> pa.Schema:
    """Build the schema of `predictions` and `validation_predictions`.

    Args:
        classes: The run's classes, in the order of the network's outputs.
    """
    probabilities = (_column(probability_column(name), _NUMBER, f"Predicted probability of {name}, 0 to 1.") for name in classes)
    return _versioned((_TRIAL_ID, _IMAGE_ID, _LABEL, *probabilities))


def table_schema(table: str, classes: Sequence[str]) -> pa.Schema:
    """Build the schema of one table.

    Args:
        table: One of `tune_lung.results.layout.TABLES`.
        classes: The run's classes, in the order of the network's outputs.

    Raises:
        ValueError: There is no such table.
    """
    if table in ("predictions", "validation_predictions"):
        return predictions_schema(classes)
    if table in ("trials", "epochs"):
        return _versioned(_trials(classes) if table == "trials" else _epochs(classes))
    if table not in _FIXED_TABLES:
        raise ValueError(f"The ledger has no table {table!r}.")
    return _versioned(_FIXED_TABLES[table])


def column_meanings(schema: pa.Schema) -> dict[str, str]:
    """Read what each column of a table means."""
    return {field.name: field.metadata[b"meaning"].decode() for field in schema}


def _versioned(columns: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema(columns, metadata={"tune_lung_schema_version": str(SCHEMA_VERSION)})
