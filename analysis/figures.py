"""Figure 4: what freezing costs and brings, in the four panels of Lykos (2022)."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, TypeAlias

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tune_lung.analysis.published import SOURCE, published_runs
from tune_lung.analysis.style import (
    DOTS_PER_INCH,
    MODEL_COLOURS,
    MODEL_LABELS,
    STYLE,
    Floats,
    scale_log_where_wide,
    write_ticks_short,
)
from tune_lung.analysis.tables import comparison_table, data_label, weights_label, with_test_intervals
from tune_lung.errors import InputError
from tune_lung.families.registry import family_of
from tune_lung.files import CheckWriter, anyone_may_write, is_plain_file, whole_file
from tune_lung.printable import in_one_line
from tune_lung.results.ranking import best_points
from tune_lung.results.reader import Run
from tune_lung.results.schema import StopReason, TrialStatus

_LineStyle: TypeAlias = Literal["-", "--", "-.", ":"]

_RUN_STYLES: tuple[tuple[_LineStyle, str], ...] = (("-", "o"), ("--", "D"), ("-.", "^"))
MOST_RUNS = len(_RUN_STYLES)
"""How many runs one figure can tell apart."""
_PUBLISHED_STYLE: tuple[_LineStyle, str] = (":", "x")
_CACHED_MARKER, _CACHED_SIZE = "*", 11.0
_X_WITHOUT_DEPTH = -0.8
_DODGE, _WIDEST_SPREAD = 0.12, 0.72
_PUBLISHED_ALPHA = 0.45
_WIDEST_LINES = (2.8, 2.2)
_LEGEND_ROW = 0.075
_SOFTWARE = "tune_lung"
_HEADER_BYTES = 2048
"""Bytes of a PNG in which its texts stand, before the pixels."""
_MOST_LETTERS = 10_000
"""Of a caption, which may name every cell."""


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """One quantity over the number of frozen blocks."""

    title: str
    unit: str
    column: str
    factor: float = 1.0
    starts_at_zero: bool = True
    is_count: bool = False


_RECALL = _Panel(
    title="Micro recall on test",
    unit="micro recall (%), 95% Wilson interval",
    column="test_micro_recall",
    factor=100,
    starts_at_zero=False,
)
_EPOCHS = _Panel(title="Epochs run", unit="epochs", column="epochs_run", is_count=True)
_SECONDS = _Panel(title="Seconds per epoch", unit="seconds of the training pass", column="epoch_seconds_mean")
_PARAMS = _Panel(title="Trainable parameters", unit="parameters", column="trainable_params")
_OWN_ENDS: dict[str, str] = {StopReason.PATIENCE: "ended by patience", StopReason.FITTED: "fitted once"}
"""Ends after which more time would change nothing; their points are filled."""
_PANELS = (_RECALL, _EPOCHS, _SECONDS, _PARAMS)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Series:
    """One network of one run, or of the published runs, over the number of frozen blocks."""

    model: str
    rows: pd.DataFrame
    line: _LineStyle
    marker: str
    is_published: bool = False
    shift: float = 0.0
    """Of the points at a depth, in blocks."""
    shift_without: float = 0.0
    """Of the point that has no depth."""

    @property
    def colour(self) -> str:
        return MODEL_COLOURS[self.model]

    @property
    def x(self) -> Floats:
        """Where its points stand: at the number of frozen blocks, what has none beside them."""
        blocks = self.rows["frozen_blocks"].to_numpy(dtype=np.float64, na_value=np.nan)
        return np.where(np.isnan(blocks), _X_WITHOUT_DEPTH + self.shift_without, blocks + self.shift)

    @property
    def has_depth(self) -> npt.NDArray[np.bool_]:
        """Which of its points stand at a number of frozen blocks."""
        flags: npt.NDArray[np.bool_] = self.rows["frozen_blocks"].notna().to_numpy(dtype=bool)
        return flags

    def y(self, panel: _Panel) -> Floats:
        """One value per point; NaN where nothing was measured."""
        return panel.factor * self.rows[panel.column].to_numpy(dtype=np.float64, na_value=np.nan)


def figure4(*runs: Run) -> Figure:
    """Draw recall, epochs, seconds and parameters over the number of frozen blocks.

    Of every network and depth the point with the best mean selection score on validation is drawn, by its first repeat.
    The published runs stand behind, fainter; on synthetic images only where the numbers do not depend on the images.
    Trials that might have improved with more epochs are hollow; stars are epochs on stored features of the frozen prefix.
    Points of one depth are moved apart a little, so that none hides another.

    Args:
        *runs: One run, or several to compare; at most 3.

    Returns:
        The figure; `save_figure` writes it.

    Raises:
        ValueError: There is no run, or more than can be told apart.
    """
    if not 1 <= len(runs) <= MOST_RUNS:
        raise ValueError(f"figure4 compares 1 to {MOST_RUNS} runs, not {len(runs)}.")
    tables = [_drawn(run) for run in runs]
    own = [series for table, style in zip(tables, _RUN_STYLES, strict=False) for series in _series_of(table, *style)]
    published = _published_series({series.model for series in own})
    is_synthetic = any(run.synthetic for run in runs)
    with mpl.rc_context(STYLE):
        handles = _legend(runs, own, published)
        figure = Figure(figsize=(11, 9.6), dpi=DOTS_PER_INCH, layout="constrained")
        columns = 4 if len(runs) == 1 else 3
        grid = figure.add_gridspec(3, 2, height_ratios=(_LEGEND_ROW * max(1, math.ceil(len(handles) / columns)), 1, 1))
        _draw_legend(figure.add_subplot(grid[0, :]), handles, columns=columns)
        for index, panel in enumerate(_PANELS):
            behind = [] if is_synthetic and panel is not _PARAMS else published
            _draw_panel(figure.add_subplot(grid[1 + index // 2, index % 2]), panel, _side_by_side([*behind, *own]))
        figure.suptitle("\n".join(map(in_one_line, _title(runs))), x=0.008, ha="left", fontsize=11)
        figure.supxlabel("\n".join(_caption(runs, tables)), x=0.008, ha="left", fontsize=8.5, color="#444444")
    return figure


def save_figure(figure: Figure, path: Path, *, check_writer: CheckWriter = anyone_may_write) -> None:
    """Write a figure as PNG, whole; the same figure gives the same bytes. `check_writer` as in `whole_file`."""
    with whole_file(path, check_writer=check_writer) as temporary, mpl.rc_context(STYLE):
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": _SOFTWARE})


def is_saved_figure(path: Path) -> bool:
    """Whether `save_figure` wrote what lies at a path; not so for a link, nor for what versions before 0.2 drew."""
    if not is_plain_file(path):
        return False
    with path.open("rb") as file:
        return f"tEXtSoftware\0{_SOFTWARE}".encode() in file.read(_HEADER_BYTES)


def _drawn(run: Run) -> pd.DataFrame:
    """Take of each network and depth the best point's first repeat, with `points` and `repeats`: how many it stands for."""
    trials, depth = run.trials, ["model", "frozen_blocks"]
    num_points = trials.drop_duplicates(["cell", "point_id"]).groupby(depth, dropna=False).size()
    best = best_points(trials[_can_be_drawn(trials)], within=depth).sort_values("repeat", kind="stable")
    first = best.drop_duplicates(depth).sort_values("frozen_blocks")
    places = pd.MultiIndex.from_frame(first[depth])
    counted = first.assign(
        points=num_points.reindex(places).to_numpy(), repeats=best.groupby(depth, dropna=False).size().reindex(places).to_numpy()
    )
    return with_test_intervals(run, counted)


