"""The report of one run, or of several compared: the tables as text and Figure 4 as an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from tune_lung.analysis.figures import MOST_RUNS, figure4, save_figure
from tune_lung.analysis.tables import comparison_text, transfer_text
from tune_lung.errors import InputError
from tune_lung.files import shown_path
from tune_lung.results.reader import Run, read_run


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report consists of."""

    text: str
    """The tables, for a terminal of 100 columns."""
    figures: tuple[Path, ...]
    """The images written."""


def write_report(roots: Sequence[Path], *, out: Path | None = None) -> Report:
    """Draw the figures of one run, or of several compared, and lay out the tables.

    Args:
        roots: The runs' folders; from the second on, each is compared with the one before it.
        out: Where the figures go; None for the first run's own folder `figures`.

    Returns:
        The tables and the figures' paths.

    Raises:
        InputError: A folder is no run, there are too many, or the figures cannot be written.
    """
    if not 1 <= len(roots) <= MOST_RUNS:
        raise InputError(f"A report compares 1 to {MOST_RUNS} runs, not {len(roots)}.")
    runs = [read_run(root) for root in roots]
    path = _figure_path(runs, out)
    try:
        save_figure(figure4(*runs), path)
    except OSError as error:
        raise InputError(
            f"The figure cannot be written to '{path.parent}': {error.strerror}. Give another place by --out."
        ) from error
    texts = [comparison_text(run) for run in runs] + [transfer_text(first, second) for first, second in pairwise(runs)]
    return Report(text="\n\n".join(texts), figures=(path,))


def print_report(roots: Sequence[Path], *, console: Console, out: Path | None = None) -> None:
    """Write the report and print its tables and the figures' paths; arguments and errors as in `write_report`."""
    report = write_report(roots, out=out)
    figures = "\n".join(f"Figure: {shown_path(path)}" for path in report.figures)
    console.print(f"{report.text}\n\n{figures}", markup=False, highlight=False, soft_wrap=True)


def _figure_path(runs: Sequence[Run], out: Path | None) -> Path:
    name = "figure4" if len(runs) == 1 else "figure4_compared"
    own = runs[0].paths.figure(name)
    return own if out is None else out / own.name
