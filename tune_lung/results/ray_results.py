"""Old results folders of Ray Tune, read without Ray: each trial's `params.json` and `result.json`, and nothing else.

Ray's other files are pickles, which run whatever they hold when they are read.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from tune_lung.errors import InputError
from tune_lung.files import DamagedFileError, read_regular_file
from tune_lung.metrics import metrics_on_validation
from tune_lung.results.imported import ForeignSearch, ForeignTrial
from tune_lung.results.ledger import Row
from tune_lung.results.schema import TrialStatus, table_schema

_FIRST_MOMENT, _LAST_MOMENT = 1, 10**11  # in seconds: from 1970 into the year 5138
_FACT_COLUMNS = ("total_params", "trainable_params", "mult_adds")
_OF_RAY = ("epoch", "training_iteration", "done", "timestamp")
_SCORE = "selection_score"
_MOST_PARAMS_BYTES, _MOST_RESULTS_BYTES, _MOST_RESULTS = 2**20, 64 * 2**20, 1_000_000
"""Of one trial: a larger file is none of Ray's, whose results take some KB an epoch."""

_Results = Sequence[Mapping[str, Any]]


def read_ray_results(folder: Path) -> ForeignSearch:
    """Read one experiment.

    Ray's results do not say why a trial ended: one that a scheduler stopped says `done` as one that ran to its end does. So
    a trial that is done after as many epochs as any other has completed, a shorter one counts as stopped; one with an error
    file has failed.

    Args:
        folder: The experiment's folder, with a folder for each trial.

    Raises:
        InputError: No folder in it is a trial's.
    """
    found = sorted(path.parent for path in folder.glob("*/params.json"))
    if not found:
        raise InputError(
            f"'{folder.name}' is no results folder of Ray Tune: none of the folders in it holds a params.json. Give the"
            " experiment's folder."
        )
    results_by_trial = {trial.name: _results(trial / "result.json") for trial in found}
    score_column = _score_column(results_by_trial.values())
    most_epochs = max(map(len, results_by_trial.values()))
    trials = [_trial(path, results_by_trial[path.name], score_column, most_epochs) for path in found]
    ended = tuple(trial for trial in trials if trial is not None)
    moments = [result["timestamp"] for results in results_by_trial.values() for result in results if _is_moment(result)]
    num_empty = len(found) - len(ended)
    return ForeignSearch(
        name=_text(folder.resolve().name),
        source="Ray results folder",
        trials=ended,
        axes={},
        select_by=score_column or "unknown",
        started_utc=datetime.fromtimestamp(min(moments), UTC).isoformat(timespec="seconds") if moments else None,
        notes=(f"Left out {num_empty} of {len(found)} trials without a readable result",) if num_empty else (),
    )


def _trial(folder: Path, results: _Results, score_column: str | None, most_epochs: int) -> ForeignTrial | None:
    params = _json_object(folder / "params.json")
    has_failed = (folder / "error.txt").exists()
    if params is None or not (results or has_failed):
        return None
    last = results[-1] if results else {}
    is_whole = last.get("done") is True and len(results) == most_epochs
    return ForeignTrial(
        name=_text(folder.name),
        params=_leaves(params),
        status=TrialStatus.FAILED if has_failed else TrialStatus.COMPLETED if is_whole else TrialStatus.STOPPED,
        measured={name: last[name] for name in _FACT_COLUMNS if type(last.get(name)) is int and 0 <= last[name] < 2**63},
        epochs=_epochs(results, score_column),
    )


def _epochs(results: _Results, score_column: str | None) -> tuple[Row, ...]:
    """Keep each epoch's columns of our names; of an epoch reported twice, as after a restart, the later report counts."""
    columns = _epoch_columns()
    less_is_better = {metric.column for metric in metrics_on_validation(()) if metric.direction == "min"}
    sign = -1 if score_column in less_is_better else 1
    rows: dict[int, dict[str, Any]] = {}
    for number, result in enumerate(results, start=1):
        epoch = next((result[name] for name in ("epoch", "training_iteration") if _is_epoch(result.get(name))), number)
        rows[epoch] = {"epoch": epoch} | {name: float(result[name]) for name in columns if _is_number(result.get(name))}
        if score_column in rows[epoch]:
            rows[epoch][_SCORE] = sign * rows[epoch][score_column]
    return tuple(rows[epoch] for epoch in sorted(rows))


def _score_column(all_results: Iterable[_Results]) -> str | None:
    reported = {name for results in all_results for result in results for name in result}
    return next((name for name in _scores() if name in reported), None)


def _scores() -> tuple[str, ...]:
    """Name what trials are ranked by: the first of these that was reported, those of which more is better before the others."""
    metrics = sorted(metrics_on_validation(()), key=lambda metric: metric.direction == "min")
    return (_SCORE, *(metric.column for metric in metrics))


def _epoch_columns() -> tuple[str, ...]:
    return tuple(name for name in table_schema("epochs", ()).names if name not in ("trial_id", "epoch"))


def _leaves(params: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested settings, such as Ray Train's `train_loop_config`, to their innermost names."""
    leaves: dict[str, Any] = {}
    waiting = [iter(params.items())]  # no recursion: a stranger's may be nested as deep as JSON can be
    while waiting:
        for name, value in waiting[-1]:
            if isinstance(value, dict):
                waiting.append(iter(value.items()))
                break
            leaves[name] = value
        else:
            waiting.pop()
    return leaves


def _results(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a trial's results; a killed trial may have left its last one torn."""
    names = dict.fromkeys((*_scores(), *_epoch_columns(), *_FACT_COLUMNS, *_OF_RAY))  # all of them are numbers
    results: list[dict[str, Any]] = []
    for line in islice(BytesIO(_content(path, most_bytes=_MOST_RESULTS_BYTES)), _MOST_RESULTS):
        result = _parsed(line)
        if result is None:
            break
        results.append({name: result[name] for name in names if type(result.get(name)) in (bool, int, float)})
    return results


def _json_object(path: Path) -> dict[str, Any] | None:
    return _parsed(_content(path, most_bytes=_MOST_PARAMS_BYTES))


def _content(path: Path, *, most_bytes: int) -> bytes:
    """Read a file; nothing comes of one that is not there, no regular one, or larger than any of Ray's."""
    try:
        return read_regular_file(path, most_bytes=most_bytes)
    except (OSError, DamagedFileError):
        return b""


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _text(name: str) -> str:
    """Return a name that can be written; bytes that are not UTF-8 are replaced."""
    return name.encode(errors="replace").decode()


def _is_number(value: object) -> bool:
    """Whether it is a number that a table can hold; one that is not finite becomes null there."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_epoch(value: object) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_moment(result: Mapping[str, Any]) -> bool:
    moment = result.get("timestamp")
    return _is_number(moment) and _FIRST_MOMENT < moment < _LAST_MOMENT  # type: ignore[operator]
