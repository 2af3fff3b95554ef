"""What tests share: caches of their own, the real X-rays where they lie, one local Ray."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.small_search import run_search, sampled_options

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"

# An example's time says more about the machine's load than about the code; pytest-timeout bounds every test.
settings.register_profile("tune_lung", deadline=None)
settings.load_profile("tune_lung")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let `pytest -n 2 --dist loadgroup` run the searches in one worker, with one Ray, and all else in the other."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))
    # The longest group goes first: the other worker is handed what comes after it.
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the session's caches, and what it remembers of runs, out of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Wait for no disk in the tests' own process: no power is cut there, and a made-up run is a hundred files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def radiography() -> Path:
    """The slice of the COVID-19 Radiography Database that lies beside the repository."""
    return _shared("radiography/COVID-19_Radiography_Dataset", "real X-rays")


@pytest.fixture(scope="session")
def pretrained_weights() -> Path:
    """A folder with one ResNet18 and one ResNet34 trained on natural images."""
    return _shared("weights", "pretrained weights")


def _shared(name: str, what: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"no {what}: there is no ../shared/{name}")
    return path


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray of 2 CPUs for all tests marked `ray`, closed to others and writing nothing under HOME."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray closes a local cluster by itself, but would write the token under HOME. RAY_AUTH_MODE stays unset: read when
        # ray is imported, it would come too late here.
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture(scope="session")
def finished_search(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of the small search, and its output; for tests that only read it."""
    return run_search(tmp_path_factory.mktemp("finished"), "--name", "first", "--tracker", "tensorboard")


@pytest.fixture(scope="session")
def sampled_search(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of the small search that samples, 3 points in each of 2 cells, and its output; to be read only."""
    folder = tmp_path_factory.mktemp("sampled")
    return run_search(folder, *sampled_options(folder), "--samples", "3", "--name", "cold")
