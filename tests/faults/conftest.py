"""Undisturbed runs, which every disturbed one is compared with."""

from pathlib import Path

import pytest

from tests.faults.search_process import SAMPLED, SAMPLED_SPACE, begin, searched


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid, searched without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    searched(*begin(folder), "--max-epochs", "4")
    return folder / "run"


@pytest.fixture(scope="session")
def undisturbed_sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sampled space, searched one trial at a time without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed_sampled")
    searched(*begin(folder, *SAMPLED, space=SAMPLED_SPACE), "--max-epochs", "4")
    return folder / "run"
