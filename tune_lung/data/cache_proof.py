"""What in a cache's folder tune_lung made: the proof that comes before anything there is removed or written over.

The root carries a marker. Below it lie folders of known names; in those of the *kinds*, entries, each with a listing that
names its place and its files. Whatever has another name, is no plain file or folder, or lies in an entry unlisted, is
somebody else's: it stays, and so does the whole entry around it. Links are never followed but the root itself.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from tune_lung.errors import InputError
from tune_lung.files import (
    DamagedFileError,
    is_plain_file,
    json_with_digest,
    read_json_with_digest,
    read_regular_file,
    sha256_of_file,
    write_json_with_digest,
)

LOCKS = "locks"
MEMORIES = "digests"
LISTING = ".digests.json"
"""The file of an entry that names its place, and the SHA-256 of each other file."""
CONTENT = "entry"
"""The folder, in one that is not finished, that becomes the entry."""

_HEX = r"[0-9a-f]{8}"
_LOCK = rf"[a-z]+-[0-9a-f]+\.(build|use-[0-9]+-{_HEX})"
_LISTING_FILES = rf"\.digests\.json|\.\.digests\.json\.{_HEX}"
_FEATURES = r"train|validation|statistics\.safetensors|features\.json"


def _unfinished_files(files: str) -> str:
    return rf"{_LISTING_FILES}|{CONTENT}/({_LISTING_FILES}|{files})?"


KINDS: Mapping[str, str] = {
    "stores": r"decoded/((deep_)?(pixels|masks))?|images\.parquet|(train|validation|test)(\.npy|_masks\.npy|_index\.npz)"
    rf"|store\.json|\.store\.json\.{_HEX}",
    "features": _FEATURES,
    "phantoms": rf"SYNTHETIC\.txt|\.SYNTHETIC\.txt\.{_HEX}|(?P<name>[^/]+)/((images|masks)/((?P=name)-[0-9]+\.png)?)?",
    "probes": rf"predictions|checkpoints/(frozen/)?(\w+\.safetensors|\.\w+\.safetensors\.{_HEX})?|{LOCKS}/({_LOCK})?"
    rf"|features/([0-9a-f]+/({_LISTING_FILES}|{_FEATURES})?|\.[0-9a-f]+\.{_HEX}/({_unfinished_files(_FEATURES)})?)?",
}
"""The kinds of entries, and what may lie in one that its builder did not finish: files, and folders with a slash behind."""

_FOLDERS = (*KINDS, LOCKS, MEMORIES)
_LOCK_FILE = re.compile(_LOCK)
_MEMORY_FILE = re.compile(r"[0-9a-f]{16}(-[0-9]+)?\.json")
_ENTRY = re.compile(r"(?P<key>[0-9a-f]+)(-[0-9]+)?")
_UNFINISHED = re.compile(rf"\.(?P<key>[0-9a-f]+)\.{_HEX}")
_UNFINISHED_FILES = {kind: re.compile(_unfinished_files(files)) for kind, files in KINDS.items()}
_TEMPORARY_ROOT = re.compile(r"tune_lung-[a-z0-9_]{8}")
_KEY_BEFORE_PLACES = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MARKER = ".tune_lung-cache"
_MARKER_TEXT = (
    b"tune_lung keeps decoded X-rays here, and what else it can make again. It removes the oldest of that by itself, and\n"
    b"nothing else that lies here.\n"
)


def claim(root: Path, *, name: str, is_default: bool) -> None:
    """See that a folder is a cache's root, or make it one.

    Args:
        root: The folder; it exists, and no part of its path is a link.
        name: What an error calls it, such as `--cache DIR`.
        is_default: Whether it is the one that nobody had to name: that one becomes a root whatever it holds.

    Raises:
        InputError: It holds what tune_lung did not make.
        OSError: It cannot be read or written.
    """
    if _is_marked(root):
        return
    found = _foreign_marker(root) or (None if is_default else _first_foreign(root))
    if found is not None and not _is_marked(root):  # now, by another process, which made what was found
        raise InputError(
            f"{name} holds {found}, which tune_lung did not make. Give an empty folder, or one that has been its cache before."
        )
    mark(root)


def mark(root: Path) -> None:
    """Write the marker into a folder; several processes may do so at once."""
    # In place: who reads the beginning of it takes it for one that is being written.
    marker = os.open(root / _MARKER, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        os.write(marker, _MARKER_TEXT)
    finally:
        os.close(marker)


def folder_in(root: Path, name: str) -> Path:
    """Give one of the folders in a root, made where it is missing.

    Raises:
        InputError: Something else has its name, such as a link: nothing is written through one.
    """
    path = root / name
    with suppress(FileExistsError):
        path.mkdir()
    if not _is_folder(path):
        raise InputError(f"The cache needs the name {path}, but it is no folder. Move it away, or give another --cache.")
    return path


def check_folders(root: Path) -> None:
    """Refuse a root in which something else has the name of one of its folders.

    Raises:
        InputError: It has.
    """
    for name in _FOLDERS:
        if os.path.lexists(root / name):
            folder_in(root, name)


def entries_in(root: Path) -> Iterator[Path]:
    """Yield the paths of a root that have an entry's name, or that of one not finished; nothing is said of what they hold."""
    for kind in KINDS:
        if _is_folder(root / kind):
            yield from (path for path in (root / kind).iterdir() if key_of(path) is not None)


