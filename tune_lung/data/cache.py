"""The cache: folders that appear whole, are built once, and make room for newer ones.

An *entry* is a folder `<root>/<kind>/<key>` whose key is made of everything that its content follows from. One process
builds it while others wait. An entry in use is held by a lock file that the system lets go when its process ends; an
entry that nobody holds is removed, least recently used first, when the cache is over its size.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import platformdirs
from filelock import FileLock, Timeout

from tune_lung.errors import InputError, NoRoomError, is_no_room
from tune_lung.files import DamagedFileError, read_json_with_digest, sha256_of_file, write_json_with_digest
from tune_lung.threads import Threads

DEFAULT_SIZE_BYTES = 20 * 10**9
_DIGESTS = ".digests.json"
"""The file of an entry that has the SHA-256 of each other one."""
_MOST_BYTES_TO_HASH = 2**29
"""Size of the largest file of a data folder whose digest is taken: a larger one is no image that is used, nor a table."""
_SETTLED_NS = 2 * 10**9
"""Age from which a file's time of change can be trusted: a younger one may change again within the clock's step."""


_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Cache:
    """A folder of entries with a bounded size."""

    root: Path
    """Where the entries lie."""
    size_bytes: int = DEFAULT_SIZE_BYTES
    """Bytes that entries not in use may take together, at least 0."""
    _held: dict[Path, FileLock] = field(default_factory=dict, repr=False)
    _temporary: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse a negative size.

        Raises:
            InputError: The size is negative.
        """
        if self.size_bytes < 0:
            raise InputError(f"--cache-size must be at least 0 bytes, not {self.size_bytes}.")

    @classmethod
    def open(cls, root: Path | None = None, size_bytes: int = DEFAULT_SIZE_BYTES) -> Self:
        """Open the cache of a run.

        Args:
            root: `--cache`; without it the user's cache folder, or where that cannot be written one in the
                temporary folder.
            size_bytes: `--cache-size`; 0 keeps nothing beyond this process, whatever the root.

        Returns:
            The cache; its folder exists.

        Raises:
            InputError: The given folder cannot be written, or the size is negative.
        """
        if size_bytes == 0:
            temporary = tempfile.TemporaryDirectory(prefix="tune_lung-", dir=None if root is None else _made(root))
            return cls(root=Path(temporary.name), size_bytes=0, _temporary=temporary)
        return cls(root=_default_root() if root is None else _made(root), size_bytes=size_bytes)

    def entry(self, kind: str, key: str, *, build: Callable[[Path], None], check: Callable[[Path], object]) -> Path:
        """Give an entry, built first if it is missing or damaged, and hold it until `close` or the end of the process.

        Args:
            kind: What it is, such as `stores`: a folder name.
            key: Hexadecimal digest of everything the entry's content follows from.
            build: Writes the entry into the empty folder it is given.
            check: Raises an InputError when the entry it is given is damaged.

        Returns:
            The entry's folder.

        Raises:
            InputError: From `build`.
            NoRoomError: The disk is full.
        """
        folder = self._held_folder(kind, key)
        with FileLock(self._lock_path(folder)):
            if not (_is_whole(folder, check) and _is_as_built(folder)):
                if folder.exists():
                    _log.warning("An entry of the cache (%s) is damaged, or of another version: it is built again.", kind)
                self._build(folder, build)
            os.utime(folder)  # the time of last use
        self.make_room()
        return folder

    def found(self, kind: str, key: str, *, check: Callable[[Path], object]) -> Path | None:
        """Give an entry that need not be built, and hold it as `entry` does; one that is being built is waited for.

        Returns:
            The entry's folder; None where it is missing or damaged.
        """
        folder = self._held_folder(kind, key)
        with FileLock(self._lock_path(folder)):
            if not (_is_whole(folder, check) and _is_as_built(folder)):
                return None
            os.utime(folder)
            return folder

    def has(self, kind: str, key: str, *, check: Callable[[Path], object]) -> bool:
        """Say whether an entry is there and whole; it is neither built nor held."""
        return _is_whole(self.root / kind / key, check)

    def digests(self, root: Path) -> "Digests":
        """Open the remembered digests of the files under a data folder."""
        name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
        return Digests(path=self.root / "digests" / f"{name}.json")

    def make_room(self) -> None:
        """Remove entries that nobody holds, least recently used first, until the rest fits the size."""
        if self._temporary is not None:
            return
        sizes = {folder: _size_of(folder) for folder in self._entries()}
        total = sum(sizes.values())
        for folder in sorted(sizes, key=_last_use):
            if total <= self.size_bytes:
                return
            if self._remove_unheld(folder):
                total -= sizes[folder]

    def close(self) -> None:
        """Let go of the entries held; a cache of size 0 removes them."""
        for lock in self._held.values():
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)
        self._held.clear()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        """Return the cache itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the cache."""
        self.close()

    def _entries(self) -> list[Path]:
        return [path for path in self.root.glob("*/*") if path.is_dir() and path.parent.name != "locks"]

    def _lock_path(self, folder: Path, suffix: str = "build") -> Path:
        path = self.root / "locks" / f"{folder.parent.name}-{folder.name.lstrip('.')}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _held_folder(self, kind: str, key: str) -> Path:
        """Name an entry's folder, from now on held, whether it is there or not."""
        folder = self.root / kind / key
        if folder not in self._held:
            lock = FileLock(self._lock_path(folder, f"use-{os.getpid()}-{secrets.token_hex(4)}"), thread_local=False)
            lock.acquire()
            self._held[folder] = lock
        return folder

    def _build(self, folder: Path, build: Callable[[Path], None]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for leftover in folder.parent.glob(f".{folder.name}.*"):  # of a builder that was killed: we hold its lock
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            temporary.mkdir(parents=True)
            build(temporary)
            write_json_with_digest(temporary / _DIGESTS, _digests_of(temporary))
            temporary.replace(folder)
        except OSError as error:
            if is_no_room(error):
                raise NoRoomError(
                    f"No room left for the cache in {self.root}. Free some, or give a folder with --cache."
                ) from error
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _remove_unheld(self, folder: Path) -> bool:
        """Remove an entry, or what a killed builder left of one, unless a process holds or builds it."""
        key = folder.name.lstrip(".").partition(".")[0]
        entry = folder.with_name(key)
        try:
            with FileLock(self._lock_path(entry), timeout=0):
                if any(_is_locked(path) for path in (self.root / "locks").glob(f"{folder.parent.name}-{key}.use-*")):
                    return False
                shutil.rmtree(folder, ignore_errors=True)
                return True
        except Timeout:
            return False


@dataclass(frozen=True, kw_only=True)
class Digests:
    """SHA-256 of files, remembered by path, size and times of change, so that a second start reads no image."""

    path: Path
    """The file that remembers them."""

    def of(self, files: Mapping[str, Path], *, progress: Callable[[int, int], None] | None = None) -> dict[str, str | None]:
        """Give the digests of files, reading only those that are new or changed.

        Args:
            files: Path by a name that stays the same from start to start.
            progress: Told how many files of how many are done.

        Returns:
            64 hexadecimal digits by name; None for one that cannot be read, is no regular file, or larger than any that is used.
        """
        remembered = self._load()
        stamps = {name: _stamp(path) for name, path in files.items()}
        known = {
            name: remembered[name][1] for name, stamp in stamps.items() if name in remembered and remembered[name][0] == stamp
        }
        new = [name for name in files if name not in known]
        now_ns = time.time_ns()
        with Threads(num_workers()) as threads:
            digests = threads.map(_digest, [files[name] for name in new])
            for done, (name, digest) in enumerate(zip(new, digests, strict=True), start=1):
                known[name] = digest
                if progress is not None:
                    progress(done, len(new))
        if new:
            # A file changed a moment ago may change again without a new time: it is read again at the next start.
            settled = {name: [stamp, known[name]] for name, stamp in stamps.items() if _is_settled(stamp, now_ns)}
            write_json_with_digest(self.path, {"files": remembered | settled})
        return {name: known[name] for name in files}

    def _load(self) -> dict[str, Any]:
        try:
            files: dict[str, Any] = read_json_with_digest(self.path)["files"]
        except (OSError, DamagedFileError, KeyError):
            return {}
        return files


def num_workers() -> int:
    """Count the CPUs this process may use, 16 at most: a disk feeds no more."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, available)


def content_key(content: Mapping[str, object] | Sequence[object]) -> str:
    """Hash JSON values into the key of an entry, 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _is_settled(stamp: list[int] | None, now_ns: int) -> bool:
    return stamp is not None and max(stamp[1:]) < now_ns - _SETTLED_NS


def _digest(path: Path) -> str | None:
    try:
        return sha256_of_file(path, most_bytes=_MOST_BYTES_TO_HASH)
    except (OSError, DamagedFileError):
        return None


def _default_root() -> Path:
    user = Path(platformdirs.user_cache_dir("tune_lung", appauthor=False))
    try:
        return _made(user)
    except InputError:
        return _own(_made(Path(tempfile.gettempdir()) / f"tune_lung-cache-{os.getuid()}"))


def _own(root: Path) -> Path:
    """Refuse a folder in the shared temporary folder that another user put there."""
    if root.stat().st_uid != os.getuid():
        raise InputError(f"The cache folder {root} belongs to another user. Give your own with --cache.")
    return root


def _made(root: Path) -> Path:
    """Make a folder and see that it can be written."""
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise InputError(f"The cache folder {root} cannot be written: {error.strerror}. Give another with --cache.") from error
    return root


def _is_whole(folder: Path, check: Callable[[Path], object]) -> bool:
    if not folder.is_dir():
        return False
    try:
        check(folder)
    except InputError:
        return False
    return True


def _digests_of(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _DIGESTS)
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}


def _is_as_built(folder: Path) -> bool:
    """Whether an entry's files are, byte for byte, those that were built; looked at once in a process, and after a change."""
    try:
        stamp = tuple((path.name, *(_stamp(path) or ())) for path in sorted(folder.rglob("*")) if path.is_file())
        return _has_its_digests(folder, stamp)
    except OSError:
        return False


@lru_cache(maxsize=256)
def _has_its_digests(folder: Path, stamp: Hashable) -> bool:  # noqa: ARG001 - the answer belongs to these sizes and times
    try:
        return read_json_with_digest(folder / _DIGESTS) == _digests_of(folder)
    except (OSError, DamagedFileError):
        return False


def _is_locked(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            path.unlink(missing_ok=True)  # of a process that has ended
            return False
    except Timeout:
        return True


def _size_of(folder: Path) -> int:
    return sum(_size_of_file(path) for path in folder.rglob("*") if path.is_file())


def _size_of_file(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed in the meantime
        return 0


def _last_use(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
