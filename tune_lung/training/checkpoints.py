"""A trial's checkpoints: safetensors files that carry their own digest.

`best` holds what training changed of the network by the best epoch, frozen parameters left out, and its answers for the
validation images; `last` also the optimizer, the counters and every epoch's numbers, so that training can go on; `previous`
is the `last` before it, and `previous_best` the `best` that belongs to it where that is another. Nothing here unpickles.

`best` and `last` are written one after the other, so a kill between them leaves a `best` that is ahead of `last`, and a
damaged `last` one that is ahead of `previous`. A state to go on from names the epoch of its best; it counts only together
with a `best` of that epoch.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tune_lung.files import DamagedFileError, check_safetensors_file, whole_file

_MOST_BYTES = 2**32
"""Size of the largest checkpoint that is read: ResNet152 with Adam's two moments takes 0.7 GB."""


class DamagedCheckpointError(Exception):
    """A checkpoint file is not what was written; the text names its kind, never a path."""


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


def _anyone_may_write() -> None:
    """Let everybody write."""


@dataclass(frozen=True)
class Checkpoints:
    """The folder of one trial's checkpoints."""

    directory: Path
    """Where they lie."""
    check_writer: Callable[[], None] = field(default=_anyone_may_write, compare=False)
    """Raises when this process must not write here any more; called before each file."""

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

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Replace the best epoch's file; its state has the `epoch`."""
        self._save(self.best, self.previous_best, checkpoint)

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
        self.check_writer()
        save(path, checkpoint, previous=previous)


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


def save(path: Path, checkpoint: Checkpoint, *, previous: Path | None = None) -> None:
    """Write a checkpoint whole, with a digest of its content in the header.

    Args:
        path: The file.
        checkpoint: What it holds.
        previous: Takes what the file held before, once the new content is on the disk; None keeps nothing of it.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    state = json.dumps(dict(checkpoint.state), sort_keys=True)
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"state": state, "sha256": _digest(tensors, state)})
        if previous is not None and path.exists():
            path.replace(previous)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its digest before anything uses it.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedCheckpointError: The file was cut, changed or never was a checkpoint.
    """
    try:
        check_safetensors_file(path, most_bytes=_MOST_BYTES)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, DamagedFileError) as error:
        raise DamagedCheckpointError(f"The checkpoint '{path.stem}' cannot be read: {error}") from error
    state = metadata.get("state", "")
    if metadata.get("sha256") != _digest(tensors, state):
        raise DamagedCheckpointError(f"The checkpoint '{path.stem}' does not match its digest.")
    return Checkpoint(tensors=tensors, state=json.loads(state))


def _digest(tensors: Mapping[str, Tensor], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
