"""Who writes a run: one driver at a time, known by a rising attempt number.

Two things say that a driver is at work. The file `.lock` is locked for as long as its process lives: the system lets it go,
however the process ends. And `.owner-<attempt>.json` holds a count, its heartbeat, that rises every second: that is seen from
machines that share the folder and not its locks. A count is compared with itself, so no clock plays a part.

The highest attempt owns the run. Its file is created where there was none, which succeeds for one of those who try at once; and
each attempt writes its own file alone, so that none takes a run back that another has taken over, whenever it was paused.

A driver that stood still for too long is taken for dead, and may go on later; workers outlive a killed driver by up to a minute.
So all of them look for a higher attempt before they write, and once more right before a finished file takes its place, and write
no more when there is one. Unfinished files bear a mark of their attempt, and whoever follows removes those of the attempts before
it reads the tables: one that was paused after its last look has nothing left to put there. A run that was removed and begun anew
is told apart by the owner's token.
"""

import errno
import json
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, SoftFileLock, Timeout
from pydantic import TypeAdapter

from tune_lung.errors import InputError, SupersededError
from tune_lung.files import DamagedFileError, plain_json, read_regular_file, rename_to_new, write_folder_to_disk, write_text_whole
from tune_lung.results.layout import TABLES, RunPaths
from tune_lung.shapes import Amount, AttemptNumber, Count, built_from_json

_SECONDS_BETWEEN_BEATS = 1.0
_SECONDS_TO_WATCH = 2.5
"""A heartbeat that stands still for so long is a dead driver's."""
_MOST_OWNER_BYTES = 64 * 1024
_TOKEN = re.compile(r"[0-9a-f]{16}")
_OWNER_NAME = re.compile(r"\.owner-([1-9]\d*)\.json")
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@dataclass(frozen=True, kw_only=True)
class Owner:
    """What `.owner-<attempt>.json` says."""

    attempt: AttemptNumber
    """Number of the ownership, from 1."""
    pid: Count
    """The driver's process."""
    token: str = ""
    """16 hexadecimal digits, drawn for each ownership: tell it from one of the same number in a folder of the same name. The
    first 8 are the mark of its unfinished files."""
    beat: Count = 0
    """Rises every second while the driver lives."""
    has_ended: bool = False
    """Whether the driver let the run go by itself."""
    searched_seconds: Amount = 0.0
    """What this and all earlier attempts spent on searching."""
    is_out_of_time: bool = False
    """Whether the time budget is spent: every trial ends with the epoch it is in."""
    unfinished_folder: str = ""
    """Name of the hidden folder in which the run is made; empty once it is in its place."""


