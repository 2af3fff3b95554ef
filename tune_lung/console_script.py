"""The console script `tune-lung`."""

from typing import NoReturn

from tune_lung.process import begin_command


def run() -> NoReturn:
    """Run the command that the user names, and end the process with its exit status."""
    begin_command()
    from tune_lung.__main__ import main
    from tune_lung.interrupts import end_process

    end_process(main())
