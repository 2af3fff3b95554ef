"""Who writes a run: one driver at a time, known by a rising attempt number.

Two things say that a driver is at work. The file `.lock` is locked for as long as its process lives: the system lets it go,
however the process ends. And `.owner.json` holds a count, its heartbeat, that rises every second: that is seen from machines
that share the folder and not its locks. A count is compared with itself, so no clock plays a part.

Workers outlive a killed driver by up to a minute. Each knows the attempt that it works for, looks for a newer one before it
writes, and writes no more when there is one.
"""

import json
import math
import os
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from tune_lung.errors import InputError
from tune_lung.files import read_regular_file, write_text_whole
from tune_lung.results.layout import RunPaths

_SECONDS_BETWEEN_BEATS = 1.0
_MOST_BYTES = 1 << 16
_SECONDS_TO_WATCH = 2.5
"""A heartbeat that stands still for so long is a dead driver's."""


class SupersededError(Exception):
    """Another driver owns the run now: what works for this one must write no more."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """What `.owner.json` says."""

    attempt: int
    """Number of the ownership, from 1."""
    pid: int
    """The driver's process."""
    beat: int = 0
    """Rises every second while the driver lives."""
    has_ended: bool = False
    """Whether the driver let the run go by itself."""
    searched_seconds: float = 0.0
    """What this and all earlier attempts spent on searching."""
    is_out_of_time: bool = False
    """Whether the time budget is spent: every trial ends with the epoch it is in."""


class Ownership:
    """Keeps other drivers away from a run for as long as it is held."""

    def __init__(self, paths: RunPaths, lock: FileLock, owner: Owner) -> None:
        """Begin to beat; made by `claim`."""
        self._paths, self._lock, self._owner = paths, lock, owner
        self._searched_before = owner.searched_seconds
        self._searching_since: float | None = None
        self._budget_seconds = math.inf
        self._ended, self._writing = threading.Event(), threading.Lock()
        self._beats = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._write()
        self._beats.start()

    @classmethod
    def claim(cls, root: Path, *, at_least: int = 1) -> Self:
        """Become the one driver of a run.

        Args:
            root: The run's folder; it exists.
            at_least: The least number of the attempt, for where the file that knows the last one is lost.

        Returns:
            The ownership, its attempt one above the last.

        Raises:
            InputError: Another driver is at work, or the folder cannot be written.
        """
        paths = RunPaths(root)
        lock = FileLock(paths.lock, timeout=0, thread_local=False)
        before = read_owner(paths)
        try:
            lock.acquire()
        except Timeout:
            who = f" (process {before.pid})" if before else ""
            raise InputError(f"Another search is at work in '{root.name}'{who}. Wait for it, or stop it first.") from None
        except OSError as error:
            raise InputError(f"The run '{root.name}' cannot be written: {error.strerror}. Copy it where it can.") from error
        if before is not None and not before.has_ended and _still_beats(paths, before):
            lock.release()
            raise InputError(f"Another search is at work in '{root.name}', on another machine. Wait for it, or stop it first.")
        attempt, seconds = (max(at_least, before.attempt + 1), before.searched_seconds) if before else (at_least, 0.0)
        try:
            return cls(paths, lock, Owner(attempt=attempt, pid=os.getpid(), searched_seconds=seconds))
        except OSError as error:
            lock.release()
            raise InputError(f"The run '{root.name}' cannot be written: {error.strerror}.") from error

    @property
    def attempt(self) -> int:
        """Number of this ownership, from 1."""
        return self._owner.attempt

    def searched_seconds(self) -> float:
        """Add up what this and all earlier attempts spent on searching."""
        since = self._searching_since
        return self._searched_before + (0.0 if since is None else time.monotonic() - since)

    def start_searching(self, budget_seconds: float | None = None) -> None:
        """Begin to count the time that is spent on searching; workers are told when a budget is spent.

        Args:
            budget_seconds: For this and all earlier attempts together.
        """
        self._budget_seconds = math.inf if budget_seconds is None else budget_seconds
        self._searching_since = time.monotonic()

    def stop_searching(self) -> None:
        """Count no more."""
        self._searched_before, self._searching_since = self.searched_seconds(), None

    def release(self) -> None:
        """Let the run go."""
        self._ended.set()
        self._beats.join()
        self._owner = replace(self._owner, has_ended=True)
        self._try_to_write()
        self._lock.release()

    def __enter__(self) -> Self:
        """Return the ownership itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Let the run go."""
        self.release()

    def _beat(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_BEATS):
            is_out_of_time = self._searching_since is not None and self.searched_seconds() >= self._budget_seconds
            self._owner = replace(self._owner, beat=self._owner.beat + 1, is_out_of_time=is_out_of_time)
            self._try_to_write()

    def _try_to_write(self) -> None:
        try:
            self._write()
        except OSError:  # a full disk: the lock still holds, and who writes tables says so
            return

    def _write(self) -> None:
        with self._writing:
            owner = replace(self._owner, searched_seconds=self.searched_seconds())
            write_text_whole(self._paths.ownership, json.dumps(asdict(owner)))


def read_owner(paths: RunPaths) -> Owner | None:
    """Read who owns a run; None where nobody ever did, or the file is damaged."""
    try:
        return Owner(**json.loads(read_regular_file(paths.ownership, most_bytes=_MOST_BYTES)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def require_attempt(root: Path, attempt: int) -> None:
    """Refuse to write for an attempt that another has followed.

    Args:
        root: The run's folder.
        attempt: The caller's; 0 for one that nobody owns, such as a benchmark's.

    Raises:
        SupersededError: The run has a newer owner.
    """
    owner = read_owner(RunPaths(root)) if attempt else None
    if owner is not None and owner.attempt > attempt:
        raise SupersededError(f"Attempt {owner.attempt} has taken over from attempt {attempt}.")


def is_out_of_time(root: Path) -> bool:
    """Say whether the run's driver has announced that its time budget is spent."""
    owner = read_owner(RunPaths(root))
    return owner is not None and owner.is_out_of_time


def _still_beats(paths: RunPaths, before: Owner) -> bool:
    """Watch for a moment whether the heartbeat goes on."""
    until = time.monotonic() + _SECONDS_TO_WATCH
    while time.monotonic() < until:
        time.sleep(_SECONDS_BETWEEN_BEATS / 10)
        now = read_owner(paths)
        if now is not None and (now.attempt, now.beat) != (before.attempt, before.beat):
            return True
    return False
