"""What a command's own process does before it imports anything else."""

import os

from tune_lung.working_folder import leave_it_off_the_path


def _open_closed_descriptors() -> None:
    """Give stdin, stdout and stderr that were closed by who started us (`>&-`) to nobody.

    Else the next file that is opened is one of them, and what any library or child prints is written into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free


def begin_command() -> None:
    """Import nothing from a stranger's folder, let nothing of theirs command the terminal, and end at once at Ctrl-C."""
    _open_closed_descriptors()
    leave_it_off_the_path()
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while a command is imported; then it looks after that itself
    from tune_lung.printable import clean_streams  # imports others, and so comes second

    clean_streams()
