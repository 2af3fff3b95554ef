"""One name for all commands: `tune-lung search`, `tune-lung data`, and so on; `python -m tune_lung search` is the same.

In a folder of others it is `tune-lung` that imports nothing of theirs: `python -m` looks there before any code of ours can act.
"""

if __name__ == "__main__":  # before anything else is imported
    from tune_lung.process import begin_command

    begin_command()

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from tune_lung.errors import InputError, did_you_mean, exit_status
from tune_lung.interrupts import end_process
from tune_lung.version import __version__


@dataclass(frozen=True)
class Command:
    """One of the commands."""

    module: str
    """Its module; `main(arguments, program=...)` runs it and returns the exit status."""
    text: str
    """What it does, in a line."""


COMMANDS = {
    "search": Command("tune_lung.search.__main__", "search a space for the best network, or go on with a search"),
    "data": Command("tune_lung.data.__main__", "look into a folder of X-rays, prepare it, or draw synthetic ones"),
    "report": Command("tune_lung.report", "draw a run's figures and print its tables, or compare several runs"),
    "runs": Command("tune_lung.runs", "list runs, and exchange them with Optuna and Ray Tune"),
}


def main(arguments: Sequence[str] | None = None, *, program: str = "tune-lung") -> int:
    """Run one of the commands.

    Args:
        arguments: The command line without the program; None for the process's own.
        program: What the user calls it.

    Returns:
        The command's exit status; 2 where there is no such command.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = _parser(program).parse_args(given[:1]).command  # what follows is the command's own
    return exit_status(lambda: _run(name, given[1:], program))


def _run(name: str, arguments: Sequence[str], program: str) -> int:
    if name not in COMMANDS:
        raise InputError(f"There is no command '{name}'. {did_you_mean(name, COMMANDS)}")
    status: int = import_module(COMMANDS[name].module).main(arguments, program=f"{program} {name}")
    return status


def _parser(program: str) -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = [f"  {name:<{width}}  {command.text}" for name, command in COMMANDS.items()]
    steps = {
        "search": "eleven networks on synthetic X-rays, on this machine",
        "data scan DIR": "what a folder of yours holds, one folder of images a class",
        "search --data DIR": "the same search on it",
        "report runs/NAME": "a run's table and figures again",
        "COMMAND --help": "all options of a command",
    }
    examples = [f"  {program} {words:<{max(map(len, steps))}}  # {text}" for words, text in steps.items()]
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} COMMAND ...",
        description="Find the network that recognises lung disease on chest X-rays with the best recall for its cost.",
        epilog="\n".join(["commands:", *commands, "", "first steps:", *examples, "", "Not for clinical use."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tune_lung {__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of those below")
    return parser


if __name__ == "__main__":
    end_process(main(program="python -m tune_lung"))
