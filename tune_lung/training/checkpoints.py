"""A trial's checkpoints: safetensors files that carry their own digest.

`best` holds what training changed of the network by the best epoch, its answers for the validation images, and the digest of
the frozen part that it leaves out (`tune_lung.training.frozen_parts`); `last` also the optimizer, the counters and every epoch's
numbers, so that training can go on; `previous` is the `last` before it, and `previous_best` the `best` that belongs to it where
that is another. Nothing here unpickles.

Of a trial that goes on no more, `best` alone is needed, and that only where it leads: `remove` takes the rest away.

`best` and `last` are written one after the other, so a kill between them leaves a `best` that is ahead of `last`, and a
damaged `last` one that is ahead of `previous`. A state to go on from names the epoch of its best; it counts only together
with a `best` of that epoch.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired

from pydantic import TypeAdapter
from torch import Tensor
from typing_extensions import TypedDict

from tune_lung.files import CheckWriter, anyone_may_write, is_plain_file, plain_json
from tune_lung.shapes import Count, ListOf, Number, require_shape
from tune_lung.training.frozen_parts import FrozenDigest, FrozenParts
from tune_lung.training.tensor_files import (
    DamagedCheckpointError,
    opened_folder,
    read_tensors,
    read_text,
    remove_regular_file,
    write_tensors,
)

FROZEN = "frozen"
"""In the state of a `best`: the digest of the frozen part that it leaves out; null where nothing is frozen."""

_STATE_OR_UNFINISHED = re.compile(r"(last|previous|previous_best)\.safetensors|\.(best|last)\.safetensors\.([0-9a-f]{8}){1,2}")
"""Names of what training goes on from, and of what a killed worker left unfinished."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors by name, and the plain values that belong to them."""

    tensors: Mapping[str, Tensor]
    """Network and optimizer state, on the CPU when loaded."""
    state: Mapping[str, Any]
    """Epoch, best score and the like, in JSON values."""

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose name starts with `prefix.`, without it."""
        return {name.removeprefix(f"{prefix}."): tensor for name, tensor in self.tensors.items() if name.startswith(f"{prefix}.")}


@dataclass(frozen=True)
class Checkpoints:
    """The folder of one trial's checkpoints."""

    directory: Path
    """Where they lie."""
    check_writer: CheckWriter = field(default=anyone_may_write, compare=False)
    """Raises when this process must not write here any more; called before each file, and before it takes its place."""
    shared: Path | None = None
    """Where the frozen parts lie that a run's trials share; None keeps them in a folder of this one."""

    @property
    def frozen_parts(self) -> FrozenParts:
        """What networks leave out."""
        return FrozenParts(self.shared or self.directory / FROZEN, self.check_writer)

    @property
    def best(self) -> Path:
        """The network of the best epoch."""
        return self.directory / "best.safetensors"

    @property
    def previous_best(self) -> Path:
        """The best one before it."""
        return self.directory / "previous_best.safetensors"

    @property
    def last(self) -> Path:
        """The newest state that training can go on from."""
        return self.directory / "last.safetensors"

    @property
    def previous(self) -> Path:
        """The one before `last`."""
        return self.directory / "previous.safetensors"

    @property
    def has_state(self) -> bool:
        """Whether there is a state that training may go on from, whole or not."""
        return self.last.exists() or self.previous.exists()

    def has_best(self, *, leaves_out: bool) -> bool:
        """Say by its header alone whether there is a network, and what it leaves out; whole or not.

        Args:
            leaves_out: Whether a part of it is frozen.
        """
        try:
            digest = _state_of(read_text(self.best), "The checkpoint 'best'").get(FROZEN)
        except (DamagedCheckpointError, OSError):
            return False
        return not leaves_out if digest is None else self.frozen_parts.has(digest)

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Replace the best epoch's file; its state has the `epoch`, and names its frozen part."""
        self._save(self.best, self.previous_best, checkpoint)

    def name_frozen_part(self, best: Checkpoint, digest: str | None) -> None:
        """Let the best epoch's file name its frozen part where it does not, as those of earlier versions."""
        if best.state.get(FROZEN, "") != digest:
            save(self.best, replace(best, state={**best.state, FROZEN: digest}), check_writer=self.check_writer)

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Make `last` the previous one and write a new `last`; its state has `epoch` and `best_epoch`."""
        self._save(self.last, self.previous, checkpoint)

    def newest(self) -> "Resumable":
        """Load the newest good state to go on from, and the best that belongs to it.

        A damaged or missing `last` falls back to `previous`; the best is put back where another took its place since.
        """
        damaged: list[str] = []
        for path in (self.last, self.previous):
            state = _load_if_good(path, damaged)
            best = None if state is None else self._best_of(int(state.state["best_epoch"]), damaged)
            if state is not None and best is not None:
                return Resumable(state=state, best=best, damaged=tuple(dict.fromkeys(damaged)))
        return Resumable(damaged=tuple(dict.fromkeys(damaged)))

    def remove(self, *, keep_best: bool) -> None:
        """Remove the checkpoints of a trial that goes on no more, and the folder if nothing else lies in it.

        Only regular files with a checkpoint's name are removed, no link is followed, and what is not there is no harm.

        Args:
            keep_best: Whether the network of the best epoch stays.

        Raises:
            OSError: The disk does not let go of one.
        """
        with suppress(FileNotFoundError, NotADirectoryError), opened_folder(self.directory.parent) as parent:
            with opened_folder(self.directory.name, parent) as folder:
                names = filter(_STATE_OR_UNFINISHED.fullmatch, sorted(os.listdir(folder)))  # noqa: PTH208 - of a descriptor
                for name in (*names, *(() if keep_best else (self.best.name,))):
                    self._remove_file(name, folder)
            with suppress(OSError):  # something lies in it
                os.rmdir(self.directory.name, dir_fd=parent)

    def _remove_file(self, name: str, folder: int) -> None:
        remove_regular_file(name, folder, self.check_writer)

    def _best_of(self, epoch: int, damaged: list[str]) -> Checkpoint | None:
        for path in (self.best, self.previous_best):
            found = _load_if_good(path, damaged)
            if found is not None and found.state["epoch"] == epoch:
                if path == self.previous_best:
                    self.check_writer()
                    path.replace(self.best)
                return found
        return None

    def _save(self, path: Path, previous: Path, checkpoint: Checkpoint) -> None:
        save(path, checkpoint, previous=previous, check_writer=self.check_writer)


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """What a trial can go on from."""

    state: Checkpoint | None = None
    """Network, optimizer, counters; None where training begins anew."""
    best: Checkpoint | None = None
    """The best epoch's network by then; None with the state."""
    damaged: tuple[str, ...] = ()
    """Checkpoints that were passed over, such as `last`."""