def _can_be_drawn(trials: pd.DataFrame) -> pd.Series:
    """Say which trials have a place in the panels: those with an epoch, of a network whose depth is known."""
    has_depth = ~trials["model"].isin([model for model in MODEL_COLOURS if _can_freeze(model)]) | trials["frozen_blocks"].notna()
    return (trials["epochs_run"].fillna(0) > 0) & has_depth


def _series_of(table: pd.DataFrame, line: _LineStyle, marker: str) -> list[_Series]:
    own = set(table["model"])
    if unknown := own - MODEL_COLOURS.keys():
        name = in_one_line(min(map(str, unknown)))
        raise InputError(f"No figure knows the network '{name}': a newer version wrote the run. Update tune_lung.")
    return [
        _Series(model=model, rows=table[table["model"] == model], line=line, marker=marker)
        for model in MODEL_COLOURS
        if model in own
    ]


def _published_series(models: Collection[str]) -> list[_Series]:
    runs = published_runs().rename(columns={"mean_epoch_seconds": _SECONDS.column})
    runs = runs[runs["model"].isin(list(models))]
    return [replace(series, is_published=True) for series in _series_of(runs, *_PUBLISHED_STYLE)]


def _side_by_side(series: Sequence[_Series]) -> list[_Series]:
    """Shift the points of one depth apart, and those without a depth, of what nothing can be frozen of."""
    without = [index for index, one in enumerate(series) if not one.has_depth.all()]
    others = [index for index, one in enumerate(series) if one.has_depth.any()]
    step = min(_DODGE, _WIDEST_SPREAD / max(1, len(others)))
    step_without = min(_DODGE, _WIDEST_SPREAD / max(1, len(without)))
    return [
        replace(
            one,
            shift=_place(index, others, step),
            shift_without=_place(index, without, step_without),
        )
        for index, one in enumerate(series)
    ]


