"""The command that draws a run's figures and tables again: `python -m tune_lung.report RUN...`.

It reads the run's tables alone and needs neither torch nor Ray. Several runs are compared cell by cell, each with the
one before it, as with random and pretrained weights.
"""

if __name__ == "__main__":  # before anything else is imported
    from tune_lung.process import begin_command

    begin_command()

import argparse
from collections.abc import Sequence

from tune_lung.errors import exit_status
from tune_lung.interrupts import end_process
from tune_lung.option_values import Place, ReadOption
from tune_lung.screen import Screen
from tune_lung.working_folder import away_from_it


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
