"""The tables that a run is judged by, as pandas frames and as text for a terminal of 100 columns.

Recalls are shares from 0 to 1 in the frames, and percent in the text; differences are percentage points in both.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd

from tune_lung.errors import InputError
from tune_lung.evaluation.metrics import Counts, confusion_matrix
from tune_lung.evaluation.statistics import Estimate, difference, macro_recall_estimate, micro_recall_estimate
from tune_lung.results.ranking import best_points
from tune_lung.results.reader import Run
from tune_lung.results.schema import StopReason, TrialStatus, probability_column
from tune_lung.space import SearchSpace

RECALLS = ("test_macro_recall", "test_micro_recall")
"""The columns of the sealed evaluation; each has its interval in `<name>_low` and `<name>_high`."""

_TERMINAL_COLUMNS = 100
_TRIAL_COLUMNS = (
    "trial_id",
    "repeat",
    "model",
    "frozen_blocks",
    "weights",
    "weights_name",
    "status",
    "stop_reason",
    "failure",
    "epochs_run",
    "best_epoch",
    "epoch_seconds_mean",
    "prefix_cached",
    "trainable_params",
    "mult_adds",
    "selection_score",
    "val_macro_recall",
    "val_micro_recall",
    *RECALLS,
)


def cell_names(run: Run) -> tuple[str, ...]:
    """List a run's cells in the order of its space; cells that the space does not name come last."""
    try:
        named = [cell.name for cell in SearchSpace.from_json(run.manifest["space"]).cells()]
    except InputError:  # a space of another version: the trials themselves still tell their cells
        named = []
    return tuple(dict.fromkeys([*named, *run.trials["cell"]]))


def comparison_table(run: Run) -> pd.DataFrame:
    """Compare a run's cells, each by its point with the best mean selection score.

    Args:
        run: A run, finished or not.

    Returns:
        One row per cell and repeat, in the space's order. `cell`, then columns of `trials`; `status` is null for a cell
        that has not started. `test_*_low` and `test_*_high` are 95% intervals, null without predictions;
        `macro_points_over_cnn` is the difference of test macro recall to the CNN in percentage points; `leader` marks
        the trial with the best selection score on validation.
    """
    order = cell_names(run)
    chosen = best_points(run.trials).reindex(columns=["cell", *_TRIAL_COLUMNS])
    table = pd.DataFrame({"cell": order}).merge(chosen, on="cell", how="left")
    table = table.sort_values("repeat", kind="stable").sort_values(
        "cell", key=lambda names: names.map(order.index), kind="stable"
    )
    table = table.reset_index(drop=True)
    intervals = _test_intervals(run)
    for name in RECALLS:
        for bound in ("low", "high"):
            table[f"{name}_{bound}"] = table["trial_id"].map(intervals.get(f"{name}_{bound}", {})).astype("float64")
    table["macro_points_over_cnn"] = _points_over_cnn(table)
    table["leader"] = _is_leader(table)
    return table


def transfer_table(first: Run, second: Run) -> pd.DataFrame:
    """Compare two runs cell by cell: what changes from the first to the second.

    Args:
        first: The run that is subtracted.
        second: The run that is compared with it.

    Returns:
        One row per cell of both runs: `cell`, the runs' test recalls as `first_*` and `second_*`, and their differences
        `macro_points` and `micro_points` in percentage points with 95% intervals in `*_low` and `*_high`. The intervals
        hold for different test images; on the same ones they are wider than need be.
    """
    tables = [
        _without_repeats(comparison_table(run)).add_prefix(prefix) for run, prefix in ((first, "first_"), (second, "second_"))
    ]
    both = tables[0].merge(tables[1], left_on="first_cell", right_on="second_cell").rename(columns={"first_cell": "cell"})
    both = both.drop(columns="second_cell")
    for short, name in (("macro", RECALLS[0]), ("micro", RECALLS[1])):
        points = [difference(_estimate(row, f"second_{name}"), _estimate(row, f"first_{name}")) for row in _rows(both)]
        for suffix, position in (("", 0), ("_low", 1), ("_high", 2)):
            both[f"{short}_points{suffix}"] = [100 * estimate[position] for estimate in points]
    return both


def comparison_text(run: Run) -> str:
    """Lay out the comparison table for a terminal, with what must be known to read it."""
    table = comparison_table(run)
    columns = _comparison_columns(table)
    measured = table["epochs_run"].fillna(0) > 0
    body = _aligned(
        [heading for heading, _ in columns],
        [
            [cell(row) for _, cell in columns] if shown else _unmeasured(row)
            for row, shown in zip(_rows(table), measured, strict=True)
        ],
    )
    return "\n".join([*_wrapped(run_facts(run)), "", *body, "", *_wrapped(_footnotes(run, table))])


