"""A made-up run of a sampled space: points as our studies draw them, numbers made up, written by the search's own ledger."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tune_lung.config import RunConfig
from tune_lung.models.weights import RANDOM_WEIGHTS
from tune_lung.results.ledger import Ledger
from tune_lung.results.manifest import DataFacts, SearchFacts, ended, new_manifest
from tune_lung.results.schema import StopReason, TrialStatus
from tune_lung.space import Arm, Choice, Grid, IntRange, LogUniform, SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.tuning.plan import DataRequest, SearchSetup, TrialPlan
from tune_lung.tuning.proposals.studies import Studies, outcome_of, outcome_of_repeats

RATES = LogUniform(1e-4, 1e-2)
TUNED = SearchSpace(
    arms=(
        Arm(model="cnn", channels=Choice((4, 8), (8, 16)), kernel_sizes=(3, 3), padding="same", learning_rate=RATES),
        Arm(
            model=Grid("resnet18", "resnet34"),
            frozen_blocks=IntRange(0, 4),
            batch_size=Choice(16, 32),
            learning_rate=RATES,
            weights="random",
        ),
    ),
    name="tuned",
)
PREDICTIONS = pd.DataFrame({"image_id": ["1", "2"], "label": ["a", "b"], "p_a": [0.75, 0.5], "p_b": [0.25, 0.5]})
ENDS = (
    (TrialStatus.COMPLETED, StopReason.PATIENCE),
    (TrialStatus.STOPPED, StopReason.ASHA),
    (TrialStatus.COMPLETED, StopReason.MAX_EPOCHS),
    (TrialStatus.FAILED, StopReason.FAILURE),
)
"""How trials end, in turn."""
BEGINNING = datetime(2026, 3, 1, 12, tzinfo=UTC)
"""When the first trial starts; a minute later the next."""
TRIAL_TIME = timedelta(seconds=20)


def setup_of(folder: Path, **changes: Any) -> SearchSetup:
    """What the trials of a run with random weights share."""
    run = RunConfig(image_size=64)
    setup = SearchSetup(
        run=run,
        run_root=folder / "run",
        data=DataRequest(root=None, run=run, cache_root=folder / "cache", cache_size_bytes=0),
        store=folder / "store",
        data_fingerprint="f" * 64,
        weights={"resnet18": RANDOM_WEIGHTS, "resnet34": RANDOM_WEIGHTS},
        cpus_per_trial=1,
        gpus_per_trial=0,
    )
    return replace(setup, **changes)


def write_tuned_run(
    root: Path, *, space: SearchSpace = TUNED, setup: SearchSetup | None = None, still_running: int = 0, **strategy: Any
) -> Path:
    """Write a run as the search would have, ended but for some trials.

    Args:
        root: The run's folder.
        space: What was tried.
        setup: What its trials share.
        still_running: Trials, the last ones, that are left running.
        **strategy: Of `Strategy.for_space`; 8 samples unless said.
    """
    setup = setup or setup_of(root.parent)
    chosen = Strategy.for_space(space, **({"samples": 8} | strategy))
    ledger = Ledger.create(root, _manifest(root.name, space, chosen, setup))
    studies = Studies(space, chosen, seed=setup.run.seed)
    num_running_from = chosen.num_trials(space) - still_running
    number = 0
    while (proposal := studies.propose()) is not None:
        outcomes = []
        for repeat in range(chosen.repeats):
            plan = setup.plan_trial(proposal.cell.name, proposal.point, repeat)
            row, epochs = _trial(plan, number, is_running=number >= num_running_from)
            ledger.write_trial(row)
            ledger.write_epochs(plan.trial_id, epochs)
            ledger.write_validation_predictions(plan.trial_id, PREDICTIONS)
            values = tuple(float(row[one.column]) for one in chosen.objectives)
            status = row["status"] if row["status"] != TrialStatus.RUNNING else TrialStatus.FAILED
            outcomes.append(outcome_of(status, values))
            number += 1
        studies.tell(proposal.number, *outcome_of_repeats(outcomes))
    ledger.write_manifest(ended(ledger.read_manifest(), "completed"))
    return root


def _manifest(name: str, space: SearchSpace, strategy: Strategy, setup: SearchSetup) -> dict:
    counts = {"train": 8, "validation": 4, "test": 4}
    return new_manifest(
        SearchFacts(space=space, strategy=strategy, sampler_options={}, run=setup.run),
        name=name,
        arguments=["--space", space.name],
        data=DataFacts(fingerprint=setup.data_fingerprint, synthetic=True, classes=("a", "b"), counts=counts),
        weights={},
    )


def _trial(plan: TrialPlan, number: int, *, is_running: bool) -> tuple[dict, list[dict]]:
    status, reason = (TrialStatus.RUNNING, None) if is_running else ENDS[number % len(ENDS)]
    scores = {1: 0.25, 2: 0.3 + number / 100, 3: 0.28}
    kept = {"selection_score": scores[2], "val_loss": 1.5, "val_macro_recall": scores[2] + 0.001, "val_micro_recall": 0.5}
    epochs = [
        {"epoch": epoch, "selection_score": score, "train_loss": 2.0, "epoch_seconds": 0.125} for epoch, score in scores.items()
    ]
    started = BEGINNING + timedelta(minutes=number)
    row = {
        "trial_id": plan.trial_id,
        "point_id": plan.point_id,
        "cell": plan.cell,
        "repeat": plan.repeat,
        **plan.trial.columns(),
        "trial_seed": plan.trial_seed,
        "status": status,
        "stop_reason": reason,
        "failure": "It broke." if status is TrialStatus.FAILED else None,
        "attempts": 1,
        "proposed_order": 2 * number + 1,
        "ended_order": None if is_running else 2 * number + 2,
        "started": started,
        "ended": None if is_running else started + TRIAL_TIME,
        "epochs_run": 3,
        "best_epoch": 2,
        **kept,
        "total_params": 1000 + number,
        "trainable_params": 1000 - number,
        "epoch_seconds_mean": 0.125,
        "prefix_cached": False,
        "device": "cpu",
        "cpus": 1.0,
        "gpus": 0.0,
        "concurrent_trials": 1,
        "slot": 0,
    }
    return row, epochs


def as_version_2(root: Path) -> Path:
    """Make a run what version 2 would have left: tables without moments and slots, and a wish for how many ran at once."""
    for table, columns in {"trials": ["started", "ended", "slot"], "epochs": ["ended"]}.items():
        for path in (root / table).glob("*.parquet"):
            content = pq.read_table(path).drop_columns(columns)
            if table == "trials":
                wishes = pa.array([64] * len(content), pa.int32())
                content = content.set_column(content.column_names.index("concurrent_trials"), "concurrent_trials", wishes)
            pq.write_table(content.replace_schema_metadata({"tune_lung_schema_version": "2"}), path)
    ledger = Ledger(root)
    ledger.write_manifest(ledger.read_manifest() | {"schema_version": 2})
    return root
