"""The tables that a run is judged by, as pandas frames and as text for a terminal of 100 columns.

Recalls are shares from 0 to 1 in the frames, and percent in the text; differences are percentage points in both.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd

from tune_lung.analysis.terminal import Heading, aligned, magnitude, percent, percent_interval, sentences, shown, signed
from tune_lung.evaluation.confusion import Counts, confusion_matrix
from tune_lung.evaluation.statistics import Estimate, difference, macro_recall_estimate, micro_recall_estimate
from tune_lung.families.registry import DEFAULT_MODEL
from tune_lung.metrics import Metric, columns_on_validation, metric_of
from tune_lung.printable import in_one_line
from tune_lung.results.ranking import best_points
from tune_lung.results.reader import Run
from tune_lung.results.schema import StopReason, TrialStatus, probability_column

RECALLS = ("test_macro_recall", "test_micro_recall")
"""The columns of the sealed evaluation; each has its interval in `<name>_low` and `<name>_high`."""

_MOST_LETTERS_OF_A_METRIC = 40
_REPEATED = ("val_macro_recall", *RECALLS)
_COUNTED = (TrialStatus.COMPLETED, TrialStatus.STOPPED, TrialStatus.FAILED, TrialStatus.RUNNING)
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
    return tuple(dict.fromkeys([*(cell.name for cell in run.cells()), *run.trials["cell"]]))


def sampled_axes(run: Run) -> dict[str, tuple[str, ...]]:
    """List the axes that are sampled inside each cell of the run's space, by the cell's name."""
    return {cell.name: tuple(cell.axes) for cell in run.cells()}


def sampled_values(run: Run, trials: pd.DataFrame) -> pd.DataFrame:
    """Take of each trial the values that were sampled.

    Args:
        run: Their run, whose space says what is sampled.
        trials: Rows of its table `trials`.

    Returns:
        The rows with a column per axis sampled anywhere in the space, in its order; null where the trial's cell samples
        no such axis. There is no column where nothing is sampled.
    """
    axes = sampled_axes(run)
    names = dict.fromkeys(name for own in axes.values() for name in own)
    return pd.DataFrame(
        {
            name: [
                value if name in axes.get(cell, ()) else None for cell, value in zip(trials["cell"], trials[name], strict=True)
            ]
            for name in names
        },
        index=trials.index,
        dtype=object,
    )


def comparison_table(run: Run) -> pd.DataFrame:
    """Compare a run's cells, each by its point with the best mean selection score.

    Args:
        run: A run, finished or not.

    Returns:
        One row per cell and repeat, in the space's order. `cell`, then columns of `trials`; `status` is null for a cell
        that has not started. `test_*_low` and `test_*_high` are 95% intervals, null without predictions;
        `macro_points_over_cnn` is the difference of test macro recall to the CNN in percentage points; `leader` marks
        the trials of the point with the best mean selection score on validation.
    """
    order = cell_names(run)
    columns = dict.fromkeys(("cell", *_TRIAL_COLUMNS, *_selected_columns(run)))
    chosen = best_points(run.trials).reindex(columns=[*columns])
    table = pd.DataFrame({"cell": order}).merge(chosen, on="cell", how="left")
    table = table.sort_values("repeat", kind="stable").sort_values(
        "cell", key=lambda names: names.map(order.index), kind="stable"
    )
    table = with_test_intervals(run, table.reset_index(drop=True))
    table["macro_points_over_cnn"] = _points_over_cnn(table)
    table["leader"] = _is_leader(table)
    return table


def with_test_intervals(run: Run, trials: pd.DataFrame) -> pd.DataFrame:
    """Add to rows of trials the 95% intervals of both test recalls, null without predictions: `<name>_low`, `<name>_high`."""
    intervals = _test_intervals(run)
    bounds = [f"{name}_{bound}" for name in RECALLS for bound in ("low", "high")]
    return trials.assign(**{name: trials["trial_id"].map(intervals.get(name, {})).astype("float64") for name in bounds})


def tuned_table(run: Run) -> pd.DataFrame:
    """Say of each cell what it was given, and what was sampled for its best point.

    Args:
        run: A run, finished or not.

    Returns:
        One row per cell, in the space's order: `cell`; `points`, how many were tried; how many trials were `completed`,
        `stopped`, `failed` and `running`; then a column per sampled axis with the best point's value, null where the
        cell does not sample it, or has no point that did not fail.
    """
    order = pd.Index(cell_names(run), name="cell")
    trials = run.trials
    best = best_points(trials[trials["status"] != TrialStatus.FAILED]).drop_duplicates("cell")
    counts = {"points": trials.groupby("cell")["point_id"].nunique()} | {
        status.value: (trials["status"] == status).groupby(trials["cell"]).sum() for status in _COUNTED
    }
    table = pd.DataFrame({name: count.reindex(order, fill_value=0) for name, count in counts.items()}, index=order)
    return table.join(sampled_values(run, best).set_index(best["cell"])).reset_index()


def repeats_table(run: Run) -> pd.DataFrame:
    """Summarise the repeats of each cell's best point, failed ones left out.

    Args:
        run: A run, finished or not.

    Returns:
        One row per cell with two or more, in the space's order: `cell`, `repeats`; then of validation macro recall and
        both test recalls `<name>_mean` and `<name>_deviation`, the standard deviation of a sample. None where every
        point has one seed.
    """
    return _repeats_of(comparison_table(run))


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
    """Lay out the comparison for a terminal, with what must be known to read it.

    Where values are sampled, a table names those of each cell's best point; where seeds repeat, another one their means.
    """
    table = comparison_table(run)
    blocks = [run_facts(run), _comparison_lines(run, table)]
    if any(sampled_axes(run).values()):
        blocks.append(_tuned_lines(run))
    repeats = _repeats_of(table)
    if not repeats.empty:
        blocks.append(_repeats_lines(repeats))
    return "\n\n".join("\n".join(lines) for lines in [*blocks, sentences(_footnotes(run, table))])


def transfer_text(first: Run, second: Run) -> str:
    """Lay out the comparison of two runs for a terminal."""
    body = aligned(
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
                percent(row["first_test_macro_recall"]),
                percent(row["second_test_macro_recall"]),
                _signed_interval(row, "macro_points"),
                signed(row["micro_points"]),
            ]
            for row in _rows(transfer_table(first, second))
        ],
    )
    facts = [f"From {first.name} (weights: {weights_label(first)}) to {second.name} (weights: {weights_label(second)}), on test:"]
    if first.manifest["data"]["fingerprint"] != second.manifest["data"]["fingerprint"]:
        facts.append("The two runs had different images or splits: the differences are not due to the weights alone.")
    note = "The intervals take the test images as different ones; on the same they are narrower."
    return "\n".join([*sentences(facts), "", *body, "", note])


def weights_label(run: Run) -> str:
    """Say what the run's backbones started from: `random`, or the names of the weights, each once."""
    if "imported_from" in run.manifest:
        return "not known"
    names = [str(source["name"]) for source in run.manifest["weights"].values()]
    return ", ".join(dict.fromkeys(names)) or "none (no backbone)"