def transfer_text(first: Run, second: Run) -> str:
    """Lay out the comparison of two runs for a terminal."""
    body = _aligned(
        [
            ("", "cell"),
            ("from", "macro recall"),
            ("to", "macro recall"),
            ("difference", "points [95%]"),
            ("micro", "points"),
        ],
        [
            [
                row["cell"],
                _percent(row["first_test_macro_recall"]),
                _percent(row["second_test_macro_recall"]),
                _signed_interval(row, "macro_points"),
                _signed(row["micro_points"]),
            ]
            for row in _rows(transfer_table(first, second))
        ],
    )
    facts = [f"From {first.name} (weights: {weights_label(first)}) to {second.name} (weights: {weights_label(second)}), on test:"]
    if first.manifest["data"]["fingerprint"] != second.manifest["data"]["fingerprint"]:
        facts.append("The two runs had different images or splits: the differences are not due to the weights alone.")
    return "\n".join(
        [*facts, "", *body, "", "The intervals take the test images as different ones; on the same they are narrower."]
    )


def weights_label(run: Run) -> str:
    """Say what the run's ResNets started from: `random`, or the names of the weights, each once."""
    names = [str(source["name"]) for source in run.manifest["weights"].values()]
    return ", ".join(dict.fromkeys(names)) or "none (no ResNet)"


def data_label(run: Run) -> str:
    """Say which images the run used, synthetic ones as such."""
    fingerprint = str(run.manifest["data"]["fingerprint"])[:12]
    return "SYNTHETIC X-rays (phantoms)" if run.synthetic else f"images with fingerprint {fingerprint}"


def run_facts(run: Run) -> list[str]:
    """Say in three lines what the run is."""
    manifest = run.manifest
    counts = manifest["data"]["counts"]
    images = f"{counts['train']:,} training, {counts['validation']:,} validation, {counts['test']:,} test images"
    return [
        f"{run.name}: {data_label(run)}",
        images,
        f"{len(run.classes)} classes, {manifest['image_size']} px, protocol {manifest['protocol']}, seed {manifest['seed']}, "
        f"weights: {weights_label(run)}",
    ]


