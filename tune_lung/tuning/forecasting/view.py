"""What a person sees of a dry run: text and tables that fit 80 columns."""

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.console import Console
from rich.table import Table

from tune_lung.config import TrialConfig
from tune_lung.strategy import Strategy
from tune_lung.tuning.cluster import NodeOffer
from tune_lung.tuning.forecasting.forecast import CellPlan, EpochForecast, ForeseenTrial, TrialCost, search_seconds
from tune_lung.tuning.forecasting.probe import workload_of
from tune_lung.tuning.forecasting.room import DiskNeed, free_bytes, size_text
from tune_lung.tuning.watching.time_left import duration

_MOST_CELLS = 24
"""Cells that are all named; of a longer list, the first 20."""
_LISTED_CELLS = 20
_NO_BREAK = "\N{NO-BREAK SPACE}"
_NOTABLE_SPREAD = 1.2
"""Slowest over fastest epoch of a network from which both are shown."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the probes found."""

    cost_by_workload: Mapping[TrialConfig, TrialCost]
    """The cost of each kind of trial, by `workload_of`."""
    worker_seconds: float
    """From asking for a worker to its first line of work."""

    def cost_of(self, trial: ForeseenTrial) -> TrialCost:
        """Return a trial's cost."""
        return self.cost_by_workload[workload_of(trial.trial)]

    @property
    def memory_bytes(self) -> int:
        """Most memory that any trial takes."""
        return max(cost.memory_bytes for cost in self.cost_by_workload.values())

    @property
    def gpu_memory_bytes(self) -> int:
        """Most GPU memory that any trial takes; 0 without a GPU."""
        return max(cost.gpu_memory_bytes for cost in self.cost_by_workload.values())

    @property
    def gpu_bytes(self) -> int:
        """Memory of the smallest GPU seen; 0 without one."""
        return min(cost.gpu_bytes for cost in self.cost_by_workload.values())


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The room that a search needs, and where it is to be found."""

    checkpoints: DiskNeed
    """Under `--out`."""
    features: DiskNeed
    """Under `--cache`."""
    offers: Sequence[NodeOffer]
    """The nodes' memory."""
    slots: int
    """Trials at once."""


def show_plan(
    plans: Sequence[CellPlan], epochs: EpochForecast, strategy: Strategy, *, compares_all: bool, console: Console
) -> None:
    """Print the cells, and where trials are compared.

    Args:
        plans: The cells.
        epochs: Names the rungs.
        strategy: Names the scheduler.
        compares_all: Whether trials are compared over all cells, or within each.
        console: Where to print.
    """
    _show(console, _cells_text(plans, width=console.width))
    if epochs.rungs:
        table = _table("rung", "epoch", "trials there", "going on")
        for number, rung in enumerate(epochs.rungs, start=1):
            table.add_row(str(number), f"{rung.epoch}", f"about {rung.num_compared:,.0f}", f"about {rung.num_going_on:,.0f}")
        _show(console, table)
    _show(console, _scheduler_text(strategy, has_rungs=bool(epochs.rungs), compares_all=compares_all))


def show_networks(trials: Iterable[ForeseenTrial], measured: Measured, *, num_images: int, console: Console) -> None:
    """Print what an epoch of each network takes, its batch size and the like averaged.

    Args:
        trials: Every trial of the search.
        measured: What each costs.
        num_images: Training images.
        console: Where to print.
    """
    costs: dict[str, list[TrialCost]] = defaultdict(list)
    for trial in trials:
        costs[_network_name(trial.trial)].append(measured.cost_of(trial))
    table = _table("network", "trials", "s an epoch", "images/s", "s for features")
    for name, own in costs.items():
        seconds = [cost.epoch_seconds for cost in own]
        features = max(cost.features_seconds if any(cost.features_to_build) else 0.0 for cost in own)
        table.add_row(
            name,
            f"{len(own):,}",
            _spread_text(seconds),
            f"{num_images / fmean(seconds):,.0f}",
            f"{features:.3g}" if features else "-",
        )
    _show(console, table)


