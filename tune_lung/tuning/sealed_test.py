"""The sealed evaluation: the only place that opens the test images, once the search has ended."""

from collections.abc import Iterator, Sequence

import pandas as pd
import ray

from tune_lung.evaluation.predictions import input_batches, predict_logits, predictions_frame
from tune_lung.models.network import load_changing_state
from tune_lung.training.checkpoints import load
from tune_lung.tuning.cluster import Resources
from tune_lung.tuning.device import claim_device
from tune_lung.tuning.plan import SearchSetup, TrialPlan

_BATCH_SIZE = 128


def predict_on_test(plan: TrialPlan, setup: SearchSetup) -> pd.DataFrame:
    """Let a trial's best checkpoint answer for every test image.

    Args:
        plan: The trial.
        setup: Its run.

    Returns:
        One row per test image: `image_id`, `label`, one `p_<class>` per class.

    Raises:
        DamagedCheckpointError: The checkpoint is not what was written.
    """
    device = claim_device(cpus=setup.cpus_per_trial, gpus=setup.gpus_per_trial)
    store = setup.open_store()
    job = setup.training_job(plan, store=store, device=device)
    network = job.build_network()
    load_changing_state(network, load(setup.checkpoints(plan).best).part("network"))
    part = store.open_test()
    batches = input_batches(part, job.transform(), batch_size=_BATCH_SIZE, device=device)
    logits_NK = predict_logits(network, batches, device=device, precision=plan.trial.precision)
    return predictions_frame(logits_NK, part, store.classes)


def evaluate_sealed(
    plans: Sequence[TrialPlan], setup: SearchSetup, resources: Resources
) -> Iterator[tuple[TrialPlan, pd.DataFrame]]:
    """Evaluate several trials as Ray tasks, each with a trial's resources.

    Yields:
        Each trial with its predictions, in the order given.
    """
    task = ray.remote(predict_on_test).options(num_cpus=resources.cpus_per_trial, num_gpus=resources.gpus_per_trial)
    shared = ray.put(setup)
    pending = [task.remote(plan, shared) for plan in plans]
    for plan, reference in zip(plans, pending, strict=True):
        yield plan, ray.get(reference)
