"""Ctrl-C and the system's wish to end: the first lets a search close its ledger, the second ends it at once."""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from tune_lung.printable import UnfailingStream, complain

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, the system's wish, and a terminal that has gone."""
_SECONDS_OF_ONE_WISH = 0.5
_SECONDS_TO_UNWIND = 10.0


@dataclass
class _Wish:
    """That the process end."""

    came_at: float | None = None
    """When it came, monotonic; None before."""

    def is_said_again(self) -> bool:
        """Whether what comes now is another wish, not the same one."""
        return self.came_at is not None and time.monotonic() - self.came_at >= _SECONDS_OF_ONE_WISH


class Interrupted(KeyboardInterrupt):
    """The user, or the system, wants the process to end."""

    def __init__(self, signal_number: int, wish: _Wish | None = None) -> None:
        """Take the signal, and the wish that it says."""
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number, self.exit_status = signal_number, 128 + signal_number
        self.wish = wish or _Wish()


@dataclass
class Interruption:
    """What has come of a block that can be interrupted."""

    exit_status: int = 130
    """For the command, when the block was interrupted: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, whatever others
    made of it."""


@contextmanager
def interruptible(*, is_guest: bool = False) -> Iterator[Interruption]:
    """Turn the first SIGINT, SIGTERM or SIGHUP inside the block into an `Interrupted`; a second wish ends the process at once.

    What comes within half a second of the first is the same wish: `timeout` sends its signal twice. What was before is so again
    after the block, unless it was interrupted: what is left to do then can be interrupted too, and the process is about to end.
    A signal that is ignored, as SIGINT by what a shell starts in the background, stays ignored. A thread that is not the main
    one leaves all signals as they are.

    Args:
        is_guest: Whether the process is another program's, which goes on: there a second wish is an `Interrupted` like the
            first, and after the block everything is as before it.

    Yields:
        Which of them it was, once it has come.
    """
    wish, interruption = _Wish(), Interruption()

    def interrupt(signal_number: int, _: FrameType | None) -> None:
        if wish.is_said_again():
            if is_guest:
                raise Interrupted(signal_number, wish)
            os._exit(128 + signal_number)
        if wish.came_at is None:
            wish.came_at, interruption.exit_status = time.monotonic(), 128 + signal_number
            complain("\nStopping: closing the run's tables." + ("" if is_guest else " Once more to leave at once."))
            raise Interrupted(signal_number, wish)

    before = {number: signal.getsignal(number) for number in _ENDING} if _is_main_thread() else {}
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, interrupt)
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            if (is_guest or wish.came_at is None) and signal.getsignal(number) is interrupt:
                signal.signal(number, handler)


@contextmanager
def unwound_by_signals() -> Iterator[None]:
    """Turn the signals that end a process into exceptions in the block, so that children are ended, temporary files removed.

    Where that takes too long the process is ended without. After the block every signal does what it did before, whatever was
    made of it meanwhile.
    """
    if not _is_main_thread():
        yield
        return
    wish, limit = _Wish(), threading.Event()

    def interrupt(signal_number: int, _: FrameType | None) -> None:
        if wish.came_at is None:
            threading.Thread(target=_end_after, args=(limit, 128 + signal_number), daemon=True).start()
        if wish.came_at is None or wish.is_said_again():
            wish.came_at = time.monotonic()
            raise Interrupted(signal_number, wish)

    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, interrupt)
    try:
        with _none_is_lost():
            yield
    finally:
        limit.set()
        for number, handler in before.items():
            if handler is not None:  # else it is none of Python's
                signal.signal(number, handler)


@contextmanager
def _none_is_lost() -> Iterator[None]:
    """Say a wish again that Python has dropped: what is raised in a finaliser, or while a child is forked, goes nowhere."""
    before = sys.unraisablehook

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        error = dropped.exc_value
        if isinstance(error, Interrupted):
            error.wish.came_at = None
            threading.Timer(0.05, os.kill, (os.getpid(), error.signal_number)).start()
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _end_after(is_over: threading.Event, status: int) -> None:
    if not is_over.wait(_SECONDS_TO_UNWIND):
        complain("Stopped, without waiting any longer for what does not end.")
        os._exit(status)


def _is_main_thread() -> bool:
    """Whether signals are for this thread to handle."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def said_to_the_process() -> Iterator[None]:
    """Let a signal that has ended the block's work do to the process what it would have done without us.

    Ctrl-C is a `KeyboardInterrupt`, as everywhere in Python. SIGTERM and SIGHUP end a process that has no handler of its own.
    """
    try:
        with unwound_by_signals():
            yield
    except Interrupted as wish:
        if _is_main_thread() and signal.getsignal(wish.signal_number) is signal.SIG_DFL:
            signal.raise_signal(wish.signal_number)
        raise


def end_process(status: int) -> NoReturn:
    """End the process as Python would, without taking every module apart: torch and Ray need another second or two for that.

    Args:
        status: The command's exit status; threads are not waited for where it was interrupted.
    """
    if status - 128 not in _ENDING:
        threading._shutdown()  # type: ignore[attr-defined] # closes pools too, whose threads would wait for ever
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            UnfailingStream(stream).flush()
    os._exit(status)
