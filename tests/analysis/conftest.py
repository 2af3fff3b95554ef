"""Made-up runs that several tests look at and none changes."""

import pytest

from tune_lung.results.imported import ForeignSearch, ForeignTrial, run_of, write_run
from tune_lung.results.reader import Run, read_run
from tune_lung.results.schema import TrialStatus
from tune_lung.strategy import parse_objectives

from tests.fabricated_run import write_fabricated_run, write_sampled_run

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


@pytest.fixture(scope="session")
def sampled_run(tmp_path_factory) -> Run:
    """A run of a space that samples: three cells with 14 points each, some stopped, some failed."""
    return read_run(write_sampled_run(tmp_path_factory.mktemp("runs") / "sampled", num_stopped=12))


@pytest.fixture(scope="session")
def repeated_run(tmp_path_factory) -> Run:
    """The same space with 5 points in each cell, every one trained with 3 seeds, for recall and parameters."""
    objectives = parse_objectives("val_macro_recall:max,trainable_params:min")
    root = tmp_path_factory.mktemp("runs") / "repeated"
    return read_run(write_sampled_run(root, samples=5, repeats=3, objectives=objectives))


@pytest.fixture(scope="session")
def traded_run(tmp_path_factory) -> Run:
    """The same space searched for recall and parameters: 39 points completed, 3 failed."""
    objectives = parse_objectives("val_macro_recall:max,trainable_params:min")
    return read_run(write_sampled_run(tmp_path_factory.mktemp("runs") / "traded", objectives=objectives, num_failed=3))


@pytest.fixture(scope="session")
def imported_run(tmp_path_factory) -> Run:
    """A run of another tool, which says little: a ResNet without depth, trials without epochs, one that failed."""
    epochs = tuple({"epoch": epoch, "selection_score": epoch / 10} for epoch in range(1, 5))
    tried = [
        ({"model": "resnet18", "learning_rate": 1e-3}, 0.7, epochs),
        ({"model": "resnet34", "learning_rate": 1e-3, "frozen_blocks": 2}, 0.8, epochs),
        ({"model": "cnn", "learning_rate": 1e-3, "channels": [4, 8], "kernel_sizes": [3, 3]}, 0.6, ()),
        ({"model": "cnn", "learning_rate": 3e-3, "channels": [4], "kernel_sizes": [5]}, None, ()),
    ]
    trials = tuple(
        ForeignTrial(
            name=str(number),
            params=params,
            status=TrialStatus.FAILED if score is None else TrialStatus.COMPLETED,
            score=score,
            measured={},
            epochs=own,
        )
        for number, (params, score, own) in enumerate(tried)
    )
    search = ForeignSearch(name="theirs", source="Optuna study", trials=trials, axes={}, select_by="accuracy", started_utc=None)
    root = tmp_path_factory.mktemp("runs") / "imported"
    write_run(run_of(search), root)
    return read_run(root)
