"""A trial's checkpoints: safetensors files that carry their own digest.

`best` holds what training changed of the network by the best epoch, frozen parameters left out; `last` also the optimizer
and the counters, so that training can go on; `previous` is the `last` before it. Nothing here unpickles.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tune_lung.files import whole_file


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


@dataclass(frozen=True)
class Checkpoints:
    """The folder of one trial's checkpoints."""

    directory: Path

    @property
    def best(self) -> Path:
        """The network of the best epoch."""
        return self.directory / "best.safetensors"

    @property
    def last(self) -> Path:
        """The newest state that training can go on from."""
        return self.directory / "last.safetensors"

    @property
    def previous(self) -> Path:
        """The one before `last`."""
        return self.directory / "previous.safetensors"

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Replace the best epoch's file."""
        save(self.best, checkpoint)

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Make `last` the previous one and write a new `last`."""
        if self.last.exists():
            self.last.replace(self.previous)
        save(self.last, checkpoint)

    def newest(self) -> Checkpoint | None:
        """Load the newest good state to go on from; a damaged or missing `last` falls back to `previous`."""
        for path in (self.last, self.previous):
            try:
                return load(path)
            except (FileNotFoundError, DamagedCheckpointError):
                continue
        return None


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint whole, with a digest of its content in the header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    state = json.dumps(dict(checkpoint.state), sort_keys=True)
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"state": state, "sha256": _digest(tensors, state)})


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its digest before anything uses it.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedCheckpointError: The file was cut, changed or never was a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
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
