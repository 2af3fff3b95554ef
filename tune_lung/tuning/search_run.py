"""One search: studies propose, Ray trains, a rule stops, the recorder writes; then the sealed evaluation."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from ray import tune
from ray.tune import Callback
from rich.console import Console

from tune_lung.evaluation.confusion import confusion_matrix
from tune_lung.learners.kept import KeptModel
from tune_lung.metrics import Judged, measured_on_test
from tune_lung.results.ledger import Ledger
from tune_lung.results.manifest import with_test_opening
from tune_lung.results.ranking import best_points, pareto_front, point_means
from tune_lung.results.schema import TrialStatus, probability_column
from tune_lung.scratch import ScratchFolder
from tune_lung.strategy import Strategy
from tune_lung.training.tensor_files import DamagedCheckpointError
from tune_lung.tuning.cell_order import search_order
from tune_lung.tuning.failures import Failure
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.proposals.studies import Studies
from tune_lung.tuning.ray_patches import leave_callbacks_uncounted, survive_killed_workers
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.retention import Retention
from tune_lung.tuning.run_profile import RunProfile
from tune_lung.tuning.scheduler import RungScheduler, groups_of, rule_of
from tune_lung.tuning.sealed_evaluation import evaluate_sealed
from tune_lung.tuning.search_plan import Attempt, SearchPlan
from tune_lung.tuning.study_search import StudySearch
from tune_lung.tuning.trainable import LungTrial
from tune_lung.tuning.trial_record import EarlierAttempts, TrialRecord
from tune_lung.tuning.watching.progress import ProgressView
from tune_lung.tuning.watching.time_left import TimeLeft, work_of_cells
from tune_lung.tuning.watching.trackers import make_trackers

_log = logging.getLogger(__name__)


def search_and_test(plan: SearchPlan, attempt: Attempt, console: Console) -> list[TrialRecord]:
    """Search a space and evaluate each cell's best point on the test images.

    A trial that is to be tested, and whose network was not kept or is damaged, is trained again first.

    Args:
        plan: The search.
        attempt: This attempt at it.
        console: Where progress is shown.

    Returns:
        Every trial's record.

    Raises:
        InputError: A tracker cannot be opened, and nothing was trained; or a disk is full, and the ledger holds all that
            was reported.
        SearchHaltedError: The first trials have all failed with what the others would meet too.
        KeyboardInterrupt: The user stopped the search; the ledger holds all that was reported.
    """
    space, strategy, setup, ledger, ownership = plan.space, plan.strategy, plan.setup, attempt.ledger, attempt.ownership
    retention = Retention(plan.keep, strategy, setup)
    recorder = Recorder(ledger, setup, plan.resources, earlier=attempt.earlier, retention=retention)
    recorder.tidy()
    cells = search_order(space, strategy, setup.run, num_classes=len(ledger.classes))
    view = ProgressView(
        recorder,
        space,
        strategy,
        time_left=TimeLeft(cells, strategy, work=work_of_cells(space, setup, num_classes=len(ledger.classes))),
        max_concurrent=plan.resources.max_concurrent,
        console=console,
        searched_seconds=ownership.searched_seconds,
    )
    opened = make_trackers(attempt.trackers, recorder, setup.run_root)
    profile = None
    if setup.profile:
        profile = RunProfile(ledger, recorder, before=attempt.seconds_before, earlier=attempt.earlier.own_seconds)
    ownership.start_searching(strategy.time_budget_seconds)

    def train_from(found: EarlierAttempts) -> None:
        studies = Studies(space, strategy, seed=setup.run.seed, known=attempt.known, cells=cells)
        callbacks = [view, *opened, *([] if profile is None else [profile])]
        train(plan, studies, recorder, callbacks=callbacks, earlier=found, searched_seconds=ownership.searched_seconds)

    try:
        with view:
            train_from(attempt.earlier)
            budget = strategy.time_budget_seconds
            if (budget is None or ownership.searched_seconds() < budget) and reopen_untestable(recorder, strategy, setup, ledger):
                train_from(recorder.so_far())
    finally:
        idle_seconds = 0.0 if profile is None else profile.idle_seconds()
        if recorder.halted_by is None:
            recorder.flush()
            if profile is not None:
                profile.write(idle_seconds=idle_seconds)
    ownership.stop_searching()
    trained = time.monotonic()
    recorder.tidy()
    _evaluate(recorder, plan, ledger)
    if profile is not None:
        profile.write(idle_seconds=idle_seconds, evaluation_seconds=time.monotonic() - trained)
    return recorder.records


def train(
    plan: SearchPlan,
    studies: Studies,
    recorder: Recorder,
    *,
    callbacks: Sequence[Callback] = (),
    trainable: type[tune.Trainable] = LungTrial,
    earlier: EarlierAttempts | None = None,
    searched_seconds: Callable[[], float] | None = None,
) -> None:
    """Let Ray train what the studies propose, until nothing is left to propose.

    Args:
        plan: The search.
        studies: Propose points and are told of them.
        recorder: Writes the trials down; it hears of everything before the other callbacks.
        callbacks: Who else hears of everything.
        trainable: What trains one trial; it takes `setup`.
        earlier: What earlier attempts at the search left; None at its beginning.
        searched_seconds: Tells how much of a time budget is spent; None counts from now.

    Raises:
        InputError: A disk is full, or the run cannot be written.
        SearchHaltedError: The first trials have all failed with what the others would meet too.
    """
    space, strategy, resources = plan.space, plan.strategy, plan.resources
    search = StudySearch(
        studies,
        strategy,
        recorder,
        searched_seconds=searched_seconds,
        earlier=() if earlier is None else earlier.records,
    )
    rule = rule_of(strategy, max_epochs=space.max_epochs())
    scheduler = RungScheduler(rule, recorder, group_of=groups_of(space), earlier=earlier)
    bound = tune.with_resources(
        tune.with_parameters(trainable, setup=plan.setup), {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}
    )
    survive_killed_workers()
    leave_callbacks_uncounted()
    with ScratchFolder() as working_state:
        tuner = tune.Tuner(
            bound,
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler,
                num_samples=-1,  # the search says when it has finished: a trial that is tried again is a new one to Ray
                max_concurrent_trials=resources.max_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(working_state.path),
                callbacks=[recorder, *callbacks],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # checkpoints are ours
            ),
        )
        try:
            with recorder.slots.counting_workers():
                tuner.fit()
        except Exception:
            if recorder.halted_by is None:
                raise
            raise recorder.halted_by from None  # Ray wraps what its callbacks raise


def reopen_untestable(recorder: Recorder, strategy: Strategy, setup: SearchSetup, ledger: Ledger) -> bool:
    """Let those be trained again that are to be tested, and whose network was not kept or is damaged; say whether any."""
    untestable = []
    for record in _to_be_tested(recorder, strategy, ledger):
        try:
            epoch = None if record.best is None else int(record.best["epoch"])
            KeptModel.load(setup.checkpoints(record.plan), record.plan.trial, epoch=epoch)
        except DamagedCheckpointError as damage:
            _log.warning("Trial %s (%s) is trained again, to be tested. %s", record.plan.trial_id, record.plan.cell, damage)
            untestable.append(record)
    for record in untestable:
        record.status = TrialStatus.RUNNING
    return bool(untestable)


def _evaluate(recorder: Recorder, plan: SearchPlan, ledger: Ledger) -> None:
    """Open the test images once for what validation chose, and write down that they were opened."""
    chosen = _to_be_tested(recorder, plan.strategy, ledger)
    if not chosen:
        return
    ledger.write_manifest(with_test_opening(ledger.read_manifest(), [record.plan.trial_id for record in chosen]))
    best_epochs = {record.plan.trial_id: int(record.best["epoch"]) for record in chosen if record.best}
    for trial, predictions in evaluate_sealed([record.plan for record in chosen], best_epochs, plan.setup, plan.resources):
        if isinstance(predictions, DamagedCheckpointError):
            _log.warning("Trial %s (%s) is not tested. %s", trial.trial_id, trial.cell, predictions)
            continue
        if isinstance(predictions, Failure):
            _log.warning("Trial %s (%s) is not tested: %s. --resume tests it", trial.trial_id, trial.cell, predictions.text)
            continue
        ledger.write_predictions(trial.trial_id, predictions)
        recorder.add_test_scores(trial.trial_id, _test_scores(predictions, ledger.classes))


def _to_be_tested(recorder: Recorder, strategy: Strategy, ledger: Ledger) -> list[TrialRecord]:
    """Name the trials chosen on validation, but for those that were tested, and whose predictions are whole."""
    return [record for record in _chosen_on_validation(recorder, strategy) if not _is_evaluated(record, ledger)]


def _is_evaluated(record: TrialRecord, ledger: Ledger) -> bool:
    """Whether an earlier attempt tested it, and its predictions are whole."""
    return bool(record.test_scores) and ledger.has_predictions(record.plan.trial_id)


def _chosen_on_validation(recorder: Recorder, strategy: Strategy) -> list[TrialRecord]:
    """Choose every repeat of each cell's best point and, with several objectives, of each point of the front."""
    trained = [record for record in recorder.records if record.status is not TrialStatus.FAILED and record.best is not None]
    if not trained:
        return []
    table = pd.DataFrame([record.row() for record in trained])
    points = set(best_points(table)["point_id"])
    if not strategy.has_one_objective:
        points |= set(pareto_front(point_means(table, strategy.objectives), strategy.objectives)["point_id"])
    return [record for record in trained if record.plan.point_id in points]


def _test_scores(predictions: Any, classes: tuple[str, ...]) -> dict[str, float]:
    labels_N = predictions["label"].map({name: index for index, name in enumerate(classes)}).to_numpy()
    answers_N = predictions[[probability_column(name) for name in classes]].to_numpy().argmax(axis=1)
    confusion_KK = confusion_matrix(labels_N, answers_N, num_classes=len(classes))
    return measured_on_test(Judged(confusion_KK=confusion_KK, classes=classes, loss=math.nan))
