"""Files that appear whole or not at all, and their digests."""

import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MOST_JSON_BYTES = 256 * 2**20
"""Size of the largest JSON file that is read: the digests of a million images take 150 MB."""
_MOST_NESTED = 64
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
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise DamagedFileError(f"{path.name} is no regular file.")
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise DamagedFileError(f"{path.name} is larger than {most_bytes} bytes.")
    return content


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
    content = plain_json(read_regular_file(path, most_bytes=most_bytes), name=path.name)
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path.name} is no JSON object.")
    if "sha256" in content and content["sha256"] != _digest_of(content):
        raise DamagedFileError(f"{path.name} does not match its digest.")
    return {name: value for name, value in content.items() if name != "sha256"}


def plain_json(text: str | bytes, *, name: str) -> Any:
    """Read JSON that can be written again: finite numbers, whole ones of 64 bits, 64 lists or objects in one another at most.

    Args:
        text: What was read.
        name: What the error calls it.

    Raises:
        DamagedFileError: It is no JSON, or not such.
    """
    try:
        content = json.loads(text, parse_int=_ordinary_int, parse_float=_finite_float, parse_constant=_finite_float)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{name} is no JSON file.") from error
    level = [content]
    for _ in range(_MOST_NESTED):
        level = [inner for value in level for inner in _inside(value) if isinstance(inner, dict | list)]
        if not level:
            return content
    raise DamagedFileError(f"{name} is nested too deep.")


def _ordinary_int(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**63:
        raise ValueError("A whole number is too large.")
    return number


def _finite_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("A number is not finite.")
    return number


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _digest_of(content: Mapping[str, Any]) -> str:
    others = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def shown_path(path: Path) -> str:
    """Show a path relative to the working folder where it lies below it, else in full."""
    full = path.absolute()
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
