"""Runs whose networks are trained and tested in this process, over image files of every kind; then all but the run is gone."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.models import get_model

from tune_lung.config import Protocol, RunConfig
from tune_lung.data.cache import Cache
from tune_lung.data.scan import ImageChoice
from tune_lung.models.weights import RANDOM_WEIGHTS, WeightsSource, resolve_weights
from tune_lung.results.ledger import Ledger
from tune_lung.results.manifest import DataFacts, SearchFacts, new_manifest
from tune_lung.space import Arm, SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.training.fit import fit
from tune_lung.tuning.plan import DataRequest, SearchSetup
from tune_lung.tuning.sealed_evaluation import predict_on_test

from tests.data.conftest import texture
from tests.data.stored_forms import png

NUM_OF_CLASS = 60
SIZE = 32
CNN = {"model": "cnn", "channels": (4, 8), "kernel_sizes": (3, 3), "padding": "same"}
RESNET = {"model": "resnet18", "weights": "random"}
POINTS: dict[str, dict[str, Any]] = {
    "cnn": CNN,
    "cnn derived": {"model": "cnn", "depth": 3, "base_channels": 4},
    "cnn lungs": CNN | {"input": "lungs"},
    "cnn background bf16": CNN | {"input": "background", "precision": "bf16"},
    "resnet18 k=0": RESNET,
    "resnet18 k=2": RESNET | {"frozen_blocks": 2},
    "resnet18 k=4": RESNET | {"frozen_blocks": 4},
    "resnet18 k=2 bf16": RESNET | {"frozen_blocks": 2, "precision": "bf16"},
    "resnet18 k=4 file": RESNET | {"weights": "file", "frozen_blocks": 4},
    "resnet18 k=1 file lungs": RESNET | {"weights": "file", "frozen_blocks": 1, "input": "lungs"},
    "convnext_tiny k=3": {"model": "convnext_tiny", "weights": "random", "frozen_blocks": 3},
}
"""What is trained, by cell."""
UNDER_PUBLISHED = ("cnn", "cnn lungs", "resnet18 k=2", "resnet18 k=2 bf16", "resnet18 k=4 file")
"""Those of them that are trained under the other protocol too, which has one normalisation and no frozen prefix."""
SCORES = {"cnn": (0.5, 0.9), "resnet18 k=2": (0.8, 0.6)}
"""What the repeats of some cells score; every other cell has one trial, of 0.1."""


@dataclass(frozen=True)
class KeptRun:
    """A run by itself: its images, cache and weights files are gone."""

    root: Path
    """Its folder, copied from where it was written."""
    images: pd.DataFrame
    """By image id: `path` and `mask` of copies of the test images, under other names."""

    def trial_of(self, cell: str, repeat: int = 0) -> str:
        """Name a trial by its cell."""
        trials = pd.read_parquet(self.root / "trials")
        return str(trials.loc[(trials["cell"] == cell) & (trials["repeat"] == repeat), "trial_id"].item())

    def told(self, trial_id: str) -> pd.DataFrame:
        """What the ledger holds of a trial's answers on test, in its order."""
        predictions = pd.read_parquet(self.root / "predictions")
        return predictions[predictions["trial_id"] == trial_id].set_index("image_id")


def write_image(folder: Path, name: str, number: int) -> None:
    """Write an image and its mask: grey, colour, lying on its side, and dark and bright films of 12 bits, in turn."""
    picture = texture(number, 60).crop((0, 0, 60, 48))
    if number % 4 == 0:
        picture.save(folder / "images" / f"{name}.png")
    elif number % 4 == 1:
        picture.convert("RGB").save(folder / "images" / f"{name}.png")
    elif number % 4 == 2:
        turned = Image.Exif()
        turned[0x0112] = 6
        picture.save(folder / "images" / f"{name}.jpg", quality=95, exif=turned)
    else:
        values = np.asarray(picture).astype(np.int64) * (16 if number % 8 == 3 else 5)
        (folder / "images" / f"{name}.png").write_bytes(png(values))
    lungs = np.zeros((40, 40), np.uint8)
    lungs[5:30, 8 + number % 8 : 32] = 255
    Image.fromarray(lungs).save(folder / "masks" / f"{name}.png")


def write_folder(root: Path) -> Path:
    for label, name in enumerate(("COVID", "Normal")):
        for part in ("images", "masks"):
            (root / name / part).mkdir(parents=True)
        for number in range(1, NUM_OF_CLASS + 1):
            write_image(root / name, f"{name}-{number}", 1000 * label + number)
    return root


