"""Ctrl-C and the system's wish to end: the first lets a search close its ledger, the second ends it at once."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The user, or the system, wants the process to end."""

    def __init__(self, signal_number: int) -> None:
        """Take the signal."""
        super().__init__(signal.Signals(signal_number).name)
        self.exit_status = 128 + signal_number


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM inside the block into an `Interrupted`; the second ends the process without delay.

    Both stay so after the block: what is left to do when it was interrupted can be interrupted too. A signal that is ignored,
    as SIGINT by what a shell starts in the background, stays ignored.
    """
    has_come = False

    def interrupt(signal_number: int, _: FrameType | None) -> None:
        nonlocal has_come
        if has_come:
            os._exit(128 + signal_number)
        has_come = True
        sys.stderr.write("\nStopping: closing the run's tables. Once more to leave at once.\n")
        raise Interrupted(signal_number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    yield
