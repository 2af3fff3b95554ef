"""A run's figures and tables drawn again: the command `python -m tune_lung.report RUN...`, and the same from Python.

It reads the run's tables alone and needs neither torch nor Ray. Several runs are compared cell by cell, each with the
one before it, as with random and pretrained weights.
"""

if __name__ == "__main__":  # before anything else is imported
    from tune_lung.process import begin_command

    begin_command()

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tune_lung.errors import exit_status, speaking_of_arguments
from tune_lung.interrupts import end_process
from tune_lung.option_values import Place, ReadOption
from tune_lung.screen import Screen
from tune_lung.working_folder import away_from_it

if TYPE_CHECKING:
    from tune_lung.analysis.report import Report
    from tune_lung.results.reader import Run


def write_report(runs: "Run | str | Path | Sequence[Run | str | Path]", *, out: str | Path | None = None) -> "Report":
    """Draw the figures of one run, or of several compared, and lay out the tables, as the command does.

    Args:
        runs: A run or its folder, or several; from the second on, each is compared with the one before it.
        out: Where the figures go; None for the first run's own folder `figures`.

    Returns:
        The tables as `text`, which is also what `print` shows, and the paths of the images as `figures`.

    Raises:
        InputError: A folder is no run, there are too many, or the figures cannot be written.
    """
    from tune_lung.analysis import report
    from tune_lung.results.reader import Run

    several = [runs] if isinstance(runs, Run | str | Path) else runs
    roots = [run.path if isinstance(run, Run) else Path(run) for run in several]
    with speaking_of_arguments():
        return report.write_report(roots, out=None if out is None else Path(out))


def main(arguments: Sequence[str] | None = None, *, program: str = "python -m tune_lung.report") -> int:
    """Run the command.

    Args:
        arguments: The command line without the program; None for the process's own.
        program: What the user calls it.

    Returns:
        The exit status: 0, 2 for what the user can mend, 130 after Ctrl-C.
    """
    return exit_status(lambda: _report(_parser(program).parse_args(arguments)))


def _report(options: argparse.Namespace) -> int:
    with away_from_it():
        from tune_lung.analysis.report import print_report

    print_report(options.runs, console=Screen(), out=options.out)
    return 0


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program, description="Draw Figure 4 of a run and print its table; several runs are compared."
    )
    parser.add_argument(
        "runs", nargs="+", action=ReadOption, kind=Place, metavar="RUN", help="folder of a run, as tune_lung.search printed it"
    )
    parser.add_argument(
        "--out",
        action=ReadOption,
        kind=Place,
        metavar="DIR",
        help="where the figure goes (default: figures/ in the first run)",
    )
    return parser


if __name__ == "__main__":
    end_process(main())