def _place(index: int, group: Sequence[int], step: float) -> float:
    return step * (group.index(index) - (len(group) - 1) / 2) if index in group else 0.0


def _draw_legend(axes: Axes, handles: Sequence[Line2D], *, columns: int) -> None:
    axes.set_axis_off()
    legend = axes.legend(handles=handles, loc="center left", ncols=columns, borderaxespad=0, borderpad=0, fontsize=9)
    legend.set_in_layout(False)  # long names of runs must not narrow the panels


def _draw_panel(axes: Axes, panel: _Panel, series: Sequence[_Series]) -> None:
    for one in series:
        _draw_series(axes, panel, one)
    axes.set_title(panel.title)
    without = list(dict.fromkeys(MODEL_LABELS[one.model] for one in series if not one.has_depth.all()))
    axes.set_xlim(_X_WITHOUT_DEPTH - 0.35 if without else -0.5, 4.5)
    ticks = {_X_WITHOUT_DEPTH: without[0] if len(without) == 1 else "none to\nfreeze"} if without else {}
    ticks |= {float(blocks): str(blocks) for blocks in range(5)}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlabel("frozen blocks")
    _scale(axes, panel, np.concatenate([np.empty(0), *(one.y(panel) for one in series)]))
    if panel is _SECONDS and any(one.is_published for one in series):
        axes.set_title(
            "published: another machine, an unnamed GPU", loc="right", fontsize=8.5, fontweight="normal", color="#555555"
        )


def _draw_series(axes: Axes, panel: _Panel, series: _Series) -> None:
    depth: dict[str, Any] = {"alpha": _PUBLISHED_ALPHA, "zorder": 1.5} if series.is_published else {"zorder": 2.5}
    style: dict[str, Any] = {
        "color": series.colour,
        "linestyle": series.line,
        "linewidth": _line_width(series.model, series.is_published),
    }
    x, y, has_depth = series.x, series.y(panel), series.has_depth
    for level in y[~has_depth]:
        axes.axhline(level, **style, **depth)
    axes.plot(*_with_gaps(x[has_depth], y[has_depth]), **style, **depth)
    if panel is _RECALL and not series.is_published:
        _draw_intervals(axes, series)
    for place, value, (_, row) in zip(x, y, series.rows.iterrows(), strict=True):
        axes.plot([place], [value], linestyle="none", **_marker(series, row, panel), **(depth | {"zorder": depth["zorder"] + 1}))


