"""The one error that a command turns into a line of text instead of a traceback, and how it does so."""

import errno
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, get_args

from tune_lung.interrupts import unwound_by_signals
from tune_lung.printable import complain, in_one_line

_MOST_SHOWN = 120
_FLAG = re.compile(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)(?![\w-])")


class InputError(ValueError):
    """Something the user can mend: bad input, a missing file, an impossible option.

    Commands print its text as one line after `error:` and exit with status 2. The text says what is wrong,
    what is allowed and what to do; it names no image file, for image names may be private.
    """


class NoRoomError(InputError):
    """A disk is full."""


class SupersededError(Exception):
    """Another search owns the run now: what works for this one must write no more.

    Commands print its text as one line after `error:` and exit with status 3.
    """


def is_no_room(error: BaseException) -> bool:
    """Whether an error says that a disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


_OF_THE_SYSTEM = (errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def is_of_the_system(error: BaseException) -> bool:
    """Whether an error says that the system did not give a file now, which may lie there whole all the same."""
    return isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM


def shortened(text: str, *, most: int = _MOST_SHOWN) -> str:
    """Cut a text that may be a stranger's to what a line can show, or to so many letters."""
    return text if len(text) <= most else f"{text[:most]}..."


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Phrase the nearest allowed word and the list of all of them.

    Args:
        word: What the user wrote.
        allowed: What could have been written.

    Returns:
        A text such as `Did you mean 'freeze_grid'? Allowed: cnn, freeze_grid.`; without a near word only the list.
    """
    names = sorted(allowed)
    near = get_close_matches(shortened(word), names, n=1)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    return f"{hint}Allowed: {', '.join(names)}."


def in_arguments(text: str) -> str:
    """Write the options that a text for the command line names as arguments of Python: `--max-epochs` is `max_epochs`."""
    return _FLAG.sub(lambda flag: flag[1].replace("-", "_"), text)


@contextmanager
def speaking_of_arguments() -> Iterator[None]:
    """Let what the user can mend be told in arguments of Python: every text is written once, with the command's options."""
    try:
        yield
    except InputError as error:
        error.args = (in_arguments(str(error)),)
        raise


def require(condition: bool, text: str) -> None:
    """Refuse a value.

    Raises:
        InputError: The condition does not hold; its text is `text`.
    """
    if not condition:
        raise InputError(text)


def require_choice(name: str, value: str, alias: Any) -> None:
    """Refuse a value that is none of a `Literal`'s.

    Raises:
        InputError: It is none; the text names those that are.
    """
    require(value in get_args(alias), f"{name} cannot be {shortened(repr(value))}. {did_you_mean(str(value), get_args(alias))}")


def exit_status(command: Callable[[], int]) -> int:
    """Run a command's work and turn what the user can mend into one line on stderr.

    Args:
        command: The work; it returns the exit status of its own.

    Returns:
        That status; 2 after an InputError, a full disk, or a file that the system does not let be read or written; 3 after a
        SupersededError; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    try:
        with unwound_by_signals():
            return command()
    except InputError as error:
        complain(f"error: {in_one_line(error)}")
        return 2
    except SupersededError as error:
        complain(f"error: {error}")
        return 3
    except OSError as error:
        if is_no_room(error) or error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            complain(f"error: {error.strerror}. Free some room, or give a folder that can be written.")
        elif is_of_the_system(error):
            complain(f"error: A file could not be read or written: {error.strerror}. Mend that, and try again.")
        else:
            raise
        return 2
    except KeyboardInterrupt as interrupt:
        return int(getattr(interrupt, "exit_status", 130))
