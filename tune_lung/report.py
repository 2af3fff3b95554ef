"""The command that draws a run's figures and tables again: `python -m tune_lung.report RUN...`.

It reads the run's tables alone and needs neither torch nor Ray. Several runs are compared cell by cell, each with the
one before it, as with random and pretrained weights.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tune_lung.errors import exit_status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line without the program; None for the process's own.

    Returns:
        The exit status: 0, 2 for what the user can mend, 130 after Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    return exit_status(lambda: _report(options))


def _report(options: argparse.Namespace) -> int:
    from tune_lung.analysis.report import print_report

    print_report(options.runs, console=Console(), out=options.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tune_lung.report", description="Draw Figure 4 of a run and print its table; several runs are compared."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, as tune_lung.search printed it")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the figure goes (default: figures/ in the first run)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