def show_time(
    trials: Sequence[ForeseenTrial],
    epochs: EpochForecast,
    measured: Measured,
    strategy: Strategy,
    *,
    slots: int,
    console: Console,
) -> None:
    """Print the least, expected and most epochs of the search, and their time on the slots."""
    table = _table("", "epochs", "time")
    for name, counts in (("least", epochs.least), ("expected", epochs.expected), ("most", epochs.most)):
        seconds = search_seconds(trials, counts, measured.cost_of, slots=slots, worker_seconds=measured.worker_seconds)
        table.add_row(name, f"{sum(counts):,.0f}", duration(seconds))
    _show(console, table)
    text = f"{slots} at once, as fast as they were just now; test evaluation included."
    if strategy.time_budget_seconds is not None:
        text += f"\n--time-budget starts nothing new after {duration(strategy.time_budget_seconds)}."
    _show(console, text)


def show_needs(needs: Needs, measured: Measured, *, console: Console) -> None:
    """Print the room that the search needs against what is free."""
    table = _table("", "needed", "free")
    for label, need in (("disk of --out", needs.checkpoints), ("disk of --cache", needs.features)):
        table.add_row(label, f"{need.what} {size_text(need.num_bytes)} at most", size_text(free_bytes(need.folder)))
    trial_bytes = measured.memory_bytes
    table.add_row(
        "memory",
        f"{size_text(trial_bytes)} a trial, {size_text(needs.slots * trial_bytes)} together",
        size_text(sum(offer.memory_bytes for offer in needs.offers)),
    )
    if measured.gpu_bytes:
        table.add_row("GPU memory", f"{size_text(measured.gpu_memory_bytes)} a trial", size_text(measured.gpu_bytes))
    _show(console, table)
    _show(console, "Nothing was trained, and no run was made. What was prepared stays in the cache.")


def _show(console: Console, what: str | Table) -> None:
    """Print a paragraph or a table with a blank line above it."""
    console.print()
    console.print(what, highlight=False, soft_wrap=isinstance(what, str), markup=False)


def _cells_text(plans: Sequence[CellPlan], *, width: int) -> str:
    """Name the cells and what each is given, in lines that fit; a name is never broken."""
    counts = {plan.num_points for plan in plans}
    are_equal, total = len(counts) == 1, sum(plan.num_points for plan in plans)
    shown = plans if len(plans) <= _MOST_CELLS else plans[:_LISTED_CELLS]
    names = [plan.cell.name if are_equal else f"{plan.cell.name} ({plan.num_points})" for plan in shown]
    names = [name.replace(" ", _NO_BREAK) for name in names]
    if len(shown) < len(plans):
        names.append(f"and {len(plans) - len(shown)} more")
    points = f"{counted(max(counts), 'point')} each" if are_equal else counted(total, "point")
    text = f"{counted(len(plans), 'cell')}, {points}: {'; '.join(names)}"
    return textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False).replace(_NO_BREAK, " ")


def _scheduler_text(strategy: Strategy, *, has_rungs: bool, compares_all: bool) -> str:
    if strategy.scheduler == "none":
        return "No scheduler: every trial runs to its own end."
    if strategy.scheduler == "median":
        return f"Median stopping compares trials from epoch {strategy.grace_epochs} on; what it saves is not foreseen."
    if not has_rungs:
        return "asha compares no trials: its grace covers all their epochs."
    rivals = "all others" if compares_all else "those of its cell"
    return f"asha compares a trial with {rivals} and lets one in {strategy.reduction_factor} go on."


def _network_name(trial: TrialConfig) -> str:
    frozen_blocks = trial.columns()["frozen_blocks"]
    return trial.network.model if frozen_blocks is None else f"{trial.network.model} frozen_blocks={frozen_blocks}"


def _spread_text(seconds: Sequence[float]) -> str:
    low, high = min(seconds), max(seconds)
    spread = f" ({low:.3g} to {high:.3g})" if high > _NOTABLE_SPREAD * low else ""
    return f"{fmean(seconds):.3g}{spread}"


def counted(count: int, what: str) -> str:
    """Write a number of things, such as `3 cells`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table