_OWNER = TypeAdapter(Owner)


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
        _create(paths.owner(owner.attempt), owner)
        self._beats.start()

    @classmethod
    def claim(cls, root: Path, *, at_least: int = 1, is_unfinished: bool = False) -> Self:
        """Become the one driver of a run.

        Args:
            root: The run's folder; it exists.
            at_least: The least number of the attempt, for where the files that know the last one are lost.
            is_unfinished: Whether the run is made here, and is to be moved to its place.

        Returns:
            The ownership, its attempt one above the last.

        Raises:
            InputError: Another driver is at work, or the folder cannot be written, or has links in it.
        """
        paths, name = RunPaths(root), root.name
        paths.refuse_links()
        if is_unfinished:
            name = name[1:].rpartition(".")[0]
        lock = FileLock(paths.lock, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            before = read_owner(paths)
            who = f" (process {before.pid})" if before and before.pid else ""
            raise InputError(f"Another search is at work in '{name}'{who}. Wait for it, or stop it first.") from None
        except OSError as error:
            raise InputError(f"The run '{name}' cannot be written: {error.strerror}. Copy it where it can.") from error
        elsewhere = f"Another search is at work in '{name}', on another machine. Wait for it, or stop it first."
        with ExitStack() as undone:
            undone.callback(lock.release)
            before = read_owner(paths)
            if before is not None and not before.has_ended and not stand_still({root: before}):
                raise InputError(elsewhere)
            attempt, seconds = (max(at_least, before.attempt + 1), before.searched_seconds) if before else (at_least, 0.0)
            owner = Owner(
                attempt=attempt,
                pid=os.getpid(),
                token=secrets.token_hex(8),
                searched_seconds=seconds,
                unfinished_folder=root.name if is_unfinished else "",
            )
            try:
                ownership = cls(paths, lock, owner)
            except FileExistsError:  # of two who watched the same dead driver
                raise InputError(elsewhere) from None
            except OSError as error:
                raise InputError(f"The run '{name}' cannot be written: {error.strerror}.") from error
            undone.pop_all()
        with suppress(OSError):
            _remove_unfinished_files(paths, before=attempt)
        return ownership

    @property
    def attempt(self) -> int:
        """Number of this ownership, from 1."""
        return self._owner.attempt

    @property
    def token(self) -> str:
        """What tells this ownership from every other."""
        return self._owner.token

    def check(self) -> str:
        """See that the run is still owned.

        Returns:
            What its unfinished files are marked with.

        Raises:
            SupersededError: Another driver has taken it over, or it is gone.
            OSError: The folder cannot be looked at.
        """
        return require_attempt(self._paths.root, self._owner.attempt, self._owner.token)

    def move(self, place: Path) -> None:
        """Put the finished run in its place.

        Args:
            place: Its path from now on, in the same parent.

        Raises:
            FileExistsError: Something has that name.
        """
        with self._writing:  # a beat goes to the one folder or to the other
            rename_to_new(self._paths.root, place)
            self._paths = RunPaths(place)
        self._try_to_write({"unfinished_folder": ""})

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
        """Let the run go; where another has it already, nothing is written."""
        self._ended.set()
        self._beats.join()
        self._try_to_write({"has_ended": True})
        self._lock.release()
        if isinstance(self._lock, SoftFileLock) and self._paths.lock != Path(self._lock.lock_file):
            self._paths.lock.unlink(missing_ok=True)  # without flock the file is the lock, and it has moved

    def __enter__(self) -> Self:
        """Return the ownership itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Let the run go."""
        self.release()

    def _beat(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_BEATS):
            is_out_of_time = self._searching_since is not None and self.searched_seconds() >= self._budget_seconds
            if not self._try_to_write({"beat": self._owner.beat + 1, "is_out_of_time": is_out_of_time}):
                return

    def _try_to_write(self, changes: Mapping[str, Any]) -> bool:
        """Write changed values, if that can be done; whether the run is still owned."""
        with self._writing:
            self._owner = replace(self._owner, **changes, searched_seconds=self.searched_seconds())
            lasts = self._owner.has_ended  # else the next beat is a second away
            try:
                write_text_whole(self._paths.owner(self.attempt), _text_of(self._owner), lasts=lasts, check_writer=self.check)
            except SupersededError:
                return False
            except OSError:  # a full disk: the lock still holds, and who writes tables says so
                return True
        return True


def read_owner(paths: RunPaths) -> Owner | None:
    """Read who owns a run: the highest attempt, with what is known of it.

    Where its file is damaged, the name still tells the attempt, and the one before it the time spent.

    Returns:
        The owner; None where nobody ever owned it, or only a damaged file of an earlier version says who.
    """
    try:
        attempts = sorted(_attempts_of(_names_in(paths.root)))
    except OSError:
        return None
    found = _owner_in(paths.ownership)
    for attempt in attempts:
        if found is None or attempt >= found.attempt:
            seconds = found.searched_seconds if found else 0.0
            own = _owner_in(paths.owner(attempt)) or Owner(attempt=attempt, pid=0, searched_seconds=seconds)
            found = replace(own, attempt=attempt)
    return found


def require_attempt(root: Path, attempt: int, token: str = "") -> str:
    """Refuse to write for an attempt that another has followed.

    It costs the listing of one small folder, which network file systems look up anew, and with a token one small file.

    Args:
        root: The run's folder.
        attempt: The caller's; 0 for one that nobody owns, such as a benchmark's.
        token: The caller's; empty where it is not known.

    Returns:
        What its unfinished files are marked with.

    Raises:
        SupersededError: The run has a newer owner, or is gone, or is another of the same name.
        OSError: The folder cannot be looked at.
    """
    if not attempt:
        return ""
    paths, own, earlier = RunPaths(root), None, None
    try:
        names = _names_in(root)
        newest = max(_attempts_of(names), default=0)
        if paths.ownership.name in names:
            earlier = _owner_in(paths.ownership)
        if token:
            own = _parsed(read_regular_file(paths.owner(attempt), most_bytes=_MOST_OWNER_BYTES))
    except DamagedFileError:  # no file of ours, but no other owner's either
        pass
    except OSError as error:
        if error.errno not in _GONE:
            raise
        raise _superseded(root, f"was moved, removed or robbed of its {paths.owner(attempt).name} by another") from error
    newest = max(newest, earlier.attempt if earlier else 0)
    if newest > attempt:
        raise _superseded(root, f"was taken over by another search (attempt {newest})")
    if own is not None and own.token != token:
        raise _superseded(root, "was removed, and another search began one of that name")
    return _mark_of(token)


def _superseded(root: Path, what: str) -> SupersededError:
    return SupersededError(f"The run '{root.name}' {what}. This one stops; nothing more of it is written.")


def is_out_of_time(root: Path) -> bool:
    """Say whether the run's driver has announced that its time budget is spent."""
    owner = read_owner(RunPaths(root))
    return owner is not None and owner.is_out_of_time


def stand_still(owners: Mapping[Path, Owner]) -> set[Path]:
    """Watch for a moment which heartbeats do not go on.

    Args:
        owners: The owner last seen, by the run's folder; none for no waiting.

    Returns:
        The folders of those that stood still, and so are dead drivers'.
    """
    still, until = set(owners), time.monotonic() + _SECONDS_TO_WATCH
    while still and time.monotonic() < until:
        time.sleep(_SECONDS_BETWEEN_BEATS / 10)
        for root in tuple(still):
            now, before = read_owner(RunPaths(root)), owners[root]
            if now is not None and (now.attempt, now.token, now.beat) != (before.attempt, before.token, before.beat):
                still.discard(root)
    return still


def _names_in(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}


def _attempts_of(names: Iterable[str]) -> list[int]:
    """List the attempts that ever owned a run, by the names of its files."""
    return [int(found[1]) for name in names if (found := _OWNER_NAME.fullmatch(name))]


def _mark_of(token: str) -> str:
    return token[:8]


def _remove_unfinished_files(paths: RunPaths, *, before: int) -> None:
    """Remove what earlier attempts were writing, of the run's tables and its own files: it bears their marks."""
    owners = [_owner_in(paths.owner(attempt)) for attempt in _attempts_of(_names_in(paths.root)) if attempt < before]
    marks = "|".join(_mark_of(owner.token) for owner in owners if owner and _TOKEN.fullmatch(owner.token))
    if not marks:
        return
    unfinished = re.compile(rf"\..+\.(?:{marks})[0-9a-f]{{8}}")
    for folder in (paths.root, paths.figures, *map(paths.table, TABLES)):
        if folder.is_symlink() or not folder.is_dir():
            continue
        for path in folder.iterdir():
            if unfinished.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)


def _create(path: Path, owner: Owner) -> None:
    """Write an owner's file where there is none: of several who try at once, all but one meet a FileExistsError."""
    with path.open("x", encoding="utf-8") as file:
        try:
            file.write(_text_of(owner))
            file.flush()
            os.fsync(file.fileno())
            write_folder_to_disk(path.parent)
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _text_of(owner: Owner) -> str:
    return json.dumps(asdict(owner))


def _owner_in(path: Path) -> Owner | None:
    try:
        return _parsed(read_regular_file(path, most_bytes=_MOST_OWNER_BYTES))
    except (OSError, ValueError):
        return None


def _parsed(content: bytes) -> Owner | None:
    """Read what an owner's file holds; None where it is not what was written."""
    try:
        return built_from_json(_OWNER, plain_json(content, name="The owner's file"))
    except ValueError:
        return None
