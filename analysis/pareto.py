"""The front of a run with several objectives: the points that no other one beats, as a table, as text and as a figure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import fill, wrap
from typing import Any, Literal, TypeAlias

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tune_lung.analysis.labels import label_offsets
from tune_lung.analysis.style import (
    DOTS_PER_INCH,
    MODEL_COLOURS,
    MODEL_LABELS,
    STYLE,
    Floats,
    scale_log_where_wide,
    write_ticks_short,
)
from tune_lung.analysis.tables import data_label, metric_heading, sampled_axes, sampled_values, weights_label, with_test_intervals
from tune_lung.analysis.terminal import COLUMNS, Heading, aligned, magnitude, percent, percent_interval, sentences, shown
from tune_lung.metrics import Metric, is_on_validation, metric_of
from tune_lung.printable import in_one_line
from tune_lung.results.ranking import pareto_front, point_means
from tune_lung.results.reader import Run
from tune_lung.results.schema import TrialStatus
from tune_lung.strategy import Objective, recorded_objectives

_TEST = "test_macro_recall"
_BOUNDS = (f"{_TEST}_low", f"{_TEST}_high")
_POINT = ["cell", "point_id"]

_FRONT_SIZE, _POINT_SIZE, _POINT_ALPHA = 7.5, 5.0, 0.4
_LINE: dict[str, Any] = {"color": "#111111", "linewidth": 1.0, "alpha": 0.6}
_NUMBER_SIZE, _KEY_SIZE = 8.5, 7.3
_DIGIT_WIDTH, _DIGIT_HEIGHT = 0.7, 1.2
_LEADER: dict[str, Any] = {"arrowstyle": "-", "color": "#888888", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
_MOST_PANELS_ABREAST = 2
_MOST_LETTERS_OF_A_METRIC = 50
_MOST_LETTERS = 400
"""Of a point's key."""
_MOST_KEYED, _KEY_LETTERS, _TITLE_LETTERS, _CAPTION_LETTERS = 24, 85, 118, 165
_LEGEND_INCHES, _PANEL_INCHES, _KEY_LINE_INCHES, _TEXT_INCHES = 0.3, 4.4, 0.15, 1.4

_KeyLine: TypeAlias = tuple[str, str, str]
"""A number or nothing, a text, and the number's colour."""


@dataclass(frozen=True, kw_only=True)
class _Quantity:
    """How one objective is called and written."""

    name: str
    heading: Heading
    text: Callable[[Any], str]
    unit: str = ""
    factor: float = 1.0
    is_cost: bool = False


_COSTS = {
    "total_params": _Quantity(name="parameters", heading=("", "params"), text=magnitude, is_cost=True),
    "trainable_params": _Quantity(name="trainable parameters", heading=("params", "trained"), text=magnitude, is_cost=True),
    "mult_adds": _Quantity(name="multiply-adds of one image", heading=("multiply-", "adds"), text=magnitude, is_cost=True),
    "epoch_seconds_mean": _Quantity(
        name="time per epoch", unit="seconds of the training pass", heading=("s an", "epoch"), text=shown, is_cost=True
    ),
}


def objectives_of(run: Run) -> tuple[Objective, ...]:
    """List what the run's search was told to trade off; a single one is the selection score."""
    return recorded_objectives(run.manifest)


def point_table(run: Run) -> pd.DataFrame:
    """List every point that could be on the front: those with a completed trial and every objective measured.

    Args:
        run: A run with several objectives, finished or not.

    Returns:
        One row per point, those of the front first. `cell`, `point_id`, `model`; `front`, its number on the front from 1,
        null for the others; `repeats`, how many completed trials it is the mean of; the objectives; `test_macro_recall`,
        the mean over its tested repeats, null where it was not tested, with the 95% interval in `*_low` and `*_high` where
        there is one repeat; then a column per sampled axis, null where the point's cell does not sample it.

    Raises:
        ValueError: The run has a single objective.
    """
    objectives = objectives_of(run)
    if len(objectives) < 2:
        raise ValueError(f"The run {run.name} has the objective {objectives[0].column} alone: there is no front.")
    points = point_means(run.trials, objectives)
    front = pareto_front(points, objectives)
    numbers = pd.Series(range(1, len(front) + 1), index=front.index, dtype="Int64")
    points = points.assign(front=numbers.reindex(points.index)).sort_values("front", kind="stable", na_position="last")
    completed = run.trials[run.trials["status"] == TrialStatus.COMPLETED]
    one_trial = completed.drop_duplicates(_POINT)
    facts = one_trial[[*_POINT, "model"]].join(sampled_values(run, one_trial))
    table = points.merge(facts, on=_POINT).merge(_test_recalls(run, completed), on=_POINT)
    columns = [*_POINT, "model", "front", "repeats", *(one.column for one in objectives), _TEST, *_BOUNDS]
    return table[[*columns, *(name for name in facts.columns if name not in columns)]]


