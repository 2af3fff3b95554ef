"""The folder that a command is started in may be a stranger's: nothing of it is imported, unless it is the command's checkout.

`python -m` puts it before all else on the path of imports, an empty entry of PYTHONPATH does the same, and Ray does it again for
its workers. What this module imports is loaded by `python -m` itself, before any code of
ours can act; the console script `tune-lung` does not look there at all.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager

_CHECKOUT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))


def leave_it_off_the_path() -> None:
    """Take the working folder off the path of imports, for this process and for those that it will start."""
    if _is_checkout():
        return
    of_others = _folders_of_others()
    added = sys.path[: _place_of_standard_library()]  # what follows is Python's own, wherever it is started
    sys.path[: len(added)] = [entry for entry in added if os.path.realpath(entry) not in of_others]
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # under `uv run` Ray hands the working folder to its workers
    if "PYTHONPATH" in os.environ:
        kept = [os.path.abspath(entry) for entry in _entries_of_environment() if os.path.realpath(entry) not in of_others]
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)


@contextmanager
def neutral_folder(parent: str | None = None) -> Iterator[str]:
    """Give a folder to work in for what looks around there: a new and empty one, but in the checkout the checkout.

    Args:
        parent: Where a new one is made; None for the temporary folder.

    Yields:
        Its path; an empty one is removed when the block ends.
    """
    if _is_checkout():
        yield _CHECKOUT
        return
    from tempfile import TemporaryDirectory  # not before the path is clean

    with TemporaryDirectory(prefix="tune_lung-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield folder


@contextmanager
def away_from_it() -> Iterator[None]:
    """Work in the checkout, or in the root folder, which no stranger fills, for imports that look around.

    matplotlib takes its settings from the working folder, and a library that torch loads, NVIDIA's `libcusparseLt` with its
    RUNPATH of `$ORIGIN:`, others: `libcuda.so.1` among them.
    """
    with chdir(_CHECKOUT if _is_checkout() else os.sep):
        yield


def _is_checkout() -> bool:
    """Whether this package was imported from the working folder."""
    try:
        return os.path.samefile(os.curdir, _CHECKOUT)
    except OSError:  # it was removed
        return False


def _folders_of_others() -> set[str]:
    """Name the working folder, and those in it that PYTHONPATH names by a relative path: they are others in every folder."""
    try:
        here = os.path.realpath(os.curdir)
    except OSError:
        return set()
    inside = os.path.join(here, "")
    relative = [os.path.realpath(entry) for entry in _entries_of_environment() if not os.path.isabs(entry)]
    return {here, *(folder for folder in relative if folder.startswith(inside))} - {_CHECKOUT}


def _entries_of_environment() -> list[str]:
    return os.environ.get("PYTHONPATH", "").split(os.pathsep)


def _place_of_standard_library() -> int:
    library = os.path.dirname(os.path.realpath(os.__file__))
    return next((index for index, entry in enumerate(sys.path) if os.path.realpath(entry) == library), len(sys.path))
