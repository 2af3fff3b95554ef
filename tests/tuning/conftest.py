"""A search's driver side without Ray: a setup, a ledger, a recorder, and trials that only look like Ray's."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tune_lung.config import RunConfig
from tune_lung.models.weights import RANDOM_WEIGHTS
from tune_lung.results.ledger import Ledger
from tune_lung.results.manifest import DataFacts, SearchFacts, new_manifest
from tune_lung.space_files import load_space
from tune_lung.strategy import Strategy
from tune_lung.tuning.cluster import Resources
from tune_lung.tuning.plan import DataRequest, SearchSetup
from tune_lung.tuning.recorder import Recorder

RESOURCES = Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=2)


@dataclass
class LooksLikeATrial:
    """The attributes of Ray's trial that callbacks read."""

    trial_id: str
    config: dict[str, Any]
    last_result: dict[str, Any] = field(default_factory=dict)
    error_file: str | None = None
    run_metadata: Any = field(default_factory=lambda: SimpleNamespace(metric_n_steps={}, metric_analysis={}))


def epoch_result(epoch: int, score: float, **more: Any) -> dict[str, Any]:
    """A report of one epoch as the trainable makes it."""
    numbers = {"train_loss": 1.0, "val_loss": 0.9, "val_macro_recall": score, "val_micro_recall": score}
    numbers |= {"selection_score": score, "epoch_seconds": 2.0, "validation_seconds": 0.5, "images_per_second": 50.0}
    facts = {"total_params": 10, "trainable_params": 5, "mult_adds": 100, "device": "cpu", "prefix_seconds": None}
    row = {
        "epoch": epoch,
        "learning_rate": 0.001,
        "best_epoch": epoch,
        "best_score": score,
        "stop_reason": None,
        "seconds_by_part": {},
        "damaged_checkpoints": (),
        **numbers,
        **facts,
        **more,
    }
    return {"epochs": [row], "done": row.get("done", False)}


@pytest.fixture
def setup(tmp_path: Path) -> SearchSetup:
    """A run of resnet18 with random weights."""
    run = RunConfig(image_size=64)
    data = DataRequest(root=None, run=run, cache_root=tmp_path / "cache", cache_size_bytes=0)
    return SearchSetup(
        run=run,
        run_root=tmp_path / "run",
        data=data,
        store=tmp_path / "store",
        data_fingerprint="f" * 64,
        weights={"resnet18": RANDOM_WEIGHTS},
        cpus_per_trial=1,
        gpus_per_trial=0,
    )


@pytest.fixture
def recorder(setup: SearchSetup) -> Recorder:
    """A recorder over a new ledger."""
    facts = DataFacts(fingerprint="f" * 64, synthetic=True, classes=("a", "b"), counts={"train": 4, "validation": 2, "test": 2})
    space = load_space("freeze_grid")
    strategy = Strategy.for_space(space)
    manifest = new_manifest(
        SearchFacts(space=space, strategy=strategy, sampler_options={}, run=setup.run),
        name="run",
        arguments=[],
        data=facts,
        weights={},
    )
    return Recorder(Ledger.create(setup.run_root, manifest), setup, RESOURCES)


@pytest.fixture
def trial() -> LooksLikeATrial:
    """A trial of one cell."""
    point = {"model": "resnet18", "frozen_blocks": 2, "weights": "random", "max_epochs": 4}
    config = {"cell": "resnet18 frozen_blocks=2", "point": point, "repeat": 0}
    return LooksLikeATrial(trial_id="ray1", config={**config, "known_epochs": 0, "proposed_order": 1})
