"""What a command's own process does before it imports anything else."""

from tune_lung.working_folder import leave_it_off_the_path


def begin_command() -> None:
    """Import nothing from a stranger's folder, let nothing of theirs command the terminal, and end at once at Ctrl-C."""
    leave_it_off_the_path()
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while a command is imported; then it looks after that itself
    from tune_lung.printable import clean_streams  # imports others, and so comes second

    clean_streams()
