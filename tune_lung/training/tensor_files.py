"""Safetensors files of tensors and a text, with a digest of both in the header; and how they are removed. Nothing unpickles."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tune_lung.files import CheckWriter, anyone_may_write, check_safetensors_file, whole_file

_MOST_BYTES = 2**32
"""Size of the largest file that is read: ResNet152 with Adam's two moments takes 0.7 GB."""
_TEXT, _DIGEST = "state", "sha256"
"""Names in the header."""


class DamagedCheckpointError(Exception):
    """A file of a network is not what was written; the text names its kind, never a path."""


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    text: str = "",
    *,
    previous: Path | None = None,
    check_writer: CheckWriter = anyone_may_write,
) -> None:
    """Write a file whole, with a digest of its content in the header.

    Args:
        path: The file.
        tensors: What it holds, by name.
        text: What it holds beside them.
        previous: Takes what the file held before, once the new content is on the disk; None keeps nothing of it.
        check_writer: Raises when this process must not write here any more.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path, check_writer=check_writer) as temporary:
        save_file(plain, temporary, metadata={_TEXT: text, _DIGEST: digest_of(plain, text)})
        if previous is not None and path.exists():
            check_writer()
            path.replace(previous)


def read_tensors(path: Path, *, name: str) -> tuple[dict[str, Tensor], str, str]:
    """Read a file and verify its digest before anything uses it.

    Args:
        path: The file.
        name: What an error calls it, such as `The checkpoint 'best'`.

    Returns:
        The tensors by name, the text, and the digest.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedCheckpointError: The file was cut, changed or never was such a file.
    """
    try:
        check_safetensors_file(path, most_bytes=_MOST_BYTES)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        text = metadata.get(_TEXT, "")
        digest = digest_of(tensors, text)
    except (SafetensorError, AttributeError, RuntimeError, TypeError, ValueError) as error:  # number formats unknown to torch
        raise DamagedCheckpointError(f"{name} cannot be read: {error}") from error
    if metadata.get(_DIGEST) != digest:
        raise DamagedCheckpointError(f"{name} does not match its digest.")
    return tensors, text, digest


def read_text(path: Path) -> str:
    """Read the text of a file without its tensors; nothing is verified.

    Raises:
        DamagedCheckpointError: The header cannot be read.
        OSError: The file is not there, or the disk does not give it.
    """
    try:
        check_safetensors_file(path, most_bytes=_MOST_BYTES)
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get(_TEXT, ""))
    except (SafetensorError, ValueError) as error:
        raise DamagedCheckpointError(f"A header cannot be read: {error}") from error


def digest_of(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Digest a text and tensors, on the CPU and contiguous: names, number formats, shapes and numbers."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def opened_folder(path: Path | str, parent: int | None = None) -> Iterator[int]:
    """Open a folder that is no link.

    Raises:
        FileNotFoundError: There is none.
        NotADirectoryError: It is a link, or something else.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        yield folder
    finally:
        os.close(folder)


def remove_regular_file(name: str, folder: int, check_writer: CheckWriter) -> None:
    """Remove a file from an opened folder, unless it is gone, a link, or no file at all."""
    with suppress(FileNotFoundError):
        if stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            check_writer()
            os.unlink(name, dir_fd=folder)