def tested_run(folder: Path, protocol: Protocol) -> KeptRun:
    """Train and test every point on one core, write the run, copy it, and remove everything else."""
    made = folder / "made"
    run = RunConfig(image_size=SIZE, protocol=protocol, select_by="val_macro_recall")
    data = DataRequest(
        choice=ImageChoice(strict_data=True),
        root=write_folder(made / "data"),
        run=run,
        cache_root=made / "cache",
        cache_size_bytes=10**9,
    )
    (made / "weights").mkdir()
    torch.save(get_model("resnet18", weights=None).state_dict(), made / "weights" / "resnet18-ours.pth")
    sources = {"file": resolve_weights(str(made / "weights"), ["resnet18"])["resnet18"], "random": RANDOM_WEIGHTS}
    with data.open_cache() as cache:
        prepared = data.prepare(cache)
        setup = SearchSetup(
            run=run,
            run_root=made / "run",
            data=data,
            store=prepared.store,
            data_fingerprint=prepared.fingerprint,
            weights={},
            cpus_per_trial=1,
            gpus_per_trial=0,
        )
        facts = DataFacts(
            fingerprint=prepared.fingerprint,
            synthetic=False,
            classes=prepared.classes,
            counts=dict.fromkeys(("train", "validation", "test"), 1),
            pixels=prepared.pixels,
        )
        space = SearchSpace(arms=tuple(Arm(**point) for point in POINTS.values()), name="all_kinds")
        manifest = new_manifest(
            SearchFacts(space=space, strategy=Strategy.for_space(space), sampler_options={}, run=run),
            name="run",
            arguments=[],
            data=facts,
            weights={},
        )
        ledger = Ledger.create(setup.run_root, manifest)
        for cell in POINTS if protocol == "strict" else UNDER_PUBLISHED:
            for repeat, score in enumerate(SCORES.get(cell, (0.1,))):
                _train_and_test(setup, ledger, cache, sources, cell=cell, point=POINTS[cell], repeat=repeat, score=score)
    images = prepared.images[prepared.images["split"] == "test"].set_index("image_id")
    copies = folder / "copies"
    copies.mkdir()
    rows = {}
    for number, (image_id, path) in enumerate(images["path"].items()):
        image, mask = copies / f"new{number}{Path(path).suffix}", copies / f"new{number}-lungs.png"
        shutil.copy(made / "data" / path, image)
        shutil.copy((made / "data" / path).parents[1] / "masks" / f"{Path(path).stem}.png", mask)
        rows[image_id] = {"path": str(image), "mask": str(mask)}
    root = Path(shutil.copytree(made / "run", folder / "elsewhere" / "copied"))
    shutil.rmtree(made)
    return KeptRun(root, pd.DataFrame.from_dict(rows, orient="index"))


def _train_and_test(
    setup: SearchSetup,
    ledger: Ledger,
    cache: Cache,
    sources: dict[str, WeightsSource],
    *,
    cell: str,
    point: dict[str, Any],
    repeat: int,
    score: float,
) -> None:
    if "weights" in point:
        setup = replace(setup, weights={point["model"]: sources[point["weights"]]})
    point = point | {"max_epochs": 1, "batch_size": 16, "learning_rate": 0.002}
    plan = setup.plan_trial(cell, point, repeat)
    job = setup.training_job(plan, store=setup.open_store(), device=torch.device("cpu"), cache=cache)
    *_, last = fit(job, setup.checkpoints(plan))
    row = {"trial_id": plan.trial_id, "point_id": plan.point_id, "cell": cell, "repeat": repeat, **plan.trial.columns()}
    ends = {"status": "completed", "epochs_run": 1, "best_epoch": last.best_epoch, "selection_score": score}
    ledger.write_trial(row | ends)
    ledger.write_predictions(plan.trial_id, predict_on_test(plan, setup, best_epoch=last.best_epoch))


@pytest.fixture(scope="session")
def strict_run(tmp_path_factory: pytest.TempPathFactory) -> KeptRun:
    """Of the protocol `strict`; to be read only."""
    return _on_one_thread(lambda: tested_run(tmp_path_factory.mktemp("strict"), "strict"))


@pytest.fixture(scope="session")
def published_run(tmp_path_factory: pytest.TempPathFactory) -> KeptRun:
    """Of the protocol `published`; to be read only."""
    return _on_one_thread(lambda: tested_run(tmp_path_factory.mktemp("published"), "published"))


def _on_one_thread(make: Callable[[], KeptRun]) -> KeptRun:
    threads = torch.get_num_threads()
    try:
        return make()
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def copied(strict_run: KeptRun, tmp_path: Path) -> KeptRun:
    """A copy of the strict run, to be changed."""
    return replace(strict_run, root=Path(shutil.copytree(strict_run.root, tmp_path / "copied")))


def change_manifest(root: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrite a run's manifest, and its copy, without a digest."""
    manifest = {name: value for name, value in json.loads((root / "run.json").read_text()).items() if name != "sha256"}
    for name in ("run.json", ".run.json.copy"):
        (root / name).write_text(json.dumps(change(manifest)))
