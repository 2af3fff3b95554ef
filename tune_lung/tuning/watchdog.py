"""Ends a worker in which nothing moves any more, so that its trial can be tried elsewhere."""

import faulthandler
import time
from types import TracebackType

_SECONDS_BETWEEN_FEEDS = 1.0


class Watchdog:
    """Ends this process when, inside the block, nobody feeds it for too long.

    A thread of `faulthandler`'s own does it, which needs no Python: code that hangs with the interpreter locked is ended too.
    It writes where every thread hangs into the worker's log, and leaves the rest to Ray, which notices that the worker is gone.
    """

    def __init__(self, seconds: float) -> None:
        """Take the longest time without food."""
        self._seconds = seconds
        self._fed_at = 0.0

    def feed(self) -> None:
        """Begin the time anew."""
        now = time.monotonic()
        if now - self._fed_at >= _SECONDS_BETWEEN_FEEDS:  # to begin anew starts a thread
            self._fed_at = now
            faulthandler.dump_traceback_later(self._seconds, exit=True)

    def __enter__(self) -> None:
        """Begin to watch."""
        self._fed_at = 0.0
        self.feed()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Watch no more."""
        faulthandler.cancel_dump_traceback_later()