def key_of(path: Path) -> str | None:
    """Read an entry's key from its name, or from that of one not finished; None for another name."""
    match = _ENTRY.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name)
    return None if match is None else match["key"]


def begin(folder: Path) -> Path:
    """Make the folder of an entry that is to be built, with what proves that it is ours, and return the one to build in."""
    folder.mkdir()
    (folder / LISTING).write_text(json_with_digest({"entry": _place_of(folder), "files": {}}), encoding="utf-8")
    (folder / CONTENT).mkdir()
    return folder / CONTENT


def write_listing(folder: Path, *, of: Path) -> None:
    """List the files of an entry that has been built in `folder`, and is to lie at `of`."""
    files = {name: sha256_of_file(folder / name) for name in sorted(_files_in(folder)) if name != LISTING}
    write_json_with_digest(folder / LISTING, {"entry": _place_of(of), "files": files}, lasts=False)  # it can be built again


def listing_of(entry: Path) -> dict[str, str] | None:
    """Read which files of an entry tune_lung wrote, with their SHA-256; None where nothing proves that it wrote any."""
    if not (_is_folder(entry) and is_plain_file(entry / LISTING)):
        return None
    try:
        content = read_json_with_digest(entry / LISTING, needs_digest=True)
    except (OSError, DamagedFileError):
        return None
    if "entry" in content:
        files = content.get("files") if content["entry"] == _place_of(entry) else None
    else:  # before listings named their place
        files = content if content and _KEY_BEFORE_PLACES.fullmatch(entry.name) else None
    is_listing = isinstance(files, dict) and all(isinstance(sha, str) and _SHA256.fullmatch(sha) for sha in files.values())
    return files if is_listing else None


def listed_files(entry: Path, listing: Mapping[str, str]) -> dict[str, os.stat_result]:
    """Give those files of an entry that its listing names and that are plain ones; what else lies there is passed over."""
    found = _walk(entry, _names_of(listing).__contains__)
    return {name: status for name, status in found if status is not None and name in listing}


def size_of(entry: Path) -> int | None:
    """Add up the bytes of an entry, finished or not; None where not all in it is proven ours."""
    own = _own(entry)
    return None if own is None else sum(status.st_size for name, status in own.items() if not name.endswith("/"))


def remove(entry: Path) -> bool:
    """Remove an entry, finished or not, if all in it is proven ours.

    Returns:
        Whether nothing is left of it.
    """
    own = _own(entry)
    if own is None:
        return False
    with suppress(OSError):  # whatever was put there this moment makes its folder stay
        for name in sorted(own.keys() - {LISTING}, reverse=True):  # what a folder holds goes before it
            if name.endswith("/"):
                (entry / name).rmdir()
            else:
                (entry / name).unlink()
        (entry / LISTING).unlink()  # last: until then it proves what is left to be ours
        entry.rmdir()
    return not os.path.lexists(entry)


def remove_root(root: Path) -> bool:
    """Remove a root with all that is proven ours.

    Returns:
        Whether nothing is left of it.
    """
    for entry in entries_in(root):
        remove(entry)
    with suppress(OSError):
        for folder, is_ours in ((LOCKS, is_idle_lock), (MEMORIES, is_memory)):
            for path in (root / folder).iterdir() if _is_folder(root / folder) else ():
                if is_ours(path):
                    path.unlink()
    for folder in _FOLDERS:
        with suppress(OSError):
            (root / folder).rmdir()
    with suppress(OSError):
        if [path.name for path in root.iterdir()] == [_MARKER] and _is_marked(root):
            (root / _MARKER).unlink()
        root.rmdir()
    return not os.path.lexists(root)