def front_table(run: Run) -> pd.DataFrame:
    """List the points that no other one beats: none is as good in every objective and better in one.

    Args:
        run: A run with several objectives, finished or not.

    Returns:
        The rows of `point_table` that are on the front, in the order of their numbers: the best in the first objective
        first.

    Raises:
        ValueError: The run has a single objective.
    """
    points = point_table(run)
    return points[points["front"].notna()].reset_index(drop=True)


def front_text(run: Run) -> str:
    """Lay out the front for a terminal.

    Raises:
        ValueError: The run has a single objective.
    """
    points = point_table(run)
    front = points[points["front"].notna()]
    if front.empty:
        return "\n".join(sentences([f"Front of {run.name}: no point has completed with every objective measured."]))
    objectives = objectives_of(run)
    wishes = _listed([f"{one.column} ({_wish(one)})" for one in objectives])
    title = (
        f"Front of {run.name}, {data_label(run)}: {len(front)} of {len(points)} completed points are beaten by no other in"
        f" {wishes}."
    )
    test_heading = ("test macro", "recall [95%]" if front[list(_BOUNDS)].notna().any(axis=None) else "recall")
    headings = [("", "   cell"), *(_quantity(one).heading for one in objectives), test_heading]
    rows = [
        [
            f"{row['front']:>2} {row['cell']}",
            *(_quantity(one).text(row[one.column]) for one in objectives),
            percent_interval(row[_TEST], *(row[bound] for bound in _BOUNDS)),
        ]
        for row in front.to_dict("records")
    ]
    blocks = [sentences([title]), aligned(headings, rows), _value_lines(run, front), sentences(_notes(run, points))]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def pareto_figure(run: Run) -> Figure:
    """Draw every completed point over the run's objectives, and the front among them.

    Costs lie along x. With two objectives the front is a line: what lies beyond it, nothing that was tried has reached.
    With more, the first that is no cost is drawn over each of the others, in a panel each, without a line.

    Args:
        run: A run with several objectives, finished or not.

    Returns:
        The figure; `save_figure` writes it.

    Raises:
        ValueError: The run has a single objective.
    """
    points = point_table(run)
    upright, *across = sorted(objectives_of(run), key=lambda one: _quantity(one).is_cost)
    key = _key_columns(run, points[points["front"].notna()])
    abreast = min(len(across), _MOST_PANELS_ABREAST)
    num_rows = math.ceil(len(across) / abreast)
    heights = [_LEGEND_INCHES, *[_PANEL_INCHES] * num_rows, _KEY_LINE_INCHES * (max(map(len, key)) + 1)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, sum(heights) + _TEXT_INCHES), dpi=DOTS_PER_INCH, layout="constrained")
        grid = figure.add_gridspec(len(heights), abreast, height_ratios=heights)
        _draw_legend(figure.add_subplot(grid[0, :]), points, has_line=len(across) == 1)
        panels = [figure.add_subplot(grid[1 + index // abreast, index % abreast]) for index in range(len(across))]
        for axes, objective in zip(panels, across, strict=True):
            _draw_points(axes, points, objective, upright)
            if len(across) == 1:
                _draw_line(axes, points, objective, upright)
        _draw_key(figure.add_subplot(grid[-1, :]), key)
        figure.suptitle("\n".join(_title(run, [upright, *across])), x=0.008, ha="left", fontsize=11)
        caption = figure.supxlabel(_caption(run, points), x=0.008, ha="left", fontsize=8.5, color="#444444")
        figure.draw_without_rendering()  # places the panels, and from here on they stay: numbers are set by their pixels
        figure.set_layout_engine("none")
        num_without = sum(_draw_numbers(axes, points, one, upright) for axes, one in zip(panels, across, strict=True))
        caption.set_text(_caption(run, points, num_without=num_without))
    return figure


def _quantity(objective: Objective) -> _Quantity:
    column = objective.column
    if is_on_validation(column):
        return _on_validation(metric_of(column))
    return _COSTS.get(column) or _Quantity(name=column, heading=("", column), text=shown)


def _on_validation(metric: Metric) -> _Quantity:
    """Say how a metric is called and written: a share in percent."""
    name, heading = in_one_line(f"{metric.label} on validation", most=_MOST_LETTERS_OF_A_METRIC), metric_heading(metric)
    if metric.is_share:
        return _Quantity(name=name, unit="%", heading=heading, text=percent, factor=100)
    return _Quantity(name=name, unit="nats" if metric.name == "loss" else "", heading=heading, text="{:.4f}".format)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _wish(objective: Objective) -> str:
    return "more is better" if objective.sign > 0 else "less is better"


def _test_recalls(run: Run, completed: pd.DataFrame) -> pd.DataFrame:
    """Average each point's test recall; an interval is that of one trial."""
    by_point = with_test_intervals(run, completed).groupby(_POINT, sort=False)
    means = by_point[[_TEST, *_BOUNDS]].mean()
    is_single = by_point[_TEST].count() == 1
    return means.assign(**{bound: means[bound].where(is_single) for bound in _BOUNDS}).reset_index()


def _value_texts(run: Run, front: pd.DataFrame) -> list[str]:
    """Write the sampled values of each point as `field=value`, those of its own cell alone; empty where nothing is sampled."""
    axes = sampled_axes(run)
    return [" ".join(f"{name}={shown(row[name])}" for name in axes.get(row["cell"], ())) for row in front.to_dict("records")]


def _value_lines(run: Run, front: pd.DataFrame) -> list[str]:
    texts = _value_texts(run, front)
    if not any(texts):
        return []
    lines = (
        wrap(in_one_line(f"{number:>2} {text}"), COLUMNS, subsequent_indent="   ")
        for number, text in zip(front["front"], texts, strict=True)
    )
    return ["What was sampled for them:", "", *(line for folded in lines for line in folded)]


def _notes(run: Run, points: pd.DataFrame) -> list[str]:
    notes = ["Validation alone decides who is on the front; the test images only describe it."]
    repeats = points["repeats"]
    if (repeats > 1).any():
        number = repeats.max() if repeats.min() == repeats.max() else f"{repeats.min()} to {repeats.max()}"
        notes.append(f"A point is the mean of its {number} completed repeats.")
    num_others = len(run.trials.drop_duplicates(_POINT)) - len(points)
    if num_others:
        notes.append(f"Points left out, as none of their trials completed with every objective measured: {num_others}.")
    return [*notes, *run.notes_of_numbers]


def _title(run: Run, objectives: Sequence[Objective]) -> list[str]:
    manifest = run.manifest
    names = _listed([_quantity(one).name for one in objectives])
    counts = manifest["data"]["counts"]
    return [
        fill(in_one_line(f"The front of {names} on {data_label(run)}"), _TITLE_LETTERS),
        in_one_line(
            f"{counts['validation']:,} validation images, {len(run.classes)} classes, {manifest['image_size']} px, "
            f"protocol {manifest['protocol']}, weights: {weights_label(run)}"
        ),
    ]


def _caption(run: Run, points: pd.DataFrame, *, num_without: int = 0) -> str:
    num_objectives = len(objectives_of(run))
    notes = [
        "Faint: a completed point that another one beats. Numbered: no other is as good in every objective and better in one."
    ]
    if num_without:
        notes.append(f"{num_without} numbers found no room.")
    if num_objectives > 2:
        notes.append(f"With {num_objectives} objectives such a point need not stand out in any one panel.")
    notes += _notes(run, points)
    if run.synthetic:
        notes.append("Synthetic images: these numbers say nothing of medicine.")
    return fill(in_one_line(f"{' '.join(notes)} Not for clinical use."), _CAPTION_LETTERS)


def _draw_legend(axes: Axes, points: pd.DataFrame, *, has_line: bool) -> None:
    axes.set_axis_off()
    own = set(points["model"])
    handles = [
        Line2D([], [], label=MODEL_LABELS[model], **_marker(colour, is_front=False))
        for model, colour in MODEL_COLOURS.items()
        if model in own
    ]
    handles.append(Line2D([], [], label="the front", **_marker("#111111", is_front=True)))
    handles[-1].set_linestyle("-" if has_line else "none")
    axes.legend(handles=handles, loc="center left", ncols=len(handles), borderaxespad=0, borderpad=0, fontsize=9)


def _marker(colour: str, *, is_front: bool) -> dict[str, Any]:
    common = {"linestyle": "none", "marker": "o", "color": colour}
    if is_front:
        return common | {"markersize": _FRONT_SIZE, "markeredgecolor": "#111111"}
    return common | {"markersize": _POINT_SIZE, "markeredgewidth": 0, "alpha": _POINT_ALPHA}


def _draw_points(axes: Axes, points: pd.DataFrame, objective: Objective, upright: Objective) -> None:
    for is_front in (False, True):
        drawn = points[points["front"].notna() == is_front]
        for model, own in drawn.groupby("model", sort=False):
            x, y = _values(own, objective), _values(own, upright)
            colour = MODEL_COLOURS[str(model)]
            axes.plot(x, y, zorder=2.5 + is_front, **_marker(colour, is_front=is_front))
    axes.margins(0.08)
    axes.grid(visible=True, axis="both")
    _scale(axes, "x", points, objective)
    _scale(axes, "y", points, upright)


def _values(points: pd.DataFrame, objective: Objective) -> Floats:
    return _quantity(objective).factor * points[objective.column].to_numpy(np.float64)


def _scale(axes: Axes, which: Literal["x", "y"], points: pd.DataFrame, objective: Objective) -> None:
    """Scale an axis for what it shows, and say what that is, its unit, and which way is better."""
    quantity = _quantity(objective)
    is_log = quantity.is_cost and scale_log_where_wide(axes, which, _values(points, objective))
    unit = ", ".join([quantity.unit] * bool(quantity.unit) + ["log scale"] * is_log)
    label = f"{quantity.name} ({unit})" if unit else quantity.name
    axes.set(**{f"{which}label": f"{label}: {_wish(objective)}"})
    write_ticks_short(axes, which)


def _draw_line(axes: Axes, points: pd.DataFrame, objective: Objective, upright: Objective) -> None:
    """Draw the border of what was reached: at least as bad as some point of the front in both objectives."""
    front = points[points["front"].notna()].sort_values(objective.column)
    steps: Literal["steps-pre", "steps-post"] = "steps-pre" if objective.sign > 0 else "steps-post"
    axes.plot(_values(front, objective), _values(front, upright), drawstyle=steps, zorder=2.2, **_LINE)


def _draw_numbers(axes: Axes, points: pd.DataFrame, objective: Objective, upright: Objective) -> int:
    """Write each front point's number on the side where nothing better lies.

    Returns:
        How many found no room and stay without.
    """
    values = np.column_stack([_values(points, objective), _values(points, upright)])
    places = axes.transData.transform(values) * 72 / DOTS_PER_INCH
    is_front = points["front"].notna().to_numpy()
    texts = [str(number) for number in points.loc[is_front, "front"]]
    sizes = _NUMBER_SIZE * np.array([[_DIGIT_WIDTH * len(text), _DIGIT_HEIGHT] for text in texts]).reshape(-1, 2)
    towards = (objective.sign, upright.sign)
    offsets = label_offsets(places[is_front], sizes, places, point_size=_FRONT_SIZE, towards=towards)
    for text, value, offset in zip(texts, values[is_front], offsets, strict=True):
        if offset is not None:
            is_far = math.hypot(*offset) > 1.8 * _NUMBER_SIZE
            axes.annotate(
                text,
                value,
                xytext=offset,
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=_NUMBER_SIZE,
                arrowprops=_LEADER if is_far else None,
            )
    return offsets.count(None)


def _key_columns(run: Run, front: pd.DataFrame) -> tuple[list[_KeyLine], list[_KeyLine]]:
    """Say what the numbers stand for, in two columns; the left one is the longer."""
    entries: list[list[_KeyLine]] = []
    for (_, row), values in zip(front.iterrows(), _value_texts(run, front), strict=True):
        first, *others = wrap(in_one_line(f"{row['cell']} {values}", most=_MOST_LETTERS), _KEY_LETTERS)
        colour = MODEL_COLOURS[row["model"]]
        entries.append([(str(row["front"]), first, colour), *(("", line, colour) for line in others)])
    left_out = len(entries) - _MOST_KEYED
    entries = entries[:_MOST_KEYED] + [[("", f"and {left_out} more, named in the report's table", "#444444")]] * (left_out > 0)
    half = sum(map(len, entries)) / 2
    columns: tuple[list[_KeyLine], list[_KeyLine]] = ([], [])
    for entry in entries:
        columns[len(columns[0]) >= half].extend(entry)
    return columns


def _draw_key(axes: Axes, columns: Sequence[Sequence[_KeyLine]]) -> None:
    axes.set_axis_off()
    num_lines = max(map(len, columns)) + 1
    for column, lines in enumerate(columns):
        for index, (number, text, colour) in enumerate(lines):
            y, x = 1 - (index + 0.5) / num_lines, 0.5 * column
            axes.text(x + 0.018, y, number, ha="right", va="center", fontsize=_KEY_SIZE, fontweight="bold", color=colour)
            axes.text(x + 0.026, y, text, va="center", fontsize=_KEY_SIZE).set_in_layout(False)
