"""One search: Optuna proposes, Ray trains, the recorder writes; then the sealed evaluation."""

import tempfile
from typing import Any

from ray import tune
from rich.console import Console

from tune_lung.evaluation.metrics import confusion_matrix, macro_recall, micro_recall
from tune_lung.results.ledger import Ledger
from tune_lung.results.manifest import with_test_opening
from tune_lung.results.schema import TrialStatus, probability_column
from tune_lung.space import SearchSpace
from tune_lung.tuning.cluster import Resources
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.progress import ProgressView
from tune_lung.tuning.recorder import Recorder, TrialRecord
from tune_lung.tuning.sampler import CellSearch
from tune_lung.tuning.sealed_test import evaluate_sealed
from tune_lung.tuning.trainable import LungTrial


def run_search(
    space: SearchSpace, setup: SearchSetup, resources: Resources, ledger: Ledger, *, console: Console
) -> list[TrialRecord]:
    """Train every cell of a space and evaluate each on the test images.

    Args:
        space: What is tried.
        setup: What all trials share.
        resources: What each trial gets.
        ledger: Where everything is written as it happens.
        console: Where progress is shown.

    Returns:
        Every trial's record.

    Raises:
        KeyboardInterrupt: The user stopped the search; the ledger holds all that was reported.
    """
    cells = space.cells()
    recorder = Recorder(ledger, setup, resources)
    view = ProgressView(recorder, num_trials=len(cells), max_concurrent=resources.max_concurrent, console=console)
    try:
        with tempfile.TemporaryDirectory(prefix="tune_lung-ray-") as working_state, view:
            _tuner(space, setup, resources, [recorder, view], working_state).fit()
    finally:
        recorder.flush()
    _evaluate(recorder, setup, resources, ledger)
    return recorder.records


def _tuner(
    space: SearchSpace, setup: SearchSetup, resources: Resources, callbacks: list[tune.Callback], working_state: str
) -> tune.Tuner:
    cells = space.cells()
    trainable = tune.with_resources(
        tune.with_parameters(LungTrial, setup=setup), {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}
    )
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=CellSearch(cells, seed=setup.run.seed),
            num_samples=len(cells),
            max_concurrent_trials=resources.max_concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=working_state,
            callbacks=callbacks,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # checkpoints are ours
        ),
    )


def _evaluate(recorder: Recorder, setup: SearchSetup, resources: Resources, ledger: Ledger) -> None:
    """Open the test images once for each completed cell's best point, and write down that they were opened."""
    finished = [record.plan for record in recorder.records if record.status is TrialStatus.COMPLETED]
    if not finished:
        return
    ledger.write_manifest(with_test_opening(ledger.read_manifest(), [plan.trial_id for plan in finished]))
    for plan, predictions in evaluate_sealed(finished, setup, resources):
        ledger.write_predictions(plan.trial_id, predictions)
        recorder.add_test_scores(plan.trial_id, _test_scores(predictions, ledger.classes))


def _test_scores(predictions: Any, classes: tuple[str, ...]) -> dict[str, float]:
    labels_N = predictions["label"].map({name: index for index, name in enumerate(classes)}).to_numpy()
    answers_N = predictions[[probability_column(name) for name in classes]].to_numpy().argmax(axis=1)
    confusion_KK = confusion_matrix(labels_N, answers_N, num_classes=len(classes))
    return {"test_macro_recall": macro_recall(confusion_KK), "test_micro_recall": micro_recall(confusion_KK)}