def is_lock(path: Path) -> bool:
    """Whether a path can be a lock file of ours: by its name, and a plain file."""
    return _LOCK_FILE.fullmatch(path.name) is not None and is_plain_file(path)


def is_idle_lock(path: Path) -> bool:
    """Whether a path is a lock file of ours that says nothing, as ours do wherever the system itself keeps locks."""
    return is_lock(path) and path.lstat().st_size == 0


def memory_of(path: Path) -> dict[str, list[object]] | None:
    """Read remembered digests: a file's stamp and SHA-256 by its name; None where the file is not what we wrote."""
    if not (_MEMORY_FILE.fullmatch(path.name) and is_plain_file(path)):
        return None
    try:
        content = read_json_with_digest(path, needs_digest=True)
    except (OSError, DamagedFileError):
        return None
    files = content.get("files")
    is_memory = isinstance(files, dict) and all(isinstance(value, list) and len(value) == 2 for value in files.values())
    return files if is_memory and len(content) == 1 else None


def is_memory(path: Path) -> bool:
    """Whether a path is a file of remembered digests."""
    return memory_of(path) is not None


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _place_of(entry: Path) -> str:
    return f"{entry.parent.name}/{entry.name}"


def _own(entry: Path) -> dict[str, os.stat_result] | None:
    """Give all files of an entry, and its folders with a slash behind; None where one thing is not proven ours."""
    listing = listing_of(entry)
    if listing is None:
        return None
    is_unfinished = _UNFINISHED.fullmatch(entry.name) is not None
    is_ours = _UNFINISHED_FILES[entry.parent.name].fullmatch if is_unfinished else _names_of(listing).__contains__
    own: dict[str, os.stat_result] = {}
    try:
        for name, status in _walk(entry, is_ours):
            if status is None:
                return None
            own[name] = status
    except OSError:
        return None
    return own


def _names_of(listing: Mapping[str, str]) -> set[str]:
    folders = {f"{folder}/" for name in listing for folder in PurePosixPath(name).parents}
    return {LISTING, *listing, *folders}


def _files_in(folder: Path) -> Iterator[str]:
    return (name for name, status in _walk(folder, bool) if status is not None and not name.endswith("/"))


def _walk(folder: Path, is_ours: Callable[[str], object], below: str = "") -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield what lies in a folder by its path there, folders with a slash behind; without a status what is not ours."""
    with os.scandir(folder / below) as found:
        for each in found:
            status = each.stat(follow_symlinks=False)
            is_folder = stat.S_ISDIR(status.st_mode)
            name = f"{below}{each.name}{'/' if is_folder else ''}"
            if not (is_folder or stat.S_ISREG(status.st_mode)) or not is_ours(name):
                yield name, None
                continue
            yield name, status
            if is_folder:
                yield from _walk(folder, is_ours, name)


def _marker_of(root: Path) -> bytes | None:
    """Read a root's marker, empty where there is none; None for something else of its name."""
    path = root / _MARKER
    if not os.path.lexists(path):
        return b""
    if not is_plain_file(path):
        return None
    try:
        return read_regular_file(path, most_bytes=len(_MARKER_TEXT))
    except DamagedFileError:
        return None


def _is_marked(root: Path) -> bool:
    return _marker_of(root) == _MARKER_TEXT


def _foreign_marker(root: Path) -> str | None:
    begun = _marker_of(root)
    return None if begun is not None and _MARKER_TEXT.startswith(begun) else _MARKER


def _first_foreign(root: Path) -> str | None:
    """Name the first thing in a folder that nothing proves to be ours; its marker, if it has one, is not looked at."""
    is_ours = {**dict.fromkeys(KINDS, _is_own_entry), LOCKS: is_idle_lock, MEMORIES: is_memory}
    for path in sorted(root.iterdir()):
        if path.name == _MARKER or (_TEMPORARY_ROOT.fullmatch(path.name) and _is_folder(path) and _is_marked(path)):
            continue
        if path.name not in is_ours or not _is_folder(path):
            return path.name
        for inner in sorted(path.iterdir()):
            if not is_ours[path.name](inner):
                return f"{path.name}/{inner.name}"
    return None


def _is_own_entry(path: Path) -> bool:
    return key_of(path) is not None and size_of(path) is not None
