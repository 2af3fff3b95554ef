"""Whether the files of an entry are, byte for byte, what was built: each is read once in a process, and again after a change.

What is written to a mapped file shows in the memory of whoever has opened it before. Who reads an entry therefore asks once
more when it has read: as long as a file's place on the disk, size and times are those of when its digest was taken, all that was
read of it was right.
"""

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tune_lung.data.cache_proof import listed_files, listing_of
from tune_lung.errors import is_of_the_system
from tune_lung.files import DamagedFileError, sha256_of_file

Stamp: TypeAlias = tuple[int, int, int, int]
"""Number of a file on its disk, size in bytes, and when content and status changed last, in ns."""

_CLOCK_STEP_NS = 10**8
"""Age from which a file's times can be trusted: a younger one may change again within the clock's step."""
_COARSE_CLOCK_STEP_NS = 2 * 10**9
"""The same on a disk that counts whole seconds, or two."""

_digests: dict[Path, tuple[Stamp, str]] = {}
"""SHA-256 of files that this process has read, with their stamps."""


@dataclass(frozen=True, kw_only=True)
class ProvenFiles:
    """The files of an entry, proven to be what was built."""

    folder: Path
    """The entry."""
    stamps: Mapping[str, Stamp]
    """What each file looked like before its digest was taken, by its path in the entry."""
    listing: Mapping[str, str]
    """The SHA-256 of each."""

    def are_unchanged(self, names: Collection[str] | None = None) -> bool:
        """Whether files are still those that were proven, so that all that was read of them was right.

        Args:
            names: Some of the files; None for all.

        Raises:
            OSError: The system does not give one of them now; another process, or node, may read it.
        """
        chosen = {name: stamp for name, stamp in self.stamps.items() if names is None or name in names}
        try:
            return all(
                _stamp_of((self.folder / name).stat(follow_symlinks=False)) == stamp
                and _sha256_of(self.folder / name, stamp) == self.listing[name]
                for name, stamp in chosen.items()
            )
        except (OSError, DamagedFileError) as error:
            if is_of_the_system(error):
                raise
            return False


def proven_files(folder: Path) -> ProvenFiles | None:
    """Compare the files that an entry's listing names with their digests; what else lies there is no matter.

    Returns:
        The files; None where one is not there or not what was built, or nothing says what was built.

    Raises:
        OSError: The system does not give one of them now.
    """
    listing = listing_of(folder)
    if listing is None:
        return None
    try:
        stamps = {name: _stamp_of(status) for name, status in listed_files(folder, listing).items()}
    except OSError as error:
        if is_of_the_system(error):
            raise
        return None
    found = ProvenFiles(folder=folder, stamps=stamps, listing=listing)
    return found if stamps.keys() == listing.keys() and found.are_unchanged() else None


def _sha256_of(path: Path, stamp: Stamp) -> str:
    """Give a file's digest, remembered from when it had the same stamp."""
    known = _digests.get(path)
    if known is not None and known[0] == stamp:
        return known[1]
    now_ns = time.time_ns()
    sha256 = sha256_of_file(path)
    if _is_settled(stamp, now_ns):
        _digests[path] = stamp, sha256
    return sha256


def _is_settled(stamp: Stamp, now_ns: int) -> bool:
    content_changed, status_changed = stamp[2:]
    counts_seconds = content_changed % 10**9 == 0 and status_changed % 10**9 == 0
    settled = now_ns - (_COARSE_CLOCK_STEP_NS if counts_seconds else _CLOCK_STEP_NS)
    is_made_up = content_changed > now_ns  # the one time that anybody may set
    return status_changed < settled and (content_changed < settled or is_made_up)


def _stamp_of(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
