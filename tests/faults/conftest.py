"""Undisturbed runs, which every disturbed one is compared with: searched once for all processes of the session."""

from pathlib import Path

import pytest
from filelock import FileLock

from tests.faults.search_process import SAMPLED, SAMPLED_SPACE, SPACE, begin, searched


@pytest.fixture(scope="session")
def of_all_workers(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A temporary folder that the session's processes share."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session")
def undisturbed(of_all_workers: Path) -> Path:
    """The grid, searched without a fault."""
    return searched_once(of_all_workers / "undisturbed")


@pytest.fixture(scope="session")
def undisturbed_sampled(of_all_workers: Path) -> Path:
    """The sampled space, searched one trial at a time without a fault."""
    return searched_once(of_all_workers / "undisturbed_sampled", *SAMPLED, space=SAMPLED_SPACE)


def searched_once(folder: Path, *options: str, space: str = SPACE) -> Path:
    """The run of a search that the first process to want it makes."""
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "done").exists():
            searched(*begin(folder, *options, space=space), "--max-epochs", "4")
            (folder / "done").touch()
    return folder / "run"