def data_label(run: Run) -> str:
    """Say which images the run used, synthetic ones as such."""
    if run.synthetic:
        return "SYNTHETIC X-rays (phantoms)"
    fingerprint = run.manifest["data"]["fingerprint"]
    return "images not known" if fingerprint is None else f"images with fingerprint {fingerprint[:12]}"


def run_facts(run: Run) -> list[str]:
    """Say in a few lines what the run is."""
    manifest = run.manifest
    if "imported_from" in manifest:
        return sentences([f"{run.name}: {manifest['imported_from']}, imported", "Images, protocol and weights are not known."])
    counts = manifest["data"]["counts"]
    images = f"{counts['train']:,} training, {counts['validation']:,} validation, {counts['test']:,} test images"
    return sentences(
        [
            f"{run.name}: {data_label(run)}",
            images,
            f"{len(run.classes)} classes, {manifest['image_size']} px, protocol {manifest['protocol']}, seed {manifest['seed']},"
            f" weights: {weights_label(run)}",
        ]
    )


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
    tested = table[(table["model"] == DEFAULT_MODEL) & table["test_macro_recall"].notna()]
    reference = float(tested.loc[_is_leader(tested), "test_macro_recall"].mean())
    return (100 * (table["test_macro_recall"] - reference)).where(table["model"] != DEFAULT_MODEL)


