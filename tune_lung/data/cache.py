"""The cache: folders that appear whole, are built once, and make room for newer ones.

An *entry* is a folder `<root>/<kind>/<key>` whose key is made of everything that its content follows from. One process
builds it while others wait. An entry in use is held by a lock file that the system lets go when its process ends; an
entry that nobody holds is removed, least recently used first, when the cache is over its size.

A root is a folder of the user's, so nothing in it is removed or written over but what `tune_lung.data.cache_proof` proves
to be ours. Where something else has an entry's place, the entry lies beside it, as `<key>-2`.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Self

import platformdirs
from filelock import FileLock, Timeout

from tune_lung.data.cache_content import proven_files
from tune_lung.data.cache_proof import (
    KINDS,
    LOCKS,
    MEMORIES,
    begin,
    check_folders,
    claim,
    entries_in,
    folder_in,
    is_idle_lock,
    is_lock,
    key_of,
    listing_of,
    mark,
    memory_of,
    remove,
    remove_root,
    size_of,
    write_listing,
)
from tune_lung.data.exclusion import NotReadError
from tune_lung.errors import InputError, NoRoomError, is_no_room
from tune_lung.files import DamagedFileError, places, sha256_of_file, write_json_with_digest
from tune_lung.threads import Threads

DEFAULT_SIZE_BYTES = 20 * 10**9
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
    _remove: Callable[[], object] | None = field(default=None, repr=False)
    """Removes the root, once, where it is a temporary one."""

    def __post_init__(self) -> None:
        """Refuse a negative size.

        Raises:
            InputError: The size is negative.
        """
        _check_size(self.size_bytes)

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
            InputError: The given folder cannot be written or holds what is not a cache's, or the size is negative.
        """
        _check_size(size_bytes)
        if size_bytes == 0:
            return cls._open_temporary(root)
        with _naming(root):
            found = _default_root() if root is None else _made(root)
            is_default = root is None or found == _users_root().resolve()
            claim(found, name=f"The cache folder {found}" if root is None else f"--cache {root}", is_default=is_default)
            check_folders(found)
        return cls(root=found, size_bytes=size_bytes)

    @classmethod
    def _open_temporary(cls, parent: Path | None) -> Self:
        """Open a cache that goes with this process, and leaves of its parent no folder that was made for it."""
        with _naming(parent):
            new = [] if parent is None else [path for path in (parent, *parent.parents) if not path.exists()]
            root = Path(tempfile.mkdtemp(prefix="tune_lung-", dir=None if parent is None else _made(parent)))
            mark(root)
        cache = cls(root=root, size_bytes=0)
        cache._remove = weakref.finalize(cache, _remove_temporary, root, new)
        return cache

    def entry(self, kind: str, key: str, *, build: Callable[[Path], None], check: Callable[[Path], object]) -> Path:
        """Give an entry, built first if it is missing or damaged, and hold it until `close` or the end of the process.

        Args:
            kind: What it is, one of `KINDS`: a folder name.
            key: Hexadecimal digest of everything the entry's content follows from.
            build: Writes the entry into the empty folder it is given.
            check: Raises an InputError when the entry it is given is damaged.

        Returns:
            The entry's folder.

        Raises:
            InputError: From `build`; or something else has the name of a folder or lock that is needed.
            NoRoomError: The disk is full.
        """
        self._hold(kind, key)
        with self._lock(kind, key):
            folder = self._whole(kind, key, check) or self._build(kind, key, build)
            os.utime(folder)  # the time of last use
        self.make_room()
        return folder

    def found(self, kind: str, key: str, *, check: Callable[[Path], object]) -> Path | None:
        """Give an entry that need not be built, and hold it as `entry` does; one that is being built is waited for.

        Returns:
            The entry's folder; None where it is missing or damaged.
        """
        self._hold(kind, key)
        with self._lock(kind, key):
            folder = self._whole(kind, key, check)
            if folder is not None:
                os.utime(folder)
            return folder

    def has(self, kind: str, key: str, *, check: Callable[[Path], object]) -> bool:
        """Say whether an entry is there and whole; it is neither built nor held."""
        return any(listing_of(folder) is not None and _passes(folder, check) for folder in self._taken_places(kind, key))

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """Give a folder for as long as the block runs; what a killed process leaves of it goes as an entry would."""
        key = secrets.token_hex(16)
        self._hold("probes", key)
        unfinished = self._unfinished("probes", key)
        try:
            yield begin(unfinished)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)  # made here under a name that nobody could know

    def digests(self, root: Path) -> "Digests":
        """Open the remembered digests of the files under a data folder."""
        name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
        return Digests(path=self.root / MEMORIES / f"{name}.json")

    def make_room(self) -> None:
        """Remove entries that nobody holds, least recently used first, until the rest fits the size.

        What others put here neither counts nor goes, and an entry that holds such a thing stays with it.
        """
        if self._remove is not None:
            return
        sizes = {folder: size for folder in entries_in(self.root) if (size := size_of(folder)) is not None}
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
            with suppress(OSError):
                Path(lock.lock_file).unlink()
        self._held.clear()
        if self._remove is not None:
            self._remove()

    def __enter__(self) -> Self:
        """Return the cache itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the cache."""
        self.close()

    def _place(self, kind: str, key: str) -> Path:
        folder = self.root / kind / key
        if kind not in KINDS or key_of(folder) != key:
            raise ValueError(f"The cache has no entry {kind}/{key}: give one of {', '.join(KINDS)}, and a hexadecimal key.")
        return folder

    def _taken_places(self, kind: str, key: str) -> Iterator[Path]:
        return takewhile(os.path.lexists, places(self._place(kind, key)))

    def _lock(self, kind: str, key: str, suffix: str = "build") -> FileLock:
        path = folder_in(self.root, LOCKS) / f"{kind}-{key}.{suffix}"
        if os.path.lexists(path) and not is_lock(path):
            raise InputError(f"The cache needs the name {path}, but it is no plain file. Move it away, or give another --cache.")
        return FileLock(path, thread_local=False)

    def _hold(self, kind: str, key: str) -> None:
        """Keep an entry, whether it is there or not, from being removed."""
        place = self._place(kind, key)
        folder_in(self.root, kind)
        if place not in self._held:
            lock = self._lock(kind, key, f"use-{os.getpid()}-{secrets.token_hex(4)}")
            lock.acquire()
            self._held[place] = lock

    def _whole(self, kind: str, key: str, check: Callable[[Path], object]) -> Path | None:
        return next((folder for folder in self._taken_places(kind, key) if _is_whole(folder, check)), None)

    def _build(self, kind: str, key: str, build: Callable[[Path], None]) -> Path:
        for path in entries_in(self.root):
            if path.parent.name == kind and path.name.startswith(f".{key}."):  # of a builder that was killed: we hold its lock
                remove(path)
        folder = self._free_place(kind, key)
        unfinished = self._unfinished(kind, key)
        try:
            content = begin(unfinished)
            build(content)
            write_listing(content, of=folder)
            content.replace(folder)
        except OSError as error:
            if is_no_room(error):
                raise NoRoomError(
                    f"No room left for the cache in {self.root}. Free some, or give a folder with --cache."
                ) from error
            raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)  # made here under a name that nobody could know
        return folder

    def _unfinished(self, kind: str, key: str) -> Path:
        return folder_in(self.root, kind) / f".{key}.{secrets.token_hex(4)}"

    def _free_place(self, kind: str, key: str) -> Path:
        """Clear an entry's place of a damaged one; where not all of that is ours, the next place serves."""
        for folder in places(self._place(kind, key)):
            if not os.path.lexists(folder):
                return folder
            damaged = f"An entry of the cache ({kind}) is damaged, or of another version"
            if remove(folder):
                _log.warning("%s: it is built again.", damaged)
                return folder
            place = f"{kind}/{folder.name}"
            _log.warning("%s, and not all in its place %s is tune_lung's: that stays, and it is built beside.", damaged, place)
        raise AssertionError("There are endless places.")

    def _remove_unheld(self, folder: Path) -> bool:
        """Remove an entry, or what a killed builder left of one, unless a process holds or builds it."""
        kind, key = folder.parent.name, key_of(folder)
        try:
            with self._lock(kind, str(key)).acquire(timeout=0):
                in_use = (self.root / LOCKS).glob(f"{kind}-{key}.use-*")
                return not any(_is_locked(path) for path in in_use) and remove(folder)
        except (OSError, InputError):  # a Timeout is an OSError
            return False


