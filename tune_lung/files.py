"""Files that appear whole or not at all, and stay; and their digests."""

import ctypes
import errno
import hashlib
import json
import math
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from tune_lung.printable import in_one_line

MOST_JSON_BYTES = 256 * 2**20
"""Size of the largest JSON file of ours that is read: the digests of a million images take 150 MB."""
_MOST_NESTED = 64
_MOST_CONTAINERS = 4_000_000
"""Lists and objects of a JSON file: each takes 60 to 200 bytes of memory, and as few as 3 of the file."""
_MOST_HEADER_BYTES = 16 * 2**20
"""A checkpoint's header names each tensor in 100 bytes, and holds the numbers of each epoch in 300."""
_CHUNK_BYTES = 1 << 20
_HAS_NO_EXCLUSIVE_RENAME = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


CheckWriter = Callable[[], str]
"""Raises where this process must not write any more; returns what its unfinished files are marked with, hexadecimal digits."""


def anyone_may_write() -> str:
    """Let everybody write, without a mark: the check of what has no owner."""
    return ""


@contextmanager
def whole_file(path: Path, *, lasts: bool = True, check_writer: CheckWriter = anyone_may_write) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place when the block ends well.

    The temporary name starts with a dot, so that readers of a folder of Parquet files pass it over. When the block
    raises, the temporary file is removed and `path` stays as it was.

    Args:
        path: The file to write; its folder is made when missing.
        lasts: Whether it must be there after a power cut that follows the block: the folder is written to the disk as well as
            the file. Without it a power cut may bring back what was there before, whole, so it is for what is soon written
            again or can be made again.
        check_writer: Called before anything is made, and once more when all that is left is to rename: a process may have
            been paused in between. Whoever takes its place may remove what bears its mark: then it is asked a third time.

    Yields:
        The path to write to.
    """
    mark = check_writer()
    make_folder(path.parent, lasts=lasts)
    temporary = path.with_name(f".{path.name}.{mark}{secrets.token_hex(4)}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        check_writer()
        temporary.replace(path)
        if lasts:
            write_folder_to_disk(path.parent)
    except FileNotFoundError:
        check_writer()
        raise
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path, *, lasts: bool = True) -> None:
    """Make a folder, and those above it, where they are missing.

    Args:
        path: The folder.
        lasts: Whether it must be there after a power cut.
    """
    if path.is_dir():
        return
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing if lasts else ():
        write_folder_to_disk(folder.parent)


def write_folder_to_disk(path: Path) -> None:
    """Wait until what was made, renamed or removed in a folder is on the disk; a file system that cannot say so is believed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_text_whole(path: Path, text: str, *, lasts: bool = True, check_writer: CheckWriter = anyone_may_write) -> None:
    """Write a UTF-8 text file so that it is never seen half written; arguments as for `whole_file`."""
    with whole_file(path, lasts=lasts, check_writer=check_writer) as temporary:
        temporary.write_text(text, encoding="utf-8")


def places(path: Path) -> Iterator[Path]:
    """Yield a path and those that stand in for it, one after the other, where it is taken: `a.json`, `a-2.json`, ..."""
    yield path
    for number in count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def set_aside(path: Path, place: Path) -> Path:
    """Rename a file to the first of some places where nothing lies, and return which it was."""
    return path.rename(next(free for free in places(place) if not os.path.lexists(free)))


def is_plain_file(path: Path) -> bool:
    """Whether a path is a file, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def rename_to_new(folder: Path, place: Path) -> None:
    """Rename a folder to a name that nothing has yet; `os.rename` would put it in the place of an empty folder.

    Linux and macOS have a call that never does. A file system without it, such as NFS, is looked at right before: there an
    empty folder that appears in this very moment is taken for none. One with anything in it, such as a run, never is.

    Args:
        folder: The folder.
        place: Its new path, on the same file system; it lasts through a power cut.

    Raises:
        FileExistsError: Something has the name, if only an empty folder or a link to nowhere.
        OSError: It cannot be renamed.
    """
    code = _rename_exclusively(os.fsencode(folder), os.fsencode(place))
    if code in _HAS_NO_EXCLUSIVE_RENAME:
        code = errno.EEXIST if place.is_symlink() or place.exists() else _rename(folder, place)
    if code in (errno.EEXIST, errno.ENOTEMPTY):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place))
    if code:
        raise OSError(code, os.strerror(code), str(place))
    write_folder_to_disk(place.parent)


def _rename_exclusively(source: bytes, target: bytes) -> int:
    """Rename by the system's call that replaces nothing; return the number of the error, 0 for none."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(source, target, 0x4)  # RENAME_EXCL
        else:
            failed = library.renameat2(-100, source, -100, target, 1)  # AT_FDCWD, RENAME_NOREPLACE
    except (AttributeError, OSError):  # an older C library, or one that is part of Python's own program
        return errno.ENOSYS
    return ctypes.get_errno() if failed else 0


def _rename(folder: Path, place: Path) -> int:
    try:
        folder.rename(place)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


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


def write_json_with_digest(
    path: Path, content: Mapping[str, Any], *, lasts: bool = True, check_writer: CheckWriter = anyone_may_write
) -> None:
    """Write JSON values whole, the SHA-256 of all others under `sha256`; arguments as for `whole_file`."""
    write_text_whole(path, json_with_digest(content), lasts=lasts, check_writer=check_writer)


def json_with_digest(content: Mapping[str, Any]) -> str:
    """Return the text that `write_json_with_digest` writes."""
    return json.dumps({**content, "sha256": _digest_of(content)}, indent=2, allow_nan=False) + "\n"


def read_json_with_digest(path: Path, *, needs_digest: bool = False, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """Read what `write_json_with_digest` wrote, or JSON values without a digest: those have no `sha256` at all.

    Args:
        path: The file.
        needs_digest: Whether values without a digest count as damaged.
        most_bytes: Its largest size in bytes.

    Raises:
        DamagedFileError: It is not what was written.
        OSError: It is not there, or the disk does not give it.
    """
    text = read_regular_file(path, most_bytes=most_bytes)
    if text.count(b"[") + text.count(b"{") > _MOST_CONTAINERS:
        raise DamagedFileError(f"{path.name} holds more than {_MOST_CONTAINERS} lists and objects.")
    content = plain_json(text, name=path.name)
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path.name} is no JSON object.")
    if (needs_digest or "sha256" in content) and content.get("sha256") != _digest_of(content):
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
    return in_one_line(full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full)


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
