"""What every row of a table holds, whoever wrote it: keys, words of an enum, numbers in their range.

Arrow's schema says of which type a column is; what its values may be stands here. Parts written by us keep these rules.
"""

import math
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from tune_lung.metrics import is_on_validation, metric_of, metrics_on_test
from tune_lung.results.layout import PART_NAME
from tune_lung.results.parts import DamagedPartError
from tune_lung.results.schema import ALLOWED_WORDS, MOMENT, probability_column
from tune_lung.shapes import FIRST_MOMENT, LAST_MOMENT

_KEYS: Mapping[str, tuple[str, ...]] = {
    "trials": ("trial_id",),
    "epochs": ("trial_id", "epoch"),
    "decisions": ("decision",),
    "images": ("path",),
    "predictions": ("trial_id", "image_id"),
    "validation_predictions": ("trial_id", "image_id"),
    "explanations": ("trial_id", "image_id", "method"),
    "profile": ("trial_id", "epoch", "part"),
}
"""Columns that name a row: no two rows have the same values there."""
_NEVER_NULL: Mapping[str, tuple[str, ...]] = {
    "trials": ("trial_id", "point_id", "cell", "status"),
    "epochs": ("trial_id", "epoch"),
    "decisions": ("decision", "trial_id", "cell", "rung_epoch", "value", "verdict"),
    "images": ("path",),
    "predictions": ("trial_id", "image_id", "label"),
    "validation_predictions": ("trial_id", "image_id", "label"),
    "explanations": ("trial_id", "image_id", "label", "method"),
    "profile": ("part", "seconds"),
}
_COUNTED_FROM_1 = ("epoch", "best_epoch", "rung_epoch", "decision", "attempts")
_MAY_BE_NEGATIVE = ("trial_seed", "train_loss", "selection_score", "value", "cutoff", "lung_share")
_MOST_SECONDS = 1e9
_FIRST, _LAST = (pa.scalar(moment, MOMENT) for moment in (FIRST_MOMENT, LAST_MOMENT))
_LONGEST_NAME = 100
_OUTSIDE = r"\A/|(\A|/)\.\.(/|\z)"


def has_good_rows(table: str, rows: pa.Table, classes: Sequence[str]) -> bool:
    """Whether rows are such as a search writes; arguments as in `require_rows`."""
    try:
        require_rows(table, rows, classes)
    except DamagedPartError:
        return False
    return True


def require_rows(table: str, rows: pa.Table, classes: Sequence[str]) -> None:
    """Check rows of a table.

    Args:
        table: The table's name.
        rows: In the table's schema.
        classes: The run's.

    Raises:
        DamagedPartError: A row is none that a search writes, or stands twice; the text names the column.
    """
    if len(rows) == 0:
        return
    try:
        rows.validate(full=True)  # texts too: those of a stranger need not be UTF-8
        for name in _NEVER_NULL[table]:
            _require(rows[name].null_count == 0, name, "is null")
        _require(len(rows.group_by(list(_KEYS[table])).aggregate([])) == len(rows), _KEYS[table][-1], "stands twice")
        for field in rows.schema:
            _require_values(field, rows[field.name])
        if table in ("predictions", "validation_predictions"):
            _require_predictions(rows, classes)
        if table == "profile":  # the run's own time belongs to no epoch
            _require(rows["trial_id"].is_null().equals(rows["epoch"].is_null()), "epoch", "is null")
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DamagedPartError(f"The table {table}: {error}") from error


def trials_of(table: str, rows: pa.Table) -> list[str]:
    """List what a part of a table has rows of: trials by their ids, the run itself as `run`, images as `images`."""
    if table == "images":
        return ["images"] if len(rows) else []  # the part without rows has none
    return [trial or "run" for trial in rows["trial_id"].unique().to_pylist()]


def _require(condition: bool, column: str, problem: str) -> None:
    if not condition:
        raise DamagedPartError(f"The column {column}: a value {problem}")


def _require_values(field: pa.Field, values: pa.ChunkedArray) -> None:
    name, kind = field.name, field.type
    if name in ALLOWED_WORDS:
        words = pa.array([None, *(str(word) for word in ALLOWED_WORDS[name])], pa.string())
        _require(_all(pc.is_in(values, words)), name, "is no such word")
    elif name == "trial_id":
        pattern = rf"\A(?:{PART_NAME.pattern})\z"
        _require(_all(pc.match_substring_regex(values, pattern)), name, "cannot name a trial")
        _require(_all(pc.less_equal(pc.binary_length(values), _LONGEST_NAME)), name, "is too long")
    elif name == "path":
        _require(not _any(pc.match_substring_regex(values, _OUTSIDE)), name, "leads out of the image folder")
    elif pa.types.is_timestamp(kind):
        _require(_all(pc.and_(pc.greater_equal(values, _FIRST), pc.less(values, _LAST))), name, "is no moment of a search")
    elif pa.types.is_floating(kind):
        _require(_all(pc.is_finite(values)), name, "is not finite")
        if "seconds" in name:
            _require(_all(pc.less_equal(values, _MOST_SECONDS)), name, "is too large")
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        least = _least(name)
        _require(least is None or _all(pc.greater_equal(values, least)), name, "is too small")


def _least(column: str) -> float | None:
    """Give the least number that a column may hold; None where there is none."""
    if column in _MAY_BE_NEGATIVE:
        return None
    if is_on_validation(column):
        lowest = metric_of(column).lowest
        return lowest if math.isfinite(lowest) else None
    on_test = {metric.test_column: metric.lowest for metric in metrics_on_test()}
    return on_test.get(column, 1 if column in _COUNTED_FROM_1 else 0)


def _require_predictions(rows: pa.Table, classes: Sequence[str]) -> None:
    _require(_all(pc.is_in(rows["label"], pa.array(classes, pa.string()))), "label", "is none of the run's classes")
    for name in classes:
        _require(rows[probability_column(name)].null_count == 0, probability_column(name), "is null")


def _all(flags: pa.ChunkedArray) -> bool:
    """Whether a rule holds wherever there is a value."""
    return pc.all(flags, skip_nulls=True).as_py() is not False


def _any(flags: pa.ChunkedArray) -> bool:
    return pc.any(flags, skip_nulls=True).as_py() is True
