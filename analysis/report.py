"""The report of one run, or of several compared: the tables as text, the figures as images."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from tune_lung.analysis.figures import MOST_RUNS, figure4, is_saved_figure, save_figure
from tune_lung.analysis.pareto import front_text, objectives_of, pareto_figure
from tune_lung.analysis.profile import profile_figure
from tune_lung.analysis.tables import comparison_text, transfer_text
from tune_lung.errors import InputError
from tune_lung.files import CheckWriter, anyone_may_write, is_plain_file, shown_path
from tune_lung.results.layout import TABLES
from tune_lung.results.reader import Run, read_run

_READ = frozenset(TABLES) - {"validation_predictions"}
"""All but the table that grows by every image of every trial, and that nothing here is drawn from."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report consists of."""

    text: str
    """The tables, for a terminal of 100 columns."""
    figures: tuple[Path, ...]
    """The images written."""

    def __str__(self) -> str:
        """Show the tables."""
        return self.text


def write_report(roots: Sequence[Path], *, out: Path | None = None, check_writer: CheckWriter = anyone_may_write) -> Report:
    """Draw the figures of one run, or of several compared, and lay out the tables.

    Args:
        roots: The runs' folders; from the second on, each is compared with the one before it.
        out: Where the figures go; None for the first run's own folder `figures`.
        check_writer: Raises when this process must not write there any more.

    Returns:
        The tables and the figures' paths.

    Raises:
        InputError: A folder is no run, there are too many, or the figures cannot be written; `figures` is a link.
    """
    if not 1 <= len(roots) <= MOST_RUNS:
        raise InputError(f"A report compares 1 to {MOST_RUNS} runs, not {len(roots)}.")
    runs = [read_run(root, only=_READ) for root in roots]
    figures = {_figure_path(runs, name, out): draw for name, draw in _figures(runs)}
    for path in figures:
        _refuse_foreign(path, is_in_run=out is None)
    for path, draw in figures.items():
        try:
            save_figure(draw(), path, check_writer=check_writer)
        except OSError as error:
            raise InputError(
                f"The figure cannot be written to '{path.parent}': {error.strerror}. Give another place by --out."
            ) from error
    texts = [text for run in runs for text in _texts(run)] + [transfer_text(first, second) for first, second in pairwise(runs)]
    return Report(text="\n\n".join(texts), figures=tuple(figures))


def _refuse_foreign(path: Path, *, is_in_run: bool) -> None:
    """Refuse to write a figure over what lies at its place; in a run's own folder, each plain file of its name is a figure.

    Raises:
        InputError: It would be written over a link, or over what is not known as a figure of ours.
    """
    is_ours = is_plain_file(path) if is_in_run else is_saved_figure(path)
    if os.path.lexists(path) and not is_ours:
        raise InputError(f"'{path}' is there and is no figure that tune_lung drew. Move it away, or give another --out.")


def print_report(
    roots: Sequence[Path],
    *,
    console: Console,
    out: Path | None = None,
    check_writer: CheckWriter = anyone_may_write,
) -> None:
    """Write the report and print its tables and the figures' paths; arguments and errors as in `write_report`."""
    report = write_report(roots, out=out, check_writer=check_writer)
    figures = "\n".join(f"Figure: {shown_path(path)}" for path in report.figures)
    console.print(f"{report.text}\n\n{figures}", markup=False, highlight=False, soft_wrap=True)


def _texts(run: Run) -> list[str]:
    return [comparison_text(run), front_text(run)] if _has_several_objectives(run) else [comparison_text(run)]


def _figures(runs: Sequence[Run]) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Name each figure, and what draws it: Figure 4 of all runs, and of each run its front and its profile, if it has them."""
    is_single = len(runs) == 1
    yield ("figure4" if is_single else "figure4_compared"), partial(figure4, *runs)
    for number, run in enumerate(runs, start=1):
        if _has_several_objectives(run):
            yield ("pareto" if is_single else f"pareto_{number}"), partial(pareto_figure, run)
        if len(run.profile):
            yield ("profile" if is_single else f"profile_{number}"), partial(profile_figure, run)


def _has_several_objectives(run: Run) -> bool:
    return len(objectives_of(run)) > 1


def _figure_path(runs: Sequence[Run], name: str, out: Path | None) -> Path:
    own = runs[0].paths.figure(name)
    if out is not None:
        return out / own.name
    runs[0].paths.refuse_links(own.parent.name)
    return own
