"""The frozen parts of a run's networks: what training never changes of them, kept once for all trials that share it.

A trial's `best` leaves its frozen part out and names it by digest, by which the file is called too. Whoever trains first writes
it, before the `best` that names it; two that write it at the same time write the same.

Of a frozen part that no `best` names any more, the file is removed only while nothing is trained: a trial that is about to name
it would find it gone.
"""

import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import StringConstraints
from torch import Tensor

from tune_lung.files import CheckWriter, anyone_may_write, is_plain_file
from tune_lung.training.tensor_files import (
    DamagedCheckpointError,
    digest_of,
    opened_folder,
    read_tensors,
    remove_regular_file,
    write_tensors,
)

FrozenDigest: TypeAlias = Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{64}\z")]
"""What names a frozen part: 64 hexadecimal digits."""

_OWN_FILE = re.compile(r"([0-9a-f]{64})\.safetensors|\.[0-9a-f]{64}\.safetensors\.(?:[0-9a-f]{8}){1,2}")
"""Names of frozen parts, and of what a killed worker left unfinished."""
_NAME = "The frozen part of its network"


@dataclass(frozen=True)
class FrozenParts:
    """The folder of a run's frozen parts."""

    folder: Path
    """Where they lie."""
    check_writer: CheckWriter = field(default=anyone_may_write, compare=False)
    """Raises when this process must not write here any more."""

    def keep(self, tensors: Mapping[str, Tensor]) -> str:
        """Write a frozen part unless it is there, whole.

        Args:
            tensors: The part's tensors by name, on any device.

        Returns:
            The digest that names it.
        """
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        digest = digest_of(plain)
        path = self._path(digest)
        if not (is_plain_file(path) and _is_whole(path, digest, _state_of(path))):
            write_tensors(path, plain, check_writer=self.check_writer)
        return digest

    def has(self, digest: str) -> bool:
        """Whether a frozen part is there, whole or not."""
        return is_plain_file(self._path(digest))

    def load(self, digest: str) -> dict[str, Tensor]:
        """Read a frozen part, its digest verified.

        Raises:
            DamagedCheckpointError: It is not there, or not what was written.
        """
        if not self.has(digest):
            raise DamagedCheckpointError(f"{_NAME} was not kept.")
        tensors, _, found = read_tensors(self._path(digest), name=_NAME)
        if found != digest:
            raise DamagedCheckpointError(f"{_NAME} is another network's.")
        return tensors

    def remove_all_but(self, named: Collection[str]) -> None:
        """Remove the frozen parts that nothing names, and what is unfinished; while nothing is trained.

        Only regular files with such a name are removed, no link is followed, and what is not there is no harm.

        Args:
            named: Digests of those that stay.

        Raises:
            OSError: The disk does not let go of one.
        """
        with suppress(FileNotFoundError, NotADirectoryError), opened_folder(self.folder.parent) as parent:
            with opened_folder(self.folder.name, parent) as folder:
                for name in sorted(os.listdir(folder)):  # noqa: PTH208 - of a descriptor
                    own = _OWN_FILE.fullmatch(name)
                    if own is not None and own.group(1) not in named:
                        remove_regular_file(name, folder, self.check_writer)
            with suppress(OSError):  # something lies in it
                os.rmdir(self.folder.name, dir_fd=parent)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"


def _state_of(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _is_whole(path: Path, digest: str, state: tuple[int, ...]) -> bool:  # noqa: ARG001 - read again when it has changed
    """Whether a file holds the frozen part that it is called by: read once in a process, and after a change."""
    try:
        return read_tensors(path, name=_NAME)[2] == digest
    except (DamagedCheckpointError, OSError):
        return False
