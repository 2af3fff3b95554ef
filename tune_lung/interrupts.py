"""Ctrl-C and the system's wish to end: the first lets a search close its ledger, the second ends it at once."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

_INTERRUPTED = (130, 143)


class Interrupted(KeyboardInterrupt):
    """The user, or the system, wants the process to end."""

    def __init__(self, signal_number: int) -> None:
        """Take the signal."""
        super().__init__(signal.Signals(signal_number).name)
        self.exit_status = 128 + signal_number


@dataclass
class Interruption:
    """What has come of a block that can be interrupted."""

    exit_status: int = 130
    """For the command, when the block was interrupted: 130 after Ctrl-C, 143 after SIGTERM, whatever others made of it."""


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turn the first SIGINT or SIGTERM inside the block into an `Interrupted`; the second ends the process without delay.

    Both stay so after the block: what is left to do when it was interrupted can be interrupted too. A signal that is ignored,
    as SIGINT by what a shell starts in the background, stays ignored.

    Yields:
        Which of them it was, once it has come.
    """
    has_come, interruption = False, Interruption()

    def interrupt(signal_number: int, _: FrameType | None) -> None:
        nonlocal has_come
        if has_come:
            os._exit(128 + signal_number)
        has_come, interruption.exit_status = True, 128 + signal_number
        sys.stderr.write("\nStopping: closing the run's tables. Once more to leave at once.\n")
        raise Interrupted(signal_number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    yield interruption


@contextmanager
def unwound_by_signals() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM inside the block into exceptions, so that children are ended and temporary files removed."""
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _interrupt}
    if threading.current_thread() is not threading.main_thread():
        own = {}  # the handlers are not for it to change
    changed = [number for number in own if signal.getsignal(number) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, own[number])
    try:
        yield
    finally:
        for number in changed:
            if signal.getsignal(number) is own[number]:
                signal.signal(number, signal.SIG_DFL)


def _interrupt(signal_number: int, _: FrameType | None) -> None:
    raise Interrupted(signal_number)


def end_process(status: int) -> NoReturn:
    """End the process as Python would, without taking every module apart: torch and Ray need another second or two for that.

    Args:
        status: The command's exit status; threads are not waited for where it was interrupted.
    """
    if status not in _INTERRUPTED:
        threading._shutdown()  # type: ignore[attr-defined] # closes pools too, whose threads would wait for ever
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