def _line_width(model: str, is_published: bool = False) -> float:
    """Give networks drawn earlier wider lines, so that equal values show one below the other."""
    widths = dict(zip(MODEL_COLOURS, _WIDEST_LINES, strict=False))
    return 1.1 if is_published else widths.get(model, float(STYLE["lines.linewidth"]))


def _can_freeze(model: str) -> bool:
    return family_of(model).num_blocks > 0


def _with_gaps(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Break a line where a depth between two others is missing."""
    gaps = np.flatnonzero(np.diff(x) > 1.5) + 1
    return np.insert(x, gaps, np.nan), np.insert(y, gaps, np.nan)


def _draw_intervals(axes: Axes, series: _Series) -> None:
    y = series.y(_RECALL)
    low, high = (100 * series.rows[f"test_micro_recall_{bound}"].to_numpy() for bound in ("low", "high"))
    axes.errorbar(
        series.x, y, yerr=(y - low, high - y), fmt="none", ecolor=series.colour, elinewidth=1.1, capsize=2.5, zorder=2.6
    )


def _marker(series: _Series, row: pd.Series, panel: _Panel) -> dict[str, Any]:
    if series.is_published:
        return {"marker": series.marker, "color": series.colour}
    is_cached = panel is _SECONDS and row["prefix_cached"] is not pd.NA and bool(row["prefix_cached"])
    return {
        "marker": _CACHED_MARKER if is_cached else series.marker,
        "markersize": _CACHED_SIZE if is_cached else STYLE["lines.markersize"],
        "markeredgecolor": series.colour,
        "markerfacecolor": series.colour if row["stop_reason"] in _OWN_ENDS else "white",
        "markeredgewidth": 1.4,
    }


def _scale(axes: Axes, panel: _Panel, values: Floats) -> None:
    """Scale the panel for what it shows, and say the unit."""
    is_log = panel in (_SECONDS, _PARAMS) and scale_log_where_wide(axes, "y", values)
    axes.set_ylabel(f"{panel.unit} (log scale)" if is_log else panel.unit)
    if not is_log and panel.starts_at_zero:
        axes.set_ylim(0, 1.08 * values[np.isfinite(values)].max(initial=0.0) or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(integer=panel.is_count))
    elif not is_log:
        axes.set_ylim(top=min(100.5, axes.get_ylim()[1]))
    write_ticks_short(axes, "y")


def _title(runs: Sequence[Run]) -> list[str]:
    same_data = len({run.manifest["data"]["fingerprint"] for run in runs}) == 1
    data = data_label(runs[0]) if same_data else "DIFFERENT images: " + " / ".join(data_label(run) for run in runs)
    known = [run for run in runs if "imported_from" not in run.manifest]
    facts = [
        f"{_each(known, lambda run: run.manifest['data']['counts']['test'])} test images, "
        f"{_each(known, lambda run: len(run.classes))} classes, "
        f"{_each(known, lambda run: run.manifest['image_size'])} px, "
        f"protocol {_each(known, lambda run: run.manifest['protocol'])}, weights: {_each(known, weights_label)}"
    ]
    strangers = [f"{run.name}: imported, protocol and weights not known" for run in runs if run not in known]
    return [
        f"Freezing the first blocks: recall and cost on {data}",
        "; ".join((facts if known else []) + strangers),
    ]


def _each(runs: Sequence[Run], fact: Callable[[Run], Any]) -> str:
    return " / ".join(dict.fromkeys(f"{fact(run):,}" if isinstance(fact(run), int) else str(fact(run)) for run in runs))


def _caption(runs: Sequence[Run], tables: Sequence[pd.DataFrame]) -> list[str]:
    notes = [*_choice_notes(pd.concat(tables)), "Points of one depth are moved apart a little."]
    if not any(run.synthetic for run in runs):
        notes.append(f"{SOURCE}: 2,119 other test images, one seed each.")
    if any(run.manifest["protocol"] == "strict" for run in runs):
        notes.append(f"In {SOURCE} conv1 and bn1 stay trainable at every depth, here they are frozen from 1 block on.")
    absent = [reason for run in runs for reason in _absent(run)]
    if absent:
        notes.append(f"Not drawn: {', '.join(absent)}.")
    notes += [note if len(runs) == 1 else f"{run.name}: {note}" for run in runs for note in run.notes_of_numbers]
    if any(run.synthetic for run in runs):
        notes.append("Synthetic images: these numbers say nothing of medicine.")
    return [fill(in_one_line(f"{' '.join(notes)} Not for clinical use.", most=_MOST_LETTERS), 165)]


def _choice_notes(drawn: pd.DataFrame) -> list[str]:
    """Say what a mark stands for where it stands for more than itself."""
    notes = []
    fewest, most = drawn["points"].min(), drawn["points"].max()
    if most > 1:
        number = most if fewest == most else f"{fewest} to {most}"
        total = f" ({drawn['points'].sum()} in all)" if len(drawn) > 1 else ""
        notes.append(f"Each mark is the best on validation of the {number} points tried with its network and depth{total}.")
    if (drawn["repeats"] > 1).any():
        notes.append("Of a point's repeats the first is drawn.")
    is_tested = drawn["test_micro_recall"].notna()
    if is_tested.any() and not is_tested.all():
        notes.append("Not every mark was tested: the test images are opened for each cell's best point.")
    return notes


def _absent(run: Run) -> list[str]:
    """Name the cells of which nothing is drawn, with the reason."""
    drawn = set(run.trials.loc[_can_be_drawn(run.trials), "cell"])
    table = comparison_table(run).drop_duplicates("cell")
    return [f"{row['cell']} ({_why_absent(row)})" for _, row in table[~table["cell"].isin(drawn)].iterrows()]


def _why_absent(row: pd.Series) -> str:
    if pd.isna(row["status"]):
        return "not started"
    if row["status"] == TrialStatus.COMPLETED:
        return "its epochs are not known" if pd.isna(row["epochs_run"]) else "its depth is not known"
    return str(row["status"])


def _legend(runs: Sequence[Run], own: Sequence[_Series], published: Sequence[_Series]) -> list[Line2D]:
    grey = "#111111"
    models = dict.fromkeys(series.model for series in own)
    handles = [
        Line2D([], [], color=MODEL_COLOURS[model], linewidth=_line_width(model), label=MODEL_LABELS[model]) for model in models
    ]
    if len(runs) > 1:
        handles += [
            Line2D(
                [],
                [],
                color=grey,
                linestyle=line,
                marker=marker,
                label=in_one_line(f"{run.name} (weights: {weights_label(run)})"),
            )
            for run, (line, marker) in zip(runs, _RUN_STYLES, strict=False)
        ]
    marks = pd.concat([series.rows for series in own]) if own else pd.DataFrame(columns=["stop_reason", "prefix_cached"])
    is_whole = marks["stop_reason"].isin(_OWN_ENDS)
    if is_whole.any():
        ends = [text for reason, text in _OWN_ENDS.items() if (marks["stop_reason"] == reason).any()]
        handles.append(_mark("o", grey, grey, " or ".join(ends)))
    if not is_whole.all():
        handles.append(_mark("o", grey, "white", "not ended by patience"))
    if marks["prefix_cached"].fillna(False).astype(bool).any():
        handles.append(_mark(_CACHED_MARKER, grey, grey, "epochs on the stored frozen prefix"))
    if published:
        line, marker = _PUBLISHED_STYLE
        handles.append(
            Line2D([], [], color=grey, linestyle=line, marker=marker, alpha=0.6, linewidth=1.1, label=f"published: {SOURCE}")
        )
    return handles


def _mark(marker: str, edge: str, face: str, label: str) -> Line2D:
    size = _CACHED_SIZE if marker == _CACHED_MARKER else STYLE["lines.markersize"]
    return Line2D(
        [], [], linestyle="none", marker=marker, markersize=size, markeredgecolor=edge, markerfacecolor=face, label=label
    )