def _is_leader(table: pd.DataFrame) -> pd.Series:
    """Mark the trials of the cell with the best mean score, failed ones left out; of equal cells the first."""
    scores = table["selection_score"].where(table["status"] != TrialStatus.FAILED)
    means = scores.groupby(table["cell"], sort=False).mean().dropna()
    is_leading: pd.Series = table["cell"] == (means.idxmax() if len(means) else None)
    return is_leading & scores.notna()


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


_Text = Callable[[dict[str, Any]], str]


def _selected_columns(run: Run) -> tuple[str, ...]:
    """Name the column that the run's cells are ranked by, where it is one of ours."""
    column = run.manifest["select_by"]
    return (column,) if column in columns_on_validation(run.classes) else ()


def _comparison_lines(run: Run, table: pd.DataFrame) -> list[str]:
    columns = _comparison_columns(run, table)
    is_measured = (table["epochs_run"].fillna(0) > 0) | table["selection_score"].notna()
    return aligned(
        [heading for heading, _ in columns],
        [
            [text(row) for _, text in columns] if measured else _unmeasured(row)
            for row, measured in zip(_rows(table), is_measured, strict=True)
        ],
    )


def _comparison_columns(run: Run, table: pd.DataFrame) -> list[tuple[Heading, _Text]]:
    columns: list[tuple[Heading, _Text]] = [
        (("", "  cell"), _cell_label),
        (("epochs", "run/best"), lambda row: f"{shown(row['epochs_run'])}/{shown(row['best_epoch'])}"),
        (("s an", "epoch"), lambda row: shown(row["epoch_seconds_mean"])),
        (("params", "trained"), lambda row: magnitude(row["trainable_params"])),
        (("val", "macro"), lambda row: percent(row["val_macro_recall"])),
        (("test macro", "recall [95%]"), lambda row: _interval(row, "test_macro_recall")),
        (("test micro", "recall [95%]"), lambda row: _interval(row, "test_micro_recall")),
    ]
    if table["val_macro_recall"].isna().all() and table["selection_score"].notna().any():
        columns[4] = (("selection", "score"), lambda row: shown(row["selection_score"]))
    for name in _selected_columns(run):
        if name != "val_macro_recall" and table[name].notna().any():
            metric = metric_of(name)
            columns.insert(4, (metric_heading(metric), partial(_metric_text, metric)))
    if table["macro_points_over_cnn"].notna().any():
        columns.append((("points", "vs cnn"), lambda row: signed(row["macro_points_over_cnn"])))
    if table["weights"].nunique() > 1:
        columns.append((("", "weights"), lambda row: shown(row["weights"])))
    return columns


def metric_heading(metric: Metric) -> Heading:
    """Head a column of a metric on validation."""
    label = in_one_line(metric.label, most=_MOST_LETTERS_OF_A_METRIC)
    first, _, last = f"val {label}".rpartition(" ")
    return first, last


def _metric_text(metric: Metric, row: dict[str, Any]) -> str:
    value = row[metric.column]
    return percent(value) if metric.is_share or pd.isna(value) else f"{value:.4f}"


def _cell_label(row: dict[str, Any]) -> str:
    repeat = f" #{row['repeat']}" if not pd.isna(row["repeat"]) and row["repeat"] > 0 else ""
    return f"{'*' if row['leader'] else ' '} {row['cell']}{repeat}"


def _unmeasured(row: dict[str, Any]) -> list[str]:
    return [_cell_label(row), "not started" if pd.isna(row["status"]) else str(row["status"])]