def _load_if_good(path: Path, damaged: list[str]) -> Checkpoint | None:
    try:
        return load(path)
    except FileNotFoundError:
        return None
    except DamagedCheckpointError:
        damaged.append(path.stem)
        return None


def save(
    path: Path,
    checkpoint: Checkpoint,
    *,
    previous: Path | None = None,
    check_writer: CheckWriter = anyone_may_write,
) -> None:
    """Write a checkpoint whole, with a digest of its content in the header.

    Args:
        path: The file.
        checkpoint: What it holds.
        previous: Takes what the file held before, once the new content is on the disk; None keeps nothing of it.
        check_writer: Raises when this process must not write here any more.
    """
    state = json.dumps(dict(checkpoint.state), sort_keys=True)
    write_tensors(path, checkpoint.tensors, state, previous=previous, check_writer=check_writer)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its digest before anything uses it.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedCheckpointError: The file was cut, changed or never was a checkpoint.
    """
    name = f"The checkpoint '{path.stem}'"
    tensors, state, _ = read_tensors(path, name=name)
    return Checkpoint(tensors=tensors, state=_state_of(state, name))


def frozen_parts_named(checkpoints: Path) -> set[str]:
    """Collect the digests of the frozen parts that the networks kept in a run's folder of checkpoints name.

    Args:
        checkpoints: That folder, with a folder for each trial; links in it are not followed. It need not be there.

    Raises:
        OSError: The disk does not give one of the files, so that it may name another.
    """
    named: set[str] = set()
    folders = checkpoints.iterdir() if checkpoints.is_dir() else ()
    for trial in (Checkpoints(folder) for folder in folders if not folder.is_symlink()):
        for path in filter(is_plain_file, (trial.best, trial.previous_best)):
            with suppress(DamagedCheckpointError):  # one that is damaged answers no more, and names nothing
                named.add(_state_of(read_text(path), "A checkpoint").get(FROZEN) or "")
    return named


class _StateShape(TypedDict):
    """What every checkpoint's state has; one to go on from has more."""

    epoch: Count
    best_epoch: NotRequired[Count]
    best_score: NotRequired[Number]
    history: NotRequired[ListOf[dict[str, Any]]]
    frozen: NotRequired[FrozenDigest | None]


_STATE = TypeAdapter(_StateShape)


def _state_of(text: str, name: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = plain_json(text, name="its state")
        require_shape(_STATE, content)
    except ValueError as error:
        raise DamagedCheckpointError(f"{name} holds no state of training: {error}") from error
    return content
