"""The console script `tune-lung`."""

from tune_lung.process import begin_command


def run() -> int:
    """Run the command that the user names; return its exit status."""
    begin_command()
    from tune_lung.__main__ import main
    from tune_lung.interrupts import end_if_interrupted

    return end_if_interrupted(main())
