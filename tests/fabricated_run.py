"""A made-up run, written by the ledger that real runs are written by."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tune_lung.config import RunConfig, TrialConfig, point_id
from tune_lung.families.registry import family_of
from tune_lung.results.ledger import Ledger
from tune_lung.results.manifest import DataFacts, SearchFacts, ended, new_manifest, with_test_opening
from tune_lung.results.ranking import best_points, pareto_front, point_means
from tune_lung.results.schema import StopReason, TrialStatus, probability_column
from tune_lung.space import Arm, Cell, Choice, Grid, IntRange, LogUniform, SampledAxis, SearchSpace
from tune_lung.strategy import Strategy

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
FREEZE_GRID = SearchSpace(
    arms=(Arm(model="cnn"), Arm(model=Grid("resnet18", "resnet34"), frozen_blocks=Grid(0, 1, 2, 3, 4))), name="freeze_grid"
)
CNN_ONLY = SearchSpace(arms=(Arm(model="cnn"),), name="cnn_only")
RATES = LogUniform(1e-4, 1e-2)
SAMPLED = SearchSpace(
    arms=(
        Arm(model="cnn", depth=IntRange(2, 6), base_channels=IntRange(8, 48, step=8), learning_rate=RATES),
        Arm(
            model=Grid("resnet18", "resnet34"),
            frozen_blocks=IntRange(0, 4),
            learning_rate=RATES,
            batch_size=Choice(16, 32, 64, 128),
            weight_decay=LogUniform(1e-6, 1e-2),
        ),
    ),
    name="sampled",
)
RESNETS_ONLY = SearchSpace(arms=(Arm(model=Grid("resnet18"), frozen_blocks=Grid(0, 1, 2, 3, 4)),), name="resnets_only")

TRAINABLE_PARAMS = {
    "cnn": (1_605_316,),
    "resnet18": (11_178_564, 11_021_060, 10_495_492, 8_395_780, 2_052),
    "resnet34": (21_286_724, 21_055_236, 19_938_820, 13_116_420, 2_052),
}
RECALLS = {
    "cnn": (0.86,),
    "resnet18": (0.93, 0.94, 0.92, 0.90, 0.78),
    "resnet34": (0.94, 0.95, 0.93, 0.89, 0.74),
}
SECONDS = {"cnn": (13.1,), "resnet18": (14.1, 11.9, 10.2, 7.5, 0.4), "resnet34": (27.0, 23.1, 18.4, 10.9, 0.5)}


def write_fabricated_run(
    root: Path,
    *,
    space: SearchSpace = FREEZE_GRID,
    synthetic: bool = True,
    weights: str | None = None,
    recall_shift: float = 0.0,
    num_test: int = 134,
    max_epochs: int = 100,
    failed: Sequence[str] = (),
    missing: Sequence[str] = (),
    cached_from: int = 5,
    seed: int = 0,
) -> Path:
    """Write a run as the search would have.

    Args:
        root: The run's folder.
        space: Its cells.
        synthetic: Whether it says that its images are phantoms.
        weights: Name of a weights file; None for a random start.
        recall_shift: Added to every made-up recall.
        num_test: Test images.
        max_epochs: Epochs that no trial exceeds; those that reach it are not ended by patience.
        failed: Names of cells whose trial fails before its first epoch.
        missing: Names of cells that never started.
        cached_from: Frozen blocks from which trials train on stored features.
        seed: Of the made-up numbers.

    Returns:
        The run's folder.
    """
    generator = np.random.default_rng(seed)
    images = _images(num_test)
    ledger = Ledger.create(root, _manifest(root.name, space, images, synthetic=synthetic, weights=weights, seed=seed))
    ledger.write_images(images)
    tested = []
    for cell in space.cells():
        if cell.name in missing:
            continue
        row = _identity(cell, max_epochs=max_epochs, weights=weights)
        if cell.name in failed:
            ledger.write_trial(
                row
                | {
                    "status": TrialStatus.FAILED,
                    "stop_reason": StopReason.FAILURE,
                    "failure": "The train loss is nan at epoch 1.",
                }
            )
            continue
        recall = _of_cell(RECALLS, row) + recall_shift
        epochs = _epochs(recall, _of_cell(SECONDS, row), max_epochs=max_epochs, generator=generator)
        predictions = _predictions(images[images["split"] == "test"], recall, generator)
        ledger.write_epochs(row["trial_id"], epochs)
        ledger.write_predictions(row["trial_id"], predictions)
        ledger.write_validation_predictions(
            row["trial_id"], _predictions(images[images["split"] == "validation"], recall, generator)
        )
        cached = row["frozen_blocks"] is not None and row["frozen_blocks"] >= cached_from
        ledger.write_trial(row | _outcome(row, epochs, max_epochs=max_epochs, cached=cached) | _test_scores(predictions))
        tested.append(row["trial_id"])
    ledger.write_manifest(ended(with_test_opening(ledger.read_manifest(), tested), "completed"))
    return root


def write_sampled_run(
    root: Path,
    *,
    space: SearchSpace = SAMPLED,
    synthetic: bool = True,
    num_failed: int = 2,
    num_stopped: int = 0,
    num_running: int = 0,
    num_test: int = 134,
    seed: int = 0,
    **strategy: Any,
) -> Path:
    """Write a run of any space and strategy, its points drawn at random and its best ones tested.

    Args:
        root: The run's folder.
        space: Where points are drawn from.
        synthetic: Whether it says that its images are phantoms.
        num_failed: Trials that fail before their first epoch.
        num_stopped: Trials that the scheduler stops.
        num_running: Trials that have not ended.
        num_test: Test images.
        seed: Of the points and the made-up numbers.
        **strategy: Of `Strategy.for_space`; 14 samples unless said.

    Returns:
        The run's folder.
    """
    generator = np.random.default_rng(seed)
    images = _images(num_test)
    chosen = Strategy.for_space(space, **({} if space.is_grid else {"samples": 14}) | strategy)
    manifest = _manifest(root.name, space, images, synthetic=synthetic, weights=None, seed=seed, strategy=chosen)
    ledger = Ledger.create(root, manifest)
    ledger.write_images(images)
    points = [
        _identity(cell, max_epochs=100, weights=None, values=values)
        for cell in space.cells()
        for values in _points(cell, chosen, generator)
    ]
    rows = [point | {"repeat": repeat} for point in points for repeat in range(chosen.repeats)]
    ends = ["failed"] * num_failed + ["stopped"] * num_stopped + ["running"] * num_running
    end_of = dict(zip(generator.permutation(len(rows)).tolist(), ends, strict=False))
    for number, row in enumerate(rows):
        row["trial_id"] = f"trial{number:04}"  # budget and seed play no part in a point's own id
        row |= _sampled_outcome(row, TrialStatus(end_of.get(number, "completed")), generator)
    trials = pd.DataFrame(rows)
    tested = set(best_points(trials)["point_id"])
    if not chosen.has_one_objective:
        tested |= set(pareto_front(point_means(trials, chosen.objectives), chosen.objectives)["point_id"])
    for row in rows:
        if row["point_id"] in tested and row["status"] in (TrialStatus.COMPLETED, TrialStatus.STOPPED):
            predictions = _predictions(images[images["split"] == "test"], row["val_macro_recall"] - 0.01, generator)
            ledger.write_predictions(row["trial_id"], predictions)
            row |= _test_scores(predictions)
        ledger.write_trial(row)
    ledger.write_manifest(ended(ledger.read_manifest(), "interrupted" if num_running else "completed"))
    return root


def _points(cell: Cell, strategy: Strategy, generator: np.random.Generator) -> list[dict]:
    if strategy.samples is None:
        return list(cell.all_values() or [{}])
    drawn = range(strategy.samples)
    return [{name: _draw(axis, generator) for name, axis in cell.axes.items()} for _ in drawn]


def _draw(axis: SampledAxis, generator: np.random.Generator) -> Any:
    if (values := axis.all_values()) is not None:
        return values[generator.integers(len(values))]
    if isinstance(axis, LogUniform):
        return float(np.exp(generator.uniform(np.log(axis.low), np.log(axis.high))))
    return float(generator.uniform(axis.low, axis.high))


def _sampled_outcome(row: dict, status: TrialStatus, generator: np.random.Generator) -> dict:
    if status is TrialStatus.FAILED:
        return {"status": status, "stop_reason": StopReason.FAILURE, "failure": "The train loss is nan at epoch 1."}
    if row["model"] == "cnn":
        params = 40_000 * (row["depth"] or 5) * (row["base_channels"] or 32)
        recall, seconds = 0.62 + 0.035 * np.log(params / 40_000), params / 4e5
    else:
        params, recall, seconds = (_of_cell(values, row) for values in (TRAINABLE_PARAMS, RECALLS, SECONDS))
    miss = abs(np.log10(row["learning_rate"] or 1e-3) + 3)
    recall = float(recall - 0.12 * miss + generator.normal(0, 0.012))
    reasons = {TrialStatus.COMPLETED: StopReason.PATIENCE, TrialStatus.STOPPED: StopReason.ASHA}
    best = int(generator.integers(5, 60))
    return {
        "status": status,
        "stop_reason": reasons.get(status),
        "epochs_run": best + 20,
        "best_epoch": best,
        "selection_score": recall - 1e-5,
        "val_loss": 1.6 - recall,
        "val_macro_recall": recall,
        "val_micro_recall": recall + 0.01,
        "total_params": TRAINABLE_PARAMS.get(row["model"], [params])[0] if row["model"] != "cnn" else params,
        "trainable_params": params,
        "mult_adds": 90 * params,
        "epoch_seconds_mean": seconds * float(generator.normal(1, 0.05)),
        "prefix_cached": False,
        "device": "cpu",
    }


def _manifest(
    name: str,
    space: SearchSpace,
    images: pd.DataFrame,
    *,
    synthetic: bool,
    weights: str | None,
    seed: int,
    strategy: Strategy | None = None,
) -> dict:
    source = {"kind": "file" if weights else "random", "name": weights or "random", "sha256": "ab" * 32 if weights else None}
    counts = {split: int((images["split"] == split).sum()) for split in ("train", "validation", "test")}
    return new_manifest(
        SearchFacts(space=space, strategy=strategy or Strategy.for_space(space), sampler_options={}, run=RunConfig(seed=seed)),
        name=name,
        arguments=["--space", space.name],
        data=DataFacts(fingerprint="c0ffee" * 10, synthetic=synthetic, classes=CLASSES, counts=counts),
        weights=dict.fromkeys(space.backbones(), source),
    )


def _images(num_test: int) -> pd.DataFrame:
    shares = (0.17, 0.28, 0.48, 0.07)
    rows = []
    for class_name, share in zip(CLASSES, shares, strict=True):
        for split, number in (("train", 8 * num_test), ("validation", num_test), ("test", num_test)):
            for index in range(max(1, round(share * number))):
                image_id = f"{class_name}/{split}-{index}"
                rows.append(
                    {"image_id": image_id, "path": f"{image_id}.png", "class": class_name, "split": split, "group": image_id}
                )
    rows.append({"image_id": "bad", "path": "COVID/bad.png", "class": "COVID", "excluded_reason": "truncated"})
    return pd.DataFrame(rows)


def _identity(cell: Cell, *, max_epochs: int, weights: str | None, values: Mapping[str, Any] | None = None) -> dict:
    point = cell.with_values(values or {}) | (
        {"weights": "file" if weights else "random"} if family_of(str(cell.point["model"])).takes_weights else {}
    )
    has_epochs = family_of(str(cell.point["model"])).has_epochs
    trial = TrialConfig.from_point(point | ({"max_epochs": max_epochs} if has_epochs else {}))
    takes_weights = family_of(trial.network.model).takes_weights
    own_point = point_id(trial, RunConfig(), weights_sha256=None, data_fingerprint="c0ffee")
    return {
        "trial_id": own_point,
        "point_id": own_point,
        "cell": cell.name,
        "repeat": 0,
        **trial.columns(),
        "weights_name": (weights or "random") if takes_weights else None,
        "weights_sha256": "ab" * 32 if takes_weights and weights else None,
        "trial_seed": 2**62,
        "attempts": 1,
    }


def _of_cell(values: dict[str, tuple], row: dict) -> float:
    return values.get(row["model"], values["resnet34"])[row["frozen_blocks"] or 0]


def _epochs(recall: float, seconds: float, *, max_epochs: int, generator: np.random.Generator) -> list[dict]:
    best = int(generator.integers(5, 80))
    number = min(best + 20, max_epochs)
    rows = []
    for epoch in range(1, number + 1):
        score = recall - 0.2 * abs(epoch - best) / best
        rows.append(
            {
                "epoch": epoch,
                "train_loss": 1.3 / epoch,
                "val_loss": 1.4 / epoch + 0.1,
                "val_macro_recall": score,
                "val_micro_recall": score + 0.01,
                "selection_score": score - 1e-5,
                "epoch_seconds": seconds * float(generator.normal(1, 0.02)),
                "validation_seconds": 0.3,
                "images_per_second": 1080 / seconds,
                "learning_rate": 5e-4,
            }
        )
    return rows


def _outcome(row: dict, epochs: list[dict], *, max_epochs: int, cached: bool) -> dict:
    best = max(epochs, key=lambda epoch: epoch["selection_score"])
    params = _of_cell(TRAINABLE_PARAMS, row)
    later = [epoch["epoch_seconds"] for epoch in epochs[1:]]
    return {
        "status": TrialStatus.COMPLETED,
        "stop_reason": StopReason.MAX_EPOCHS if len(epochs) == max_epochs else StopReason.PATIENCE,
        "epochs_run": len(epochs),
        "best_epoch": best["epoch"],
        **{name: best[name] for name in ("selection_score", "val_loss", "val_macro_recall", "val_micro_recall")},
        "total_params": TRAINABLE_PARAMS[row["model"]][0],
        "trainable_params": params,
        "mult_adds": 600_000_000,
        "epoch_seconds_mean": sum(later) / len(later) if later else None,
        "prefix_seconds": 12.5 if cached else None,
        "prefix_cached": cached,
        "cpus": 1.0,
        "gpus": 0.0,
        "concurrent_trials": 2,
        "device": "cpu",
    }


def _predictions(images: pd.DataFrame, recall: float, generator: np.random.Generator) -> pd.DataFrame:
    labels_N = images["class"].map(CLASSES.index).to_numpy()
    is_right_N = generator.random(len(labels_N)) < min(recall, 1.0)
    answers_N = np.where(is_right_N, labels_N, (labels_N + generator.integers(1, 4, len(labels_N))) % 4)
    probabilities_NK = np.full((len(labels_N), 4), 0.1)
    probabilities_NK[np.arange(len(labels_N)), answers_N] = 0.7
    columns = {probability_column(name): probabilities_NK[:, index] for index, name in enumerate(CLASSES)}
    return pd.DataFrame({"image_id": images["image_id"].to_numpy(), "label": images["class"].to_numpy(), **columns})


def _test_scores(predictions: pd.DataFrame) -> dict[str, float]:
    answers = np.asarray(CLASSES)[predictions[[probability_column(name) for name in CLASSES]].to_numpy().argmax(axis=1)]
    is_right = predictions["label"].to_numpy() == answers
    recalls = [is_right[predictions["label"] == name].mean() for name in CLASSES]
    return {"test_macro_recall": float(np.mean(recalls)), "test_micro_recall": float(is_right.mean())}