def _test_intervals(run: Run) -> pd.DataFrame:
    """Compute the bounds of both recalls, a row per tested trial."""
    rows: dict[str, dict[str, float]] = {}
    for trial_id, predictions in run.predictions.groupby("trial_id"):
        confusion_KK = confusion_of(predictions, run.classes)
        estimates = (macro_recall_estimate(confusion_KK), micro_recall_estimate(confusion_KK))
        rows[str(trial_id)] = {
            f"{name}_{bound}": getattr(estimate, bound)
            for name, estimate in zip(RECALLS, estimates, strict=True)
            for bound in ("low", "high")
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def confusion_of(predictions: pd.DataFrame, classes: Sequence[str]) -> Counts:
    """Count what one trial's predictions took for what.

    Args:
        predictions: Rows of `predictions` or `validation_predictions`.
        classes: The run's classes.

    Returns:
        counts_KK: a row per true class, a column per answer, in the order of `classes`.
    """
    labels_N = pd.Categorical(predictions["label"], categories=list(classes)).codes
    answers_N = predictions[[probability_column(name) for name in classes]].to_numpy().argmax(axis=1)
    return confusion_matrix(labels_N, answers_N, num_classes=len(classes))


def _points_over_cnn(table: pd.DataFrame) -> pd.Series:
    cnn = table[table["model"] == "cnn"].sort_values("selection_score", ascending=False)["test_macro_recall"].dropna()
    reference = cnn.iloc[0] if len(cnn) else np.nan
    return (100 * (table["test_macro_recall"] - reference)).where(table["model"] != "cnn")


def _is_leader(table: pd.DataFrame) -> pd.Series:
    scores = table["selection_score"].where(table["status"] != TrialStatus.FAILED)
    return pd.Series(table.index == (scores.idxmax() if scores.notna().any() else -1), index=table.index)


def _without_repeats(table: pd.DataFrame) -> pd.DataFrame:
    """Keep a cell's first repeat with a test recall."""
    return (
        table.sort_values("test_macro_recall", na_position="last", key=pd.isna, kind="stable")
        .drop_duplicates("cell")
        .sort_index()
    )


def _estimate(row: dict[str, Any], name: str) -> Estimate:
    return Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


_Cell = Callable[[dict[str, Any]], str]
_Heading = tuple[str, str]


def _comparison_columns(table: pd.DataFrame) -> list[tuple[_Heading, _Cell]]:
    columns: list[tuple[_Heading, _Cell]] = [
        (("", "  cell"), _cell_label),
        (("epochs", "run/best"), lambda row: f"{row['epochs_run']}/{_shown(row['best_epoch'])}"),
        (("s an", "epoch"), lambda row: "-" if pd.isna(row["epoch_seconds_mean"]) else f"{row['epoch_seconds_mean']:.3g}"),
        (("params", "trained"), lambda row: _magnitude(row["trainable_params"])),
        (("val", "macro"), lambda row: _percent(row["val_macro_recall"])),
        (("test macro", "recall [95%]"), lambda row: _interval(row, "test_macro_recall")),
        (("test micro", "recall [95%]"), lambda row: _interval(row, "test_micro_recall")),
    ]
    if table["macro_points_over_cnn"].notna().any():
        columns.append((("points", "over cnn"), lambda row: _signed(row["macro_points_over_cnn"])))
    if table["weights"].nunique() > 1:
        columns.append((("", "weights"), lambda row: _shown(row["weights"])))
    return columns


def _cell_label(row: dict[str, Any]) -> str:
    repeat = f" #{row['repeat']}" if not pd.isna(row["repeat"]) and row["repeat"] > 0 else ""
    return f"{'*' if row['leader'] else ' '} {row['cell']}{repeat}"


def _unmeasured(row: dict[str, Any]) -> list[str]:
    return [_cell_label(row), "not started" if pd.isna(row["status"]) else str(row["status"])]


def _footnotes(run: Run, table: pd.DataFrame) -> list[str]:
    ends = Counter(str(reason) for reason in table["stop_reason"].dropna())
    notes = (
        [f"* leads on validation ({run.manifest['select_by']}); the test images only describe it."]
        if table["leader"].any()
        else []
    )
    notes.append(
        f"Recalls in %, test with 95% intervals; seconds of the training pass; {_points_note(table)}trials ended by: "
        + (", ".join(f"{reason} {number}" for reason, number in ends.items()) or "nothing yet")
        + "."
    )
    if (pd.to_numeric(table["epochs_run"]) > 0).any() and set(ends) - {StopReason.PATIENCE}:
        notes.append("Trials not ended by patience might have improved with more epochs.")
    notes += [f"{row['cell']} failed: {row['failure']}" for row in _rows(table) if row["status"] == TrialStatus.FAILED]
    if run.damaged:
        notes.append(f"Left out, since damaged: {', '.join(run.damaged)}.")
    if run.manifest["status"] != "completed":
        notes.append(f"The search itself is {run.manifest['status']}: not every cell need be here, nor tested.")
    if run.synthetic:
        notes.append("Synthetic images: these numbers say nothing of medicine.")
    return [*notes, "Not for clinical use."]


def _points_note(table: pd.DataFrame) -> str:
    return "points of test macro recall over the cnn; " if table["macro_points_over_cnn"].notna().any() else ""


def _wrapped(sentences: Iterable[str]) -> list[str]:
    return [line for sentence in sentences for line in wrap(sentence, _TERMINAL_COLUMNS)]


def _aligned(headings: Sequence[_Heading], rows: Sequence[Sequence[str]]) -> list[str]:
    """Set columns in one width each, the first to the left, the others to the right; a short row ends early."""
    full = [row for row in rows if len(row) == len(headings)]
    widths = [max(len(text) for text in (*heading, *(row[column] for row in full))) for column, heading in enumerate(headings)]
    widths[0] = max(widths[0], *(len(row[0]) for row in rows))
    lines = [list(line) for line in zip(*headings, strict=True)] + [list(row) for row in rows]
    return [" ".join(_justified(line, widths)).rstrip() for line in lines]


def _justified(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    if len(line) < len(widths):
        return [line[0].ljust(widths[0]), *line[1:]]
    return [
        text.rjust(width) if column else text.ljust(width) for column, (text, width) in enumerate(zip(line, widths, strict=True))
    ]


def _shown(value: Any) -> str:
    return "-" if pd.isna(value) else str(value)


def _percent(share: Any) -> str:
    return "-" if pd.isna(share) else f"{100 * share:.1f}"


def _interval(row: dict[str, Any], name: str) -> str:
    if pd.isna(row[f"{name}_low"]):
        return _percent(row[name])
    return f"{_percent(row[name])} [{_percent(row[f'{name}_low'])}, {_percent(row[f'{name}_high'])}]"


def _signed(points: Any) -> str:
    return "-" if pd.isna(points) else f"{points:+.1f}"


def _signed_interval(row: dict[str, Any], name: str) -> str:
    if pd.isna(row[f"{name}_low"]):
        return _signed(row[name])
    return f"{_signed(row[name])} [{_signed(row[f'{name}_low'])}, {_signed(row[f'{name}_high'])}]"


def _magnitude(number: Any) -> str:
    if pd.isna(number):
        return "-"
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number:,}"
