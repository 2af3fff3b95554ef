"""Where the time of a run went: the figure of the ledger's table `profile`."""

from collections.abc import Mapping
from textwrap import fill

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tune_lung.analysis.style import DOTS_PER_INCH, STYLE
from tune_lung.printable import in_one_line
from tune_lung.results.reader import Run
from tune_lung.results.schema import TimePart

COLOURS: Mapping[TimePart, str] = {
    TimePart.START: "#CC79A7",
    TimePart.STORE: "#56B4E9",
    TimePart.PREFIX: "#E69F00",
    TimePart.STEP: "#0072B2",
    TimePart.EVALUATION: "#009E73",
    TimePart.CHECKPOINT: "#D55E00",
    TimePart.IDLE: "#c9c9c9",
}
"""One colour per part, told apart by colour-blind readers (after Okabe and Ito)."""
_ONCE_A_TRIAL = (TimePart.START, TimePart.PREFIX)
_LEAST_SHARE_WITH_NUMBER = 0.06
_CAPTION_LETTERS = 130
_MOST_LETTERS = 100
"""Of a cell's name."""
_INCHES_A_BAR, _INCHES_AROUND, _INCHES_OF_RUN = 0.3, 1.6, 1.1


def epoch_seconds(run: Run) -> pd.DataFrame:
    """Average where the time of an epoch went, what is done once a trial left out.

    Args:
        run: A run with a profile.

    Returns:
        Mean seconds an epoch, a row per cell in the ledger's order of names, a column per part.
    """
    own = run.profile[run.profile["epoch"].notna() & ~run.profile["part"].isin(_ONCE_A_TRIAL)]
    named = own.merge(run.trials[["trial_id", "cell"]], on="trial_id")
    num_epochs = named.drop_duplicates(["trial_id", "epoch"]).groupby("cell").size()
    seconds = named.pivot_table(index="cell", columns="part", values="seconds", aggfunc="sum", fill_value=0.0)
    return seconds.div(num_epochs, axis=0).reindex(columns=_known(seconds.columns), fill_value=0.0)


def run_seconds(run: Run) -> pd.Series:
    """Add up where the time of all slots of a run went.

    Args:
        run: A run with a profile.

    Returns:
        Seconds by part. Waiting is counted by the slots, where the run's own row says how long they trained nothing.
    """
    profile = run.profile
    is_run = profile["trial_id"].isna()
    waits_of_trials = ~is_run & (profile["part"] == TimePart.IDLE)
    seconds = profile[~waits_of_trials if is_run.any() else slice(None)].groupby("part")["seconds"].sum()
    return seconds.reindex(_known(seconds.index))


def profile_figure(run: Run) -> Figure:
    """Draw where the time of an epoch of each cell, and of the whole run, went.

    Args:
        run: A run with a profile.

    Returns:
        The figure; `save_figure` writes it.
    """
    cells, whole = epoch_seconds(run), run_seconds(run)
    with mpl.rc_context(STYLE | {"axes.grid.axis": "x"}):
        bars_height = _INCHES_A_BAR * len(cells) + 0.5
        figure = Figure(figsize=(9, bars_height + _INCHES_OF_RUN + _INCHES_AROUND), dpi=DOTS_PER_INCH, layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=(bars_height, _INCHES_OF_RUN))
        _draw_shares(upper, cells, "An epoch of each cell, on average")
        _draw_shares(lower, whole.to_frame("all slots").T, "The whole run, seconds of all slots")
        lower.set_xlabel("share of the time (%)")
        parts = _known({*cells.columns, *whole.index})
        handles = [mpl.patches.Patch(color=COLOURS[part], label=part.value) for part in parts]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
        caption = fill(" ".join([f"{run.name}.", *run.notes_of_numbers, "Not for clinical use."]), _CAPTION_LETTERS)
        figure.supxlabel(caption, x=0.008, ha="left", fontsize=8.5, color="#444444")
    return figure


def _known(parts: "pd.Index | set[str]") -> list[TimePart]:
    """List the parts that occur, in the order in which they are drawn."""
    return [part for part in TimePart if part in set(parts)]


def _draw_shares(axes: Axes, seconds: pd.DataFrame, title: str) -> None:
    """Draw a row as a bar of 100%, its seconds beside it."""
    totals = seconds.sum(axis=1)
    places = range(len(seconds))
    left = np.zeros(len(seconds))
    for part in map(TimePart, seconds.columns):
        shares = 100 * (seconds[part] / totals).fillna(0.0).to_numpy()
        axes.barh(places, shares, left=left, height=0.72, color=COLOURS[part])
        for place, start, share in zip(places, left, shares, strict=True):
            if share >= 100 * _LEAST_SHARE_WITH_NUMBER:
                axes.text(start + share / 2, place, f"{share:.0f}", ha="center", va="center", fontsize=8, color=_ink(part))
        left = left + shares
    for place, total in zip(places, totals, strict=True):
        axes.text(101, place, f"{total:.3g} s", va="center", fontsize=8.5)
    axes.set_yticks(list(places), [in_one_line(name, most=_MOST_LETTERS) for name in seconds.index])
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20))
    axes.set_title(title)


def _ink(part: TimePart) -> str:
    return "white" if part in (TimePart.STEP, TimePart.EVALUATION, TimePart.CHECKPOINT) else "#222222"
