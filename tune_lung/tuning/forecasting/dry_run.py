"""`--dry-run`: what a search would try, take and need, said before any of it is spent."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress

from tune_lung.config import TrialConfig
from tune_lung.data.store import PixelStore
from tune_lung.screen import say
from tune_lung.strategy import Strategy
from tune_lung.tuning.cell_order import search_order
from tune_lung.tuning.cluster import node_offers
from tune_lung.tuning.forecasting.forecast import CellPlan, foresee_epochs, foresee_trials, plan_cells
from tune_lung.tuning.forecasting.probe import ProbeRequest, largest_point, probe, work_of, workload_of
from tune_lung.tuning.forecasting.room import DiskNeed, check_disk, check_gpu_memory, check_memory, checkpoints_need
from tune_lung.tuning.forecasting.view import Measured, Needs, counted, show_needs, show_networks, show_plan, show_time
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.scheduler import groups_of
from tune_lung.tuning.search_plan import SearchPlan

_SECONDS_BETWEEN_LINES = 20.0
"""Where no bar can be drawn."""


def dry_run(plan: SearchPlan, *, console: Console) -> None:
    """Print cells, trials, rungs, epochs, time, disk and memory of a search.

    Every kind of trial is trained for a few steps under the conditions of the search. Nothing is written but in the cache.

    Args:
        plan: The search; its run's folder is not made.
        console: Where to print.

    Raises:
        InputError: Disk, memory or GPU memory cannot hold the search.
    """
    space, strategy, setup, resources, keep = plan.space, plan.strategy, plan.setup, plan.resources, plan.keep
    store = PixelStore.open(setup.store)
    plans = plan_cells(space.cells(), strategy)
    taken_up = search_order(space, strategy, setup.run, num_classes=len(store.classes))
    trials = foresee_trials(plan_cells(taken_up, strategy), strategy)
    epochs = foresee_epochs(trials, strategy, group_of=groups_of(space))
    show_plan(plans, epochs, strategy, compares_all=space.is_grid, console=console)

    offers = node_offers(cpus_per_trial=resources.cpus_per_trial, gpus_per_trial=resources.gpus_per_trial)
    slots = max(1, min(resources.max_concurrent, len(trials), sum(offer.slots for offer in offers)))
    checkpoints = checkpoints_need(
        plans, strategy, setup.run, keep=keep, slots=slots, num_classes=len(store.classes), out=setup.run_root.parent
    )
    check_disk([checkpoints])
    measured = _measure(plans, strategy, setup, slots, console)
    features = _features_need(measured, setup)
    check_disk([checkpoints, features])
    check_memory(offers, slots=slots, trial_bytes=measured.memory_bytes)
    check_gpu_memory(gpus_per_trial=resources.gpus_per_trial, trial_bytes=measured.gpu_memory_bytes, gpu_bytes=measured.gpu_bytes)
    show_networks(foresee_trials(plans, strategy), measured, num_images=store.num_images["train"], console=console)
    show_time(trials, epochs, measured, strategy, slots=slots, console=console)
    show_needs(Needs(checkpoints=checkpoints, features=features, offers=offers, slots=slots), measured, console=console)


def _measure(plans: Sequence[CellPlan], strategy: Strategy, setup: SearchSetup, slots: int, console: Console) -> Measured:
    """Probe every kind of trial once: those that stand for their cells, and the largest of each cell for its memory."""
    requests: dict[TrialConfig, ProbeRequest] = {}
    for plan in plans:
        for point in (*plan.samples, largest_point(plan.cell, image_size=setup.run.image_size)):
            workload = workload_of(TrialConfig.from_point(point))
            requests.setdefault(workload, ProbeRequest(cell=plan.cell.name, point=point, repeats=strategy.repeats))
    ordered = sorted(requests, key=lambda workload: work_of(workload, image_size=setup.run.image_size), reverse=True)
    say(console, f"Training {counted(len(ordered), 'kind')} of trial for a few steps each, to see what they take")
    with Progress(*Progress.get_default_columns(), console=console, transient=True, disable=not console.is_terminal) as bars:
        task, told_at = bars.add_task("Probing", total=len(ordered)), time.monotonic()

        def show(done: int) -> None:
            nonlocal told_at
            bars.update(task, completed=done)
            if not console.is_terminal and time.monotonic() - told_at >= _SECONDS_BETWEEN_LINES:
                told_at = time.monotonic()
                say(console, f"{done} of {len(ordered)} done")

        costs, worker_seconds = probe([requests[workload] for workload in ordered], setup, slots=slots, progress=show)
    return Measured(cost_by_workload=dict(zip(ordered, costs, strict=True)), worker_seconds=worker_seconds)


def _features_need(measured: Measured, setup: SearchSetup) -> DiskNeed:
    """Add up the prefix features that are still to be computed, each once, as far as the cache may grow."""
    costs = measured.cost_by_workload.values()
    bytes_by_name = {name: cost.features_bytes for cost in costs for name in cost.features_to_build if name is not None}
    with setup.data.open_cache() as cache:
        folder = cache.root
    num_bytes = min(sum(bytes_by_name.values()), setup.data.cache_size_bytes)
    return DiskNeed(what="prefix features", folder=folder, num_bytes=num_bytes, option="--cache")
