"""The sealed evaluation: the only place that opens the test images, once the search has ended."""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import ray

from tune_lung.evaluation.predictions import input_batches, predict_logits, predictions_frame
from tune_lung.models.network import load_changing_state
from tune_lung.training.checkpoints import Checkpoint, DamagedCheckpointError, load
from tune_lung.tuning.cluster import Resources
from tune_lung.tuning.device import claim_device
from tune_lung.tuning.plan import SearchSetup, TrialPlan

_BATCH_SIZE = 128
_SECONDS_BETWEEN_LOOKS = 1.0


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
    """
    device = claim_device(cpus=setup.cpus_per_trial, gpus=setup.gpus_per_trial)
    store = setup.open_store()
    job = setup.training_job(plan, store=store, device=device)
    network = job.build_network()
    best = best_of(plan, setup, best_epoch)
    try:
        load_changing_state(network, best.part("network"))
    except (RuntimeError, ValueError) as error:
        raise DamagedCheckpointError("The checkpoint 'best' is another network's.") from error
    part = store.open_test()
    batches = input_batches(part, job.transform(), batch_size=_BATCH_SIZE, device=device)
    logits_NK = predict_logits(network, batches, device=device, precision=plan.trial.precision)
    return predictions_frame(logits_NK, part, store.classes)


def best_of(plan: TrialPlan, setup: SearchSetup, epoch: int | None) -> Checkpoint:
    """Load a trial's best network.

    Args:
        plan: The trial.
        setup: Its run.
        epoch: Epoch that it must be of; None takes any.

    Raises:
        DamagedCheckpointError: The checkpoint is not what was written, or not there.
    """
    try:
        best = load(setup.checkpoints(plan).best)
    except FileNotFoundError as error:
        raise DamagedCheckpointError("Its network was not kept.") from error
    if epoch is not None and best.state["epoch"] != epoch:
        raise DamagedCheckpointError(f"The checkpoint 'best' is of epoch {best.state['epoch']} instead of {epoch}.")
    return best


def evaluate_sealed(
    plans: Sequence[TrialPlan], best_epochs: Mapping[str, int], setup: SearchSetup, resources: Resources
) -> Iterator[tuple[TrialPlan, pd.DataFrame | DamagedCheckpointError]]:
    """Evaluate several trials as Ray tasks, each with a trial's resources, and as many at once as trials.

    Args:
        plans: The trials.
        best_epochs: The epoch of each trial's best checkpoint.
        setup: Their run.
        resources: What each gets, and how many may run at once.

    Yields:
        Each trial with its predictions, in the order given, or what is wrong with its checkpoint.

    Raises:
        SupersededError: Another driver owns the run now.
    """
    task = ray.remote(_predictions_or_damage).options(num_cpus=resources.cpus_per_trial, num_gpus=resources.gpus_per_trial)
    shared = ray.put(setup)
    pending: list[ray.ObjectRef[pd.DataFrame | DamagedCheckpointError]] = []
    for number, plan in enumerate(plans):
        for begun in plans[len(pending) : number + resources.max_concurrent]:
            pending.append(task.remote(begun, shared, best_epochs.get(begun.trial_id)))
        while not ray.wait([pending[number]], timeout=_SECONDS_BETWEEN_LOOKS)[0]:
            setup.check_attempt()
        yield plan, ray.get(pending[number])


def _predictions_or_damage(plan: TrialPlan, setup: SearchSetup, best_epoch: int | None) -> pd.DataFrame | DamagedCheckpointError:
    try:
        return predict_on_test(plan, setup, best_epoch=best_epoch)
    except DamagedCheckpointError as damage:
        return damage