@dataclass(frozen=True, kw_only=True)
class Digests:
    """SHA-256 of files, remembered by path, size and times of change, so that a second start reads no image."""

    path: Path
    """The file that remembers them, as long as its place is not taken."""

    def of(self, files: Mapping[str, Path], *, progress: Callable[[int, int], None] | None = None) -> dict[str, str | None]:
        """Give the digests of files, reading only those that are new or changed.

        Args:
            files: Path by a name that stays the same from start to start.
            progress: Told how many files of how many are done.

        Returns:
            64 hexadecimal digits by name; None for one that is no regular file, or larger than any that is used.

        Raises:
            NotReadError: One cannot be read.
        """
        path, remembered = self._remembered()
        stamps = {name: _stamp(path) for name, path in files.items()}
        known = {  # None was once remembered of what could not be read, too
            name: remembered[name][1]
            for name, stamp in stamps.items()
            if name in remembered and remembered[name][0] == stamp and remembered[name][1] is not None
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
            unsettled = {name for name in new if _stamp(files[name]) != stamps[name]}
            settled = {
                name: [stamp, known[name]]
                for name, stamp in stamps.items()
                if _is_settled(stamp, now_ns) and name not in unsettled
            }
            folder_in(path.parent.parent, path.parent.name)
            write_json_with_digest(path, {"files": remembered | settled}, lasts=False)
        return {name: known[name] for name in files}

    def forget(self) -> None:
        """Read every file again at the next start: one was not what was remembered of it."""
        path, remembered = self._remembered()
        if remembered:
            write_json_with_digest(path, {"files": {}}, lasts=False)

    def _remembered(self) -> tuple[Path, dict[str, Any]]:
        """Read what is remembered, and from where; the next place serves where something else than ours has this one."""
        for path in places(self.path):
            if not os.path.lexists(path):
                if path != self.path:
                    _log.warning(
                        "%s is damaged, or not tune_lung's: it stays, and %s takes its place.", self.path.name, path.name
                    )
                return path, {}
            if (files := memory_of(path)) is not None:
                return path, files
        raise AssertionError("There are endless places.")


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
    except (DamagedFileError, IsADirectoryError):
        return None
    except OSError as error:
        raise NotReadError(error.strerror or str(error)) from error


def _check_size(size_bytes: int) -> None:
    if size_bytes < 0:
        raise InputError(f"--cache-size must be at least 0 bytes, not {size_bytes}.")


def _users_root() -> Path:
    return Path(platformdirs.user_cache_dir("tune_lung", appauthor=False))


def _default_root() -> Path:
    try:
        return _made(_users_root())
    except OSError:
        return _own(Path(tempfile.gettempdir()).resolve() / f"tune_lung-cache-{os.getuid()}")


def _own(root: Path) -> Path:
    """Make a folder in the shared temporary folder, and refuse one that another user put there, or can write to."""
    with suppress(FileExistsError):
        root.mkdir(mode=0o700)
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise InputError(f"The cache folder {root} is not this user's alone. Give your own with --cache.")
    return _made(root)


@contextmanager
def _naming(root: Path | None) -> Iterator[None]:
    """Say of a root that cannot be used which one it is."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # a link to itself is a RuntimeError
        reason = error.strerror if isinstance(error, OSError) else error
        name = "The cache folder" if root is None else f"The cache folder {root}"
        raise InputError(f"{name} cannot be written: {reason}. Give another with --cache.") from error


def _made(root: Path) -> Path:
    """Make a folder, see that it can be written, and return its path without links."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryFile(dir=root):
        pass
    return root.resolve()


def _remove_temporary(root: Path, new: Sequence[Path]) -> None:
    """Remove a temporary cache, and the folders that were made for it, as far as they are ours."""
    if not remove_root(root):
        _log.warning("%s holds what tune_lung did not make: it stays.", root)
    with suppress(OSError):
        for folder in new:
            folder.rmdir()


def _passes(folder: Path, check: Callable[[Path], object]) -> bool:
    try:
        check(folder)
    except InputError:
        return False
    return True


def _is_whole(folder: Path, check: Callable[[Path], object]) -> bool:
    """Whether an entry's listed files are there, byte for byte as they were built; what else lies there is no matter."""
    return listing_of(folder) is not None and _passes(folder, check) and proven_files(folder) is not None


def _is_locked(path: Path) -> bool:
    """Whether a process holds a lock file of ours; one of a process that has ended is removed."""
    if not is_lock(path):
        return False
    try:
        with FileLock(path, timeout=0):
            if is_idle_lock(path):
                path.unlink()
            return False
    except Timeout:
        return True


def _last_use(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