def _tuned_lines(run: Run) -> list[str]:
    """Lay out what was tried, the cells that sample the same axes in one block."""
    rows = {row["cell"]: row for row in _rows(tuned_table(run))}
    axes = sampled_axes(run)
    cells_by_axes: dict[tuple[str, ...], list[str]] = {}
    for cell in rows:
        cells_by_axes.setdefault(axes.get(cell, ()), []).append(cell)
    counted = ["stopped", "failed"] + (["running"] if any(row["running"] for row in rows.values()) else [])
    lines = ["Tried in each cell, and what was sampled for its best point on validation:"]
    for names, cells in cells_by_axes.items():
        headings = [("", "cell"), ("points", "tried"), ("trials", "completed"), *(("", name) for name in [*counted, *names])]
        columns = ["cell", "points", "completed", *counted, *names]
        lines += ["", *aligned(headings, [[shown(rows[cell][name]) for name in columns] for cell in cells])]
    return lines


def _repeats_of(table: pd.DataFrame) -> pd.DataFrame:
    trained = table[table["selection_score"].notna() & (table["status"] != TrialStatus.FAILED)]
    by_cell = trained.groupby("cell", sort=False)
    summary = {"repeats": by_cell.size()} | {
        f"{name}_{suffix}": by_cell[name].agg(function)
        for name in _REPEATED
        for suffix, function in (("mean", "mean"), ("deviation", "std"))
    }
    repeats = pd.DataFrame(summary).reset_index()
    return repeats[repeats["repeats"] > 1].reset_index(drop=True)


def _repeats_lines(repeats: pd.DataFrame) -> list[str]:
    headings = [("", "cell"), ("", "repeats"), ("val", "macro"), ("test", "macro"), ("test", "micro")]
    body = aligned(
        headings,
        [[row["cell"], str(row["repeats"]), *(_mean_and_deviation(row, name) for name in _REPEATED)] for row in _rows(repeats)],
    )
    return ["Mean and standard deviation over the repeats of each cell's best point, recalls in %:", "", *body]


def _mean_and_deviation(row: dict[str, Any], name: str) -> str:
    mean, deviation = row[f"{name}_mean"], row[f"{name}_deviation"]
    return percent(mean) if pd.isna(deviation) else f"{percent(mean)} ± {percent(deviation)}"


def _footnotes(run: Run, table: pd.DataFrame) -> list[str]:
    ends = Counter(str(reason) for reason in table["stop_reason"].dropna())
    notes = []
    if table["leader"].any():
        mean = ", mean of its repeats" if table["leader"].sum() > 1 else ""
        notes.append(f"* leads on validation ({run.manifest['select_by']}{mean}); the test images only describe it.")
    facts = ["Recalls in %, test with 95% intervals", "seconds of the training pass"]
    if table["macro_points_over_cnn"].notna().any():
        facts.append("points of test macro recall over the cnn")
    if ends or not (table["status"] == TrialStatus.COMPLETED).any():  # other tools do not say what ended their trials
        reasons = ", ".join(f"{reason} {number}" for reason, number in ends.items())
        facts.append(f"trials shown ended by: {reasons or 'nothing yet'}")
    notes.append(f"{'; '.join(facts)}.")
    if (pd.to_numeric(table["epochs_run"]) > 0).any() and set(ends) - {StopReason.PATIENCE, StopReason.FITTED}:
        notes.append("Trials not ended by patience might have improved with more epochs.")
    notes += [f"{row['cell']} failed: {row['failure']}" for row in _rows(table) if row["status"] == TrialStatus.FAILED]
    if run.damaged:
        notes.append(f"Left out, since damaged: {', '.join(run.damaged)}.")
    if run.foreign:
        notes.append(f"Left out, since no part of the run: {', '.join(run.foreign)}.")
    if run.manifest["status"] != "completed":
        notes.append(f"The search itself is {run.manifest['status']}: not every cell need be here, nor tested.")
    notes += run.notes_of_numbers
    if run.synthetic:
        notes.append("Synthetic images: these numbers say nothing of medicine.")
    return [*notes, "Not for clinical use."]


def _interval(row: dict[str, Any], name: str) -> str:
    return percent_interval(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _signed_interval(row: dict[str, Any], name: str) -> str:
    if pd.isna(row[f"{name}_low"]):
        return signed(row[name])
    return f"{signed(row[name])} [{signed(row[f'{name}_low'])}, {signed(row[f'{name}_high'])}]"
