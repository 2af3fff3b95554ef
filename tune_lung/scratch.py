"""Working folders that go with their process: at its end, or where it was killed at a later start.

A scratch folder `<parent>/<prefix>XXXXXXXX` has mode 0700 and holds three things: the folder `w` to work in, a lock that its
process keeps for as long as it lives, and a marker with the folder's own name, written once the lock is held. So a later
start tells a leftover from a folder in use by the lock, and from a folder of anybody else by owner, mode and marker. No more
than these three things is ever removed, and no link is followed; a folder that holds more stays.

Children may outlive a process that was killed, as Ray's workers do by up to a minute: while any process works or has a file
open in a leftover, it stays. Where the system does not show that, as macOS, it stays until nothing was written there for ten
minutes.
"""

import os
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from tune_lung.files import DamagedFileError, read_regular_file, write_text_whole

RAY_PREFIX = "tl-"
"""Of the folder for Ray's sockets: the paths of those are short, or refused by the system."""
PREFIX = "tune_lung-"
"""Of all others."""

_PREFIXES = (RAY_PREFIX, PREFIX)
_WORK, _MARKER, _LOCK = "w", ".tune_lung", ".lock"
_MARKER_BYTES = 512
_TRIES = 20
_SECONDS_BETWEEN_TRIES = 0.1
"""What still ends, such as a worker of Ray's, may write a last line into a folder that is being removed."""
_PROCESSES = Path("/proc")
"""Where Linux shows what processes use."""
_SECONDS_WITHOUT_CHANGE = 600.0
"""After which a leftover is used by nobody, where that is not shown: Ray's workers outlive their driver by a minute."""


class ScratchFolder:
    """A private folder that is removed when it is closed, let go, or its process ends; those left by killed ones go first."""

    def __init__(self, prefix: str = PREFIX, parent: Path | None = None) -> None:
        """Make one.

        Args:
            prefix: How its name begins.
            parent: Where; None takes the temporary folder.
        """
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        remove_leftovers(parent)
        root = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = FileLock(root / _LOCK, timeout=0, thread_local=False)
        try:
            lock.acquire()
            (root / _WORK).mkdir()
            write_text_whole(root / _MARKER, _marker_of(root))
        except BaseException:
            lock.release()
            shutil.rmtree(root, ignore_errors=True)
            raise
        self.path = root / _WORK
        """Where to work."""
        self._close = weakref.finalize(self, _end, root, lock, os.getpid())

    def close(self) -> None:
        """Remove it with all that was written there."""
        self._close()

    def __enter__(self) -> Self:
        """Return the folder itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Remove it."""
        self.close()


def remove_leftovers(parent: Path) -> None:
    """Remove the scratch folders in a folder whose processes were killed; what cannot be removed stays.

    Args:
        parent: The folder; it need not exist.
    """
    for root in _candidates(parent):
        lock = FileLock(root / _LOCK, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except (Timeout, OSError):
            continue
        try:
            if not os.path.lexists(root / _MARKER):  # its process has just removed it, but for the lock that we made anew
                _remove_if_empty(root)
            elif _is_ours(root) and not _is_in_use(root):
                _remove(root, tries=1)
        finally:
            lock.release()


def _candidates(parent: Path) -> list[Path]:
    try:
        with os.scandir(parent) as entries:
            paths = [Path(entry.path) for entry in entries if entry.name.startswith(_PREFIXES)]
    except OSError:
        return []
    return [path for path in paths if _is_ours(path)]


def _marker_of(root: Path) -> str:
    return f"{root.name} is a working folder of tune_lung, removed once no process uses it.\n"


def _is_ours(root: Path) -> bool:
    """Whether a folder is a scratch folder of this user, by owner, mode and marker."""
    try:
        folder, marker = root.lstat(), (root / _MARKER).lstat()
        if not (stat.S_ISDIR(folder.st_mode) and stat.S_ISREG(marker.st_mode)):
            return False
        is_private = stat.S_IMODE(folder.st_mode) & (stat.S_IRWXG | stat.S_IRWXO) == 0
        if not is_private or {folder.st_uid, marker.st_uid} != {os.geteuid()}:
            return False
        return read_regular_file(root / _MARKER, most_bytes=_MARKER_BYTES) == _marker_of(root).encode()
    except (OSError, DamagedFileError):
        return False


def _is_in_use(root: Path) -> bool:
    """Whether a process that can be seen works or has a file open where a scratch folder's process worked."""
    if not (_PROCESSES / "self").exists():
        return _has_just_changed(root / _WORK)
    inside = f"{os.path.realpath(root / _WORK)}{os.sep}"
    return any(target.startswith(inside) for process in _PROCESSES.glob("[0-9]*") for target in _used_by(process))


def _has_just_changed(work: Path) -> bool:
    """Whether something was written in a folder in the last ten minutes, or is being removed now."""
    try:
        newest = max(path.lstat().st_mtime for path in (work, *work.rglob("*")))
    except OSError:
        return os.path.lexists(work)
    return time.time() - newest < _SECONDS_WITHOUT_CHANGE


def _used_by(process: Path) -> Iterator[str]:
    """Name a process's working folder and open files; nothing of one that ends, or is another user's."""
    try:
        yield os.readlink(process / "cwd")  # noqa: PTH115 - a text is compared
        for descriptor in os.listdir(process / "fd"):  # noqa: PTH208 - thousands, of which names are enough
            yield os.readlink(process / "fd" / descriptor)  # noqa: PTH115
    except OSError:
        return


def _end(root: Path, lock: FileLock, pid: int) -> None:
    if os.getpid() == pid:  # a forked child has a copy of the folder's object, not the folder
        _remove(root, tries=_TRIES)
        lock.release()


def _remove(root: Path, *, tries: int) -> None:
    """Remove a scratch folder, lock and marker last: a kill in between leaves what is known as ours."""
    work = root / _WORK
    shutil.rmtree(work, ignore_errors=True)
    while tries > 1 and os.path.lexists(work):
        time.sleep(_SECONDS_BETWEEN_TRIES)
        shutil.rmtree(work, ignore_errors=True)
        tries -= 1
    if os.path.lexists(work):
        return
    _remove_if_empty(root)


def _remove_if_empty(root: Path) -> None:
    """Remove a scratch folder without a folder to work in."""
    try:
        for name in (_LOCK, _MARKER):
            (root / name).unlink(missing_ok=True)
        root.rmdir()
    except OSError:  # something of somebody else's lies in it
        return
