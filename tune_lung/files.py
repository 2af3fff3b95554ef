"""Files that appear whole or not at all, and their digests."""

import hashlib
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

MOST_JSON_BYTES = 256 * 2**20
"""Size of the largest JSON file of ours that is read: the digests of a million images take 150 MB."""
_MOST_CONTAINERS = 4_000_000
"""Lists and objects of a JSON file: each takes 60 to 200 bytes of memory, and as few as 3 of the file."""
_MOST_HEADER_BYTES = 16 * 2**20
"""A checkpoint's header names each tensor in 100 bytes, and holds the numbers of each epoch in 300."""
_CHUNK_BYTES = 1 << 20


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place when the block ends well.

    The temporary name starts with a dot, so that readers of a folder of Parquet files pass it over. When the block
    raises, the temporary file is removed and `path` stays as it was.

    Args:
        path: The file to write; its folder is made when missing.

    Yields:
        The path to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_whole(path: Path, text: str) -> None:
    """Write a UTF-8 text file so that it is never seen half written."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class DamagedFileError(ValueError):
    """A file that is not what was written."""


def read_regular_file(path: Path, *, most_bytes: int) -> bytes:
    """Read a file that may be a stranger's: it is a regular one, and no larger than what was ever written there.

    A named pipe would hang whoever opens it, and a device such as `/dev/zero` has no end.

    Args:
        path: The file; a link is followed.
        most_bytes: Its largest size in bytes.

    Raises:
        DamagedFileError: It is a pipe, a device or a socket, or larger.
        OSError: It is not there, or the disk does not give it.
    """
    with open_regular_file(path, most_bytes=most_bytes) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def open_regular_file(path: Path, *, most_bytes: int) -> BinaryIO:
    """Open a file that may be a stranger's, as `read_regular_file` does.

    Args:
        path: The file; a link is followed.
        most_bytes: Its largest size in bytes, when it is opened.

    Raises:
        DamagedFileError: It is a pipe, a device or a socket, or larger.
        OSError: It is not there, or the disk does not give it.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= most_bytes:
        return file
    file.close()
    what = f"is larger than {most_bytes} bytes" if stat.S_ISREG(status.st_mode) else "is no regular file"
    raise DamagedFileError(f"{path.name} {what}.")


def check_regular_file(path: Path, *, most_bytes: int = sys.maxsize) -> None:
    """Refuse what `open_regular_file` does not open, before a library opens it by its path."""
    open_regular_file(path, most_bytes=most_bytes).close()


def check_safetensors_file(path: Path, *, most_bytes: int) -> None:
    """Refuse a safetensors file, before its library opens it, whose header alone would take gigabytes."""
    with open_regular_file(path, most_bytes=most_bytes) as file:
        if int.from_bytes(file.read(8), "little") > _MOST_HEADER_BYTES:
            raise DamagedFileError(f"{path.name} has a header of more than {_MOST_HEADER_BYTES} bytes.")


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes to is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def write_json_with_digest(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON values whole, the SHA-256 of all others under `sha256`."""
    text = json.dumps({**content, "sha256": _digest_of(content)}, indent=2, allow_nan=False)
    write_text_whole(path, text + "\n")


def read_json_with_digest(path: Path, *, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """Read what `write_json_with_digest` wrote, or JSON values without a digest: those have no `sha256` at all.

    Args:
        path: The file.
        most_bytes: Its largest size in bytes.

    Raises:
        DamagedFileError: It is not what was written.
        OSError: It is not there, or the disk does not give it.
    """
    text = read_regular_file(path, most_bytes=most_bytes)
    if text.count(b"[") + text.count(b"{") > _MOST_CONTAINERS:
        raise DamagedFileError(f"{path.name} holds more than {_MOST_CONTAINERS} lists and objects.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path.name} is no JSON file.") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path.name} is no JSON object.")
    if "sha256" in content and content["sha256"] != _digest_of(content):
        raise DamagedFileError(f"{path.name} does not match its digest.")
    return {name: value for name, value in content.items() if name != "sha256"}


def _digest_of(content: Mapping[str, Any]) -> str:
    others = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def shown_path(path: Path) -> str:
    """Show a path relative to the working folder where it lies below it, else in full."""
    full = path.absolute()
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)


def sha256_of_file(path: Path, *, most_bytes: int = sys.maxsize) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits.

    Args:
        path: The file.
        most_bytes: Its largest size in bytes: a file without content on the disk may say that it has petabytes.

    Raises:
        DamagedFileError: It is no regular file, or larger.
        OSError: It is not there, or the disk does not give it.
    """
    digest, num_bytes = hashlib.sha256(), 0
    with open_regular_file(path, most_bytes=most_bytes) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
            if num_bytes > most_bytes:  # it grows faster than it is read
                raise DamagedFileError(f"{path.name} is larger than {most_bytes} bytes.")
    return digest.hexdigest()
