"""Search for the network that finds lung disease on chest X-rays with the best recall for its cost.

python -m tune_lung.search --space freeze_grid                # synthetic X-rays, this machine
python -m tune_lung.search --space freeze_grid --data DIR     # your images, one folder per class
"""

if __name__ == "__main__":  # before anything else is imported
    from tune_lung.process import begin_command

    begin_command()

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from tune_lung.errors import exit_status
from tune_lung.files import shown_path
from tune_lung.interrupts import end_process
from tune_lung.screen import Screen, say
from tune_lung.search.command_line import read_command_line
from tune_lung.search.interpretation import check_trackers
from tune_lung.search.options import SearchOptions
from tune_lung.space_files import load_space, shipped_space_files, space_question
from tune_lung.working_folder import away_from_it

if TYPE_CHECKING:
    from tune_lung.results.ledger import Ledger
    from tune_lung.search.request import SearchRequest


def main(arguments: Sequence[str] | None = None, *, program: str = "python -m tune_lung.search") -> int:
    """Run the command.

    Args:
        arguments: The command line without the program's name; None takes the process's own.
        program: What the user calls it.

    Returns:
        0 when done; 1 when every trial failed, or the first ones with a bug; 2 for what the user can mend; 3 when another search
        has taken the run over; 130 after Ctrl-C; 143 when the system ended it; 129 when its terminal
        went away.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _run(given, Screen(), program))


def _run(arguments: list[str], console: Console, program: str) -> int:
    description = __doc__.replace("python -m tune_lung.search", program)
    given = read_command_line(arguments, description, program=program)
    if given.options.list_spaces:
        return _list_spaces(console)
    from tune_lung.search.request import requested

    with requested(given) as request:
        return _search(request, console)


def _list_spaces(console: Console) -> int:
    files = shipped_space_files()
    width = max(map(len, files))
    for name, path in files.items():
        count = len(load_space(name).cells())
        say(console, f"{name:<{width}}  {count:>3} cells  {space_question(path)}")
    return 0


def _search(request: "SearchRequest", console: Console) -> int:
    """Search, and report what was found."""
    check_trackers(request.options)
    # This loads torch and Ray: --help, --list-spaces and a wrong option answer before.
    with away_from_it():
        from tune_lung.search.steps import search

    return search(request, console, _reporter(request.options, console)).status


def _reporter(options: SearchOptions, console: Console) -> "Callable[[Ledger], None]":
    def report(ledger: "Ledger") -> None:
        root = ledger.paths.root
        if not options.no_report:
            with away_from_it():
                from tune_lung.analysis.report import print_report

            print_report([root], console=console, check_writer=ledger.check_writer)
        say(console, f"Run: {shown_path(root)}")

    return report


if __name__ == "__main__":
    end_process(main())
