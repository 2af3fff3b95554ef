"""What a command's own process does before it imports anything else."""

from tune_lung.working_folder import leave_it_off_the_path


def begin_command() -> None:
    """Import nothing from a stranger's folder, and let nothing of theirs command the terminal."""
    leave_it_off_the_path()
    from tune_lung.printable import clean_streams  # imports others, and so comes second

    clean_streams()
