"""The sealed evaluation: the only place that opens the test images, once the search has ended."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import ray
from ray import ObjectRef

from tune_lung.errors import NoRoomError
from tune_lung.evaluation.predictions import answers_frame
from tune_lung.learners.kept import KeptModel
from tune_lung.learners.registry import learner_of
from tune_lung.results.schema import FailureKind
from tune_lung.training.tensor_files import DamagedCheckpointError
from tune_lung.tuning.cluster import Resources, nodes_at, task_options
from tune_lung.tuning.device import claim_device
from tune_lung.tuning.failures import MOST_FAILURES, Failure, address_in, is_for_lack_of_room, kind_of, line_of, text_of
from tune_lung.tuning.plan import SearchSetup, TrialPlan

_SECONDS_BETWEEN_LOOKS = 1.0

_log = logging.getLogger(__name__)


def predict_on_test(plan: TrialPlan, setup: SearchSetup, *, best_epoch: int | None = None) -> pd.DataFrame:
    """Let a trial's best checkpoint answer for every test image.

    Args:
        plan: The trial.
        setup: Its run.
        best_epoch: Epoch that the checkpoint must be of; None takes any.

    Returns:
        One row per test image: `image_id`, `label`, one `p_<class>` per class.

    Raises:
        DamagedCheckpointError: The checkpoint is not what was written, or not there.
        StoreDamagedError: The images changed while they were read.
    """
    device = claim_device(cpus=setup.cpus_per_trial, gpus=setup.gpus_per_trial)
    store = setup.open_store()
    kept = KeptModel.load(setup.checkpoints(plan), plan.trial, epoch=best_epoch)
    learner = learner_of(plan.trial.network.model)
    answering = learner.answering(kept, plan.trial, setup.run, pixels=store.pixel_facts, classes=store.classes, device=device)
    part = store.open_test()
    probabilities_NK = answering.answer(part)
    store.check("test")
    return answers_frame(probabilities_NK, part, store.classes)


def evaluate_sealed(
    plans: Sequence[TrialPlan], best_epochs: Mapping[str, int], setup: SearchSetup, resources: Resources
) -> Iterator[tuple[TrialPlan, pd.DataFrame | DamagedCheckpointError | Failure]]:
    """Evaluate several trials as Ray tasks, each with a trial's resources, and as many at once as trials.

    One that fails is tried again as a failed trial is: elsewhere where its node was unfit, alone where memory was short.

    Args:
        plans: The trials.
        best_epochs: The epoch of each trial's best checkpoint.
        setup: Their run.
        resources: What each gets, and how many may run at once.

    Yields:
        Each trial with its predictions, or what is wrong with its checkpoint, or why it cannot be tested: those first that
        succeed at once, in the order given.

    Raises:
        NoRoomError: A worker's disk is full.
        SupersededError: Another driver owns the run now.
    """
    shared = ray.put(setup)
    tests = [_Test(plan=plan, best_epoch=best_epochs.get(plan.trial_id)) for plan in plans]
    while tests:
        together = [test for test in tests if not test.is_alone] or tests[:1]
        pending: list[ObjectRef[Any]] = []
        for number, test in enumerate(together):
            pending += [begun.start(shared, resources) for begun in together[len(pending) : number + resources.max_concurrent]]
            outcome = test.outcome_of(pending[number], setup)
            if outcome is not None:
                tests.remove(test)
                yield test.plan, outcome


@dataclass(kw_only=True, eq=False)
class _Test:
    """One trial that is to be tested."""

    plan: TrialPlan
    """The trial."""
    best_epoch: int | None
    """The epoch that its checkpoint must be of."""
    failures: Counter[FailureKind] = field(default_factory=Counter)
    """Failed attempts by kind."""
    unfit_nodes: set[str] = field(default_factory=set)
    """Nodes that could not test it."""
    is_alone: bool = False
    """Whether nothing else may run beside it."""

    def start(self, setup: ObjectRef[SearchSetup], resources: Resources) -> ObjectRef[Any]:
        """Ask Ray for it. What is tried again is decided here, never by Ray, which would try for ever for want of memory."""
        options = task_options(cpus=resources.cpus_per_trial, gpus=resources.gpus_per_trial, unfit=self.unfit_nodes)
        task = ray.remote(**options)(_predictions_or_damage)
        return task.remote(self.plan, setup, self.best_epoch)

    def outcome_of(self, reference: ObjectRef[Any], setup: SearchSetup) -> pd.DataFrame | DamagedCheckpointError | Failure | None:
        """Wait for what it gives, looking who owns the run; None where it is to be tried again."""
        while not ray.wait([reference], timeout=_SECONDS_BETWEEN_LOOKS)[0]:
            setup.check_attempt()
        try:
            return ray.get(reference)  # type: ignore[no-any-return]
        except ray.exceptions.RayError as error:
            text = text_of(error)
            if is_for_lack_of_room(text):
                raise NoRoomError("A worker found no room left on its disk. Free some, and go on with --resume.") from error
            kind = kind_of(text, silent_seconds=0.0, hang_seconds=setup.hang_seconds)
            if kind is FailureKind.BUG:
                raise
        self.failures[kind] += 1
        self.is_alone = kind is FailureKind.OUT_OF_MEMORY
        if kind is FailureKind.UNFIT_NODE:
            self.unfit_nodes |= nodes_at(address_in(text))
        failure = Failure(kind, line_of(kind, text), is_final=self.failures[kind] >= MOST_FAILURES.get(kind, 1))
        if failure.is_final:
            return failure
        _log.warning("The test of trial %s (%s) failed: %s; tried again", self.plan.trial_id, self.plan.cell, failure.text)
        return None


def _predictions_or_damage(plan: TrialPlan, setup: SearchSetup, best_epoch: int | None) -> pd.DataFrame | DamagedCheckpointError:
    try:
        return predict_on_test(plan, setup, best_epoch=best_epoch)
    except DamagedCheckpointError as damage:
        return damage
