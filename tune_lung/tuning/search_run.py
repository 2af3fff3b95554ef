"""One search: studies propose, Ray trains, a rule stops, the recorder writes; then the sealed evaluation."""

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from ray import tune
from ray.tune import Callback
from rich.console import Console

from tune_lung.evaluation.metrics import confusion_matrix, macro_recall, micro_recall
from tune_lung.results.ledger import Ledger
from tune_lung.results.manifest import with_test_opening
from tune_lung.results.ranking import best_points, pareto_front, point_means
from tune_lung.results.schema import TimePart, TrialStatus, probability_column
from tune_lung.space import SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.tuning.cell_order import search_order
from tune_lung.tuning.cluster import Resources
from tune_lung.tuning.plan import SearchSetup, TrialPlan
from tune_lung.tuning.proposals.studies import KnownTrial, Studies
from tune_lung.tuning.recorder import Recorder, TrialRecord
from tune_lung.tuning.sampler import StudySearch
from tune_lung.tuning.scheduler import RungScheduler, groups_of, rule_of
from tune_lung.tuning.sealed_test import evaluate_sealed
from tune_lung.tuning.trainable import LungTrial
from tune_lung.tuning.watching.progress import ProgressView
from tune_lung.tuning.watching.time_left import TimeLeft, work_of_cells
from tune_lung.tuning.watching.trackers import make_trackers


def run_search(
    space: SearchSpace,
    strategy: Strategy,
    setup: SearchSetup,
    resources: Resources,
    ledger: Ledger,
    *,
    console: Console,
    known: Iterable[KnownTrial] = (),
    trackers: Sequence[str] = (),
    before: Mapping[TimePart, float] | None = None,
) -> list[TrialRecord]:
    """Search a space and evaluate each cell's best point on the test images.

    Args:
        space: What is tried.
        strategy: Who proposes, who is stopped, how much is spent.
        setup: What all trials share.
        resources: What each trial gets.
        ledger: Where everything is written as it happens.
        console: Where progress is shown.
        known: Finished trials of earlier searches, to learn from.
        trackers: Names of other tools that are told of the trials, from `make_trackers`.
        before: Seconds that the run took before this call, for its profile.

    Returns:
        Every trial's record.

    Raises:
        InputError: A tracker cannot be opened; nothing was trained.
        KeyboardInterrupt: The user stopped the search; the ledger holds all that was reported.
    """
    recorder = Recorder(ledger, setup, resources)
    cells = search_order(space, strategy, setup.run, num_classes=len(ledger.classes))
    studies = Studies(space, strategy, seed=setup.run.seed, known=known, cells=cells)
    view = ProgressView(
        recorder,
        space,
        strategy,
        time_left=TimeLeft(cells, strategy, work=work_of_cells(space, setup, num_classes=len(ledger.classes))),
        max_concurrent=resources.max_concurrent,
        console=console,
    )
    opened = make_trackers(trackers, recorder, setup.run_root)
    started = time.monotonic()
    try:
        with view:
            train(space, strategy, studies, setup, resources, recorder, callbacks=[view, *opened])
    finally:
        recorder.flush()
    trained = time.monotonic()
    _evaluate(recorder, strategy, setup, resources, ledger)
    if setup.profile:
        slot_seconds = resources.max_concurrent * (trained - started)
        own = {TimePart.IDLE: max(0.0, slot_seconds - recorder.busy_seconds()), TimePart.EVALUATION: time.monotonic() - trained}
        ledger.write_run_profile({"part": part, "seconds": seconds} for part, seconds in {**(before or {}), **own}.items())
    return recorder.records


def train(
    space: SearchSpace,
    strategy: Strategy,
    studies: Studies,
    setup: SearchSetup,
    resources: Resources,
    recorder: Recorder,
    *,
    callbacks: Sequence[Callback] = (),
    trainable: type[tune.Trainable] = LungTrial,
) -> None:
    """Let Ray train what the studies propose, until nothing is left to propose.

    Args:
        space: What is tried.
        strategy: Who proposes, who is stopped, how much is spent.
        studies: Propose points and are told of them.
        setup: What all trials share.
        resources: What each trial gets.
        recorder: Writes the trials down; it hears of everything before the other callbacks.
        callbacks: Who else hears of everything.
        trainable: What trains one trial; it takes `setup`.
    """
    search = StudySearch(studies, strategy, recorder)
    scheduler = RungScheduler(
        rule_of(strategy, max_epochs=space.max_epochs()),
        recorder,
        group_of=groups_of(space),
        is_out_of_time=search.is_out_of_time,
    )
    bound = tune.with_resources(
        tune.with_parameters(trainable, setup=setup), {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}
    )
    with tempfile.TemporaryDirectory(prefix="tune_lung-ray-") as working_state:
        tune.Tuner(
            bound,
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler,
                num_samples=strategy.num_trials(space),
                max_concurrent_trials=resources.max_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=working_state,
                callbacks=[recorder, *callbacks],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # checkpoints are ours
            ),
        ).fit()


def _evaluate(recorder: Recorder, strategy: Strategy, setup: SearchSetup, resources: Resources, ledger: Ledger) -> None:
    """Open the test images once for what validation chose, and write down that they were opened."""
    chosen = _chosen_on_validation(recorder, strategy)
    if not chosen:
        return
    ledger.write_manifest(with_test_opening(ledger.read_manifest(), [plan.trial_id for plan in chosen]))
    for plan, predictions in evaluate_sealed(chosen, setup, resources):
        ledger.write_predictions(plan.trial_id, predictions)
        recorder.add_test_scores(plan.trial_id, _test_scores(predictions, ledger.classes))


def _chosen_on_validation(recorder: Recorder, strategy: Strategy) -> list[TrialPlan]:
    """Choose every repeat of each cell's best point and, with several objectives, of each point of the front."""
    trained = [record for record in recorder.records if record.status is not TrialStatus.FAILED and record.best is not None]
    if not trained:
        return []
    table = pd.DataFrame([recorder.row_of(record) for record in trained])
    points = set(best_points(table)["point_id"])
    if not strategy.has_one_objective:
        points |= set(pareto_front(point_means(table, strategy.objectives), strategy.objectives)["point_id"])
    return [record.plan for record in trained if record.plan.point_id in points]


def _test_scores(predictions: Any, classes: tuple[str, ...]) -> dict[str, float]:
    labels_N = predictions["label"].map({name: index for index, name in enumerate(classes)}).to_numpy()
    answers_N = predictions[[probability_column(name) for name in classes]].to_numpy().argmax(axis=1)
    confusion_KK = confusion_matrix(labels_N, answers_N, num_classes=len(classes))
    return {"test_macro_recall": macro_recall(confusion_KK), "test_micro_recall": micro_recall(confusion_KK)}
