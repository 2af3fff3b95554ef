"""Made-up runs that several tests look at and none changes."""

import pytest

from tune_lung.results.reader import Run, read_run

from tests.fabricated_run import write_fabricated_run

HOLES = {
    "failed": ("resnet34 frozen_blocks=3",),
    "missing": ("resnet18 frozen_blocks=1", "resnet34 frozen_blocks=4"),
    "max_epochs": 30,
    "cached_from": 3,
}


@pytest.fixture(scope="session")
def random_run(tmp_path_factory) -> Run:
    """A whole run on phantoms with random weights; every trial ended by patience, none cached."""
    return read_run(write_fabricated_run(tmp_path_factory.mktemp("runs") / "random"))


@pytest.fixture(scope="session")
def pretrained_run(tmp_path_factory) -> Run:
    """The same with weights from a file, better by 3 points and with other noise."""
    root = tmp_path_factory.mktemp("runs") / "pretrained"
    return read_run(write_fabricated_run(root, weights="resnet18-cifar10-64px.pth", recall_shift=0.03, seed=1))


@pytest.fixture(scope="session")
def run_with_holes(tmp_path_factory) -> Run:
    """A run with a failed cell and two that never started, cut at 30 epochs, cached from 3 frozen blocks on."""
    return read_run(write_fabricated_run(tmp_path_factory.mktemp("runs") / "holes", **HOLES))


@pytest.fixture(scope="session")
def real_run(tmp_path_factory) -> Run:
    """A whole run on images that are not synthetic."""
    return read_run(write_fabricated_run(tmp_path_factory.mktemp("runs") / "real", synthetic=False, num_test=400))
