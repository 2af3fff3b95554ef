"""What would be left of a folder if the power went now: what was written to the disk, and no more."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass
class Disk:
    """Takes note of what is written to the disk: the content of a file, and the names in a folder, each by its own call."""

    root: Path
    """What lies above it is on the disk."""
    contents: set[int] = field(default_factory=set)
    """Files whose content is there, by their number in the file system."""
    names: dict[int, dict[str, int]] = field(default_factory=dict)
    """What lies in a folder, by the numbers of the folder and of what is in it."""
    num_folders_written: int = 0
    """Calls for folders."""

    @classmethod
    def watched(cls, root: Path, monkeypatch: pytest.MonkeyPatch) -> "Disk":
        """Watch this process."""
        disk = cls(root)
        real = os.fsync

        def fsync(descriptor: int) -> None:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                disk.names[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(descriptor)}
                disk.num_folders_written += 1
            else:
                disk.contents.add(status.st_ino)
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        return disk

    def lost(self) -> list[str]:
        """Name what is in the folder now and would not be there after a power cut, or not with its content."""
        paths = sorted(self.root.rglob("*"))
        return [str(path.relative_to(self.root)) for path in paths if not self._is_there(path)]

    def _is_there(self, path: Path) -> bool:
        number = path.stat().st_ino
        is_named = self.names.get(path.parent.stat().st_ino, {}).get(path.name) == number
        return is_named and (path.is_dir() or number in self.contents)
