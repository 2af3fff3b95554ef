"""A run's first moments: it is made beside its place, owned from the start, and appears there whole by one rename.

It is made in a hidden folder, `.NAME.<8 digits>`, whose owner's file names that folder. A builder that is killed leaves it there.
The next one that begins a run beside it removes it: what its own owner's file names so, nobody locks, whose heartbeat stands
still, and that holds nothing but files as they are written here. All else that is hidden there is left alone.
"""

import os
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from filelock import FileLock, Timeout

from tune_lung.errors import InputError, is_no_room
from tune_lung.files import make_folder
from tune_lung.results.layout import TABLES, RunPaths
from tune_lung.results.ledger import Ledger
from tune_lung.results.ownership import Owner, Ownership, read_owner, stand_still

MOST_NAME_BYTES = 200
"""File systems allow 255; the hidden names around a run's are longer than its own."""
_UNFINISHED_NAME = re.compile(r"\..+\.(?:[0-9a-f]{8}){1,2}")
"""How `whole_file` and `begin_run` name what is not finished."""


def checked_name(name: str) -> str:
    """Refuse what cannot be the name of a run's folder.

    Raises:
        InputError: It is empty, hidden or too long, leads to another folder, or has signs that cannot be shown.
    """
    is_one_name = name.strip() and not name.startswith(".") and os.sep not in name
    if not is_one_name or not name.isprintable() or len(os.fsencode(name)) > MOST_NAME_BYTES:
        raise InputError(
            f"--name {name[:40]!r} cannot be a run's folder: write one name that does not begin with '.', without '{os.sep}' or"
            f" control characters, {MOST_NAME_BYTES} bytes at most. Its parent is given by --out."
        )
    return name


def require_free(root: Path) -> None:
    """Refuse a place for a new run that something has already.

    Raises:
        InputError: So it is.
    """
    if _is_taken(root):
        raise _exists(root)


def begin_run(
    root: Path, manifest: Mapping[str, Any], fill: Callable[[Ledger], None], *, is_named: bool
) -> tuple[Ledger, Ownership]:
    """Make a run that is seen whole or not at all, and owned from its first moment.

    Args:
        root: Where it is to lie; its name becomes the run's.
        manifest: What it is; `data.classes` must be known.
        fill: Writes what else it has at its beginning.
        is_named: Whether the user chose the name: then a run of that name is an error. Else a number is added to it.

    Returns:
        The run's ledger, in its place, and its ownership; to let it go is the caller's.

    Raises:
        InputError: The place is taken, or nothing can be written there.
    """
    unfinished = root.with_name(f".{root.name}.{secrets.token_hex(4)}")
    try:
        make_folder(root.parent)
        remove_unfinished(root.parent)
        unfinished.mkdir()
    except OSError as error:
        if is_no_room(error):
            raise
        raise InputError(f"No run can be begun in '{root.parent}': {error.strerror}. Give another folder with --out.") from error
    with ExitStack() as undone:
        undone.callback(_remove, unfinished)
        ownership = undone.enter_context(Ownership.claim(unfinished, is_unfinished=True))
        ledger = Ledger(unfinished, check_writer=ownership.check)
        ledger.begin({**manifest, "name": root.name})
        fill(ledger)
        place = _moved(ledger, ownership, root, is_named=is_named)
        undone.pop_all()
    return Ledger(place, check_writer=ownership.check), ownership


def remove_unfinished(parent: Path) -> None:
    """Remove what killed builders left in a folder; it takes a moment where there is any.

    Args:
        parent: Where runs lie.
    """
    left = {folder: owner for folder in parent.glob(".*.*") if (owner := _builder_of(folder)) is not None}
    with ExitStack() as held:
        unlocked: dict[Path, Owner] = {}
        for folder, owner in left.items():
            with suppress(Timeout, OSError):  # its builder lives, or is another user's
                if _own_files(folder):
                    held.enter_context(FileLock(RunPaths(folder).lock, timeout=0))
                    unlocked[folder] = owner
        for folder in stand_still(unlocked):
            _remove(folder)


def _moved(ledger: Ledger, ownership: Ownership, root: Path, *, is_named: bool) -> Path:
    """Put a run in its place, or in the first free one of those with a number."""
    place, number = root, 1
    while _is_taken(place) or not _has_moved(ledger, ownership, place):
        if is_named:
            raise _exists(root)
        number += 1
        place = root.with_name(f"{root.name}-{number}")
    return place


def _has_moved(ledger: Ledger, ownership: Ownership, place: Path) -> bool:
    manifest = ledger.read_manifest()
    if manifest["name"] != place.name:
        ledger.write_manifest({**manifest, "name": place.name})
    try:
        ownership.move(place)
    except FileExistsError:
        return False
    return True


def _is_taken(place: Path) -> bool:
    return place.is_symlink() or place.exists()


def _exists(root: Path) -> InputError:
    return InputError(f"The run folder '{root.name}' exists already. Choose another --name or remove it.")


def _builder_of(folder: Path) -> Owner | None:
    """Read who makes, or made, a run in a hidden folder; None for a folder of any other kind."""
    if folder.is_symlink() or not _UNFINISHED_NAME.fullmatch(folder.name) or not RunPaths(folder).lock.is_file():
        return None
    owner = read_owner(RunPaths(folder))
    return owner if owner is not None and owner.unfinished_folder == folder.name else None


def _remove(folder: Path) -> None:
    """Remove an unfinished run, unless there is anything in its folder that was not written here; it may be gone."""
    with suppress(OSError):
        for path in _own_files(folder):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)


def _own_files(folder: Path) -> list[Path]:
    """List an unfinished run's files and folders in an order to remove them: what proves that it is one comes last.

    Returns:
        All there is, its own folder included; nothing where anything was not written here.
    """
    paths = RunPaths(folder)
    proofs = [paths.lock, paths.owner(1)]
    of_the_root = {path.name for path in (paths.manifest, paths.manifest_copy, paths.lessons, *proofs)}
    found: list[Path] = []
    for path in folder.iterdir():
        mode = path.lstat().st_mode
        if S_ISDIR(mode) and path.name in TABLES:
            parts = list(path.iterdir())
            if not all(S_ISREG(part.lstat().st_mode) and _name_when_finished(part).endswith(".parquet") for part in parts):
                return []
            found += [*parts, path]
        elif S_ISREG(mode) and _name_when_finished(path) in of_the_root:
            found.append(path)
        else:
            return []
    return [*(path for path in found if path not in proofs), *(path for path in proofs if path in found), folder]


def _name_when_finished(path: Path) -> str:
    """Return the name that a temporary file of `whole_file` is to have; any other file's own."""
    if not _UNFINISHED_NAME.fullmatch(path.name):
        return path.name
    return path.name[1:].rpartition(".")[0]
