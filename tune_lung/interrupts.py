"""Ctrl-C and the system's wish to end: the first lets a search close its ledger, the second ends it at once."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from tune_lung.printable import UnfailingStream, complain

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, the system's wish, and a terminal that has gone."""


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
    """For the command, when the block was interrupted: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, whatever others
    made of it."""


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turn the first SIGINT, SIGTERM or SIGHUP inside the block into an `Interrupted`; the second ends the process without delay.

    What was before is so again after the block, unless it was interrupted: what is left to do then can be interrupted too, and
    the process is about to end. A signal that is ignored, as SIGINT by what a shell starts in the background, stays ignored.
    A thread that is not the main one leaves all signals as they are.

    Yields:
        Which of them it was, once it has come.
    """
    has_come, interruption = False, Interruption()

    def interrupt(signal_number: int, _: FrameType | None) -> None:
        nonlocal has_come
        if has_come:
            os._exit(128 + signal_number)
        has_come, interruption.exit_status = True, 128 + signal_number
        complain("\nStopping: closing the run's tables. Once more to leave at once.")
        raise Interrupted(signal_number)

    before = {number: signal.getsignal(number) for number in _ENDING} if _is_main_thread() else {}
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, interrupt)
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            if not has_come and signal.getsignal(number) is interrupt:
                signal.signal(number, handler)


@contextmanager
def unwound_by_signals() -> Iterator[None]:
    """Turn the signals that end a process into exceptions in the block, so that children are ended, temporary files removed.

    After the block every one of them does what it did before, whatever was made of it meanwhile.
    """
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _interrupt, signal.SIGHUP: _interrupt}
    before = {number: signal.getsignal(number) for number in own} if _is_main_thread() else {}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, own[number])
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # else it is none of Python's
                signal.signal(number, handler)


def _is_main_thread() -> bool:
    """Whether signals are for this thread to handle."""
    return threading.current_thread() is threading.main_thread()


def _interrupt(signal_number: int, _: FrameType | None) -> None:
    raise Interrupted(signal_number)


def end_process(status: int) -> NoReturn:
    """End the process as Python would, without taking every module apart: torch and Ray need another second or two for that.

    Args:
        status: The command's exit status; threads are not waited for where it was interrupted.
    """
    if status - 128 not in _ENDING:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            UnfailingStream(stream).flush()
    os._exit(status)
