"""What a sampler knows when it proposes, and what a cluster is asked for: whole searches on virtual slots."""

import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ray import tune

from tune_lung.config import RunConfig
from tune_lung.results.ledger import Ledger
from tune_lung.results.manifest import DataFacts, SearchFacts, new_manifest
from tune_lung.space import Arm, Grid, LogUniform, SearchSpace, Uniform
from tune_lung.strategy import Strategy
from tune_lung.tuning.cluster import Resources
from tune_lung.tuning.plan import DataRequest, SearchSetup
from tune_lung.tuning.proposals.studies import Studies
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.search_plan import SearchPlan
from tune_lung.tuning.search_run import train
from tune_lung.tuning.slots import Slots

from tests.tuning.conftest import epoch_result
from tests.tuning.virtual_slots import START_SECONDS, VirtualSlots

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

NUM_TRIALS = 64
SAMPLED = SearchSpace(
    arms=(
        Arm(
            model="cnn",
            learning_rate=LogUniform(1e-4, 1e-1),
            weight_decay=LogUniform(1e-6, 1e-2),
            label_smoothing=Uniform(0.0, 0.5),
        ),
    ),
    name="peak",
)
GRID = SearchSpace(arms=(Arm(model="cnn", batch_size=Grid(*range(2, 22))),), name="grid")


def height(point: dict[str, Any]) -> float:
    """How near a point is to a peak: 1 at the top, 0.06 on average over the space."""
    places = (
        math.log(point.get("learning_rate", 1e-4) / 1e-4) / math.log(1e3),
        math.log(point.get("weight_decay", 1e-6) / 1e-6) / math.log(1e4),
        point.get("label_smoothing", 0.0) / 0.5,
    )
    return math.exp(-sum(((place - 0.7) / 0.25) ** 2 for place in places))


class Climb(tune.Trainable):
    """One epoch at a point: as high as it lies, and longer for some than for others."""

    def setup(self, config: dict[str, Any], setup: SearchSetup | None = None) -> None:  # noqa: ARG002 - bound by the search
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._point = new_config["point"]
        return True

    def step(self) -> dict[str, Any]:
        score = height(self._point)
        seconds = 10 + zlib.crc32(repr(self._point).encode()) % 10
        return epoch_result(1, score, stop_reason="max_epochs", done=True, epoch_seconds=seconds)


class Searched:
    """A finished search on virtual slots."""

    def __init__(
        self,
        root: Path,
        *,
        slots: int,
        max_concurrent: int = NUM_TRIALS,
        may_grow: bool = True,
        space: SearchSpace = SAMPLED,
        seed: int = 0,
        changes: Iterable[tuple[float, int]] = (),
        **virtual_slots: Any,
    ) -> None:
        run = RunConfig(image_size=64, seed=seed)
        setup = SearchSetup(
            run=run,
            run_root=root / "run",
            data=DataRequest(root=None, run=run, cache_root=root / "cache", cache_size_bytes=0),
            store=root / "store",
            data_fingerprint="f" * 64,
            weights={},
            cpus_per_trial=1,
            gpus_per_trial=0,
        )
        samples = {} if space.is_grid else {"samples": NUM_TRIALS, "scheduler": "none"}
        strategy = Strategy.for_space(space, **samples)
        facts = DataFacts(
            fingerprint="f" * 64, synthetic=True, classes=("a", "b"), counts={"train": 4, "validation": 2, "test": 2}
        )
        manifest = new_manifest(
            SearchFacts(space=space, strategy=strategy, sampler_options={}, run=run),
            name="run",
            arguments=[],
            data=facts,
            weights={},
        )
        resources = Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=max_concurrent, may_grow=may_grow)
        virtual = VirtualSlots(slots, changes=changes, **virtual_slots)
        self.slots = Slots(resources, room=virtual.room, clock=virtual.clock)
        recorder = Recorder(Ledger.create(setup.run_root, manifest), setup, resources, slots=self.slots)
        with virtual.in_place_of_rays():
            train(
                SearchPlan(space=space, strategy=strategy, setup=setup, resources=resources),
                Studies(space, strategy, seed=seed),
                recorder,
                trainable=Climb,
            )
        self.seconds = virtual.now
        self.trials = pd.read_parquet(setup.run_root / "trials").sort_values("proposed_order").reset_index(drop=True)

    def last_quarter(self) -> float:
        """The mean score of the last quarter of the proposals."""
        return float(self.trials["selection_score"].tail(len(self.trials) // 4).mean())

    def slots_used(self) -> int:
        """How many trials ran at once at most."""
        return int(self.trials["concurrent_trials"].max())

    def open_at_proposals(self) -> list[int]:
        """How many trials had been proposed and not ended, at each proposal, itself included."""
        ends = self.trials["ended_order"].to_numpy()
        return [number + 1 - int((ends < order).sum()) for number, order in enumerate(self.trials["proposed_order"])]


def test_a_sampler_knows_on_a_cluster_nearly_what_it_knows_on_one_machine(tmp_path: Path) -> None:
    """TPE, 64 trials on 4 slots, 2 seeds. With every point proposed before the first has ended it finds 0.09."""
    on_cluster = [Searched(tmp_path / f"cluster-{seed}", slots=4, seed=seed) for seed in range(2)]
    at_once = [Searched(tmp_path / f"at-once-{seed}", slots=4, max_concurrent=4, seed=seed) for seed in range(2)]
    found, known = (float(np.mean([one.last_quarter() for one in each])) for each in (on_cluster, at_once))
    assert found >= 0.8 * known >= 0.3
    assert max(max(one.open_at_proposals()) for one in on_cluster) == 2 * 4
    assert {one.slots_used() for one in on_cluster} == {4}  # no slot waited for a proposal


def test_demand_doubles_while_nodes_come_and_each_is_used(tmp_path: Path) -> None:
    """No node for a minute, then one slot, then two, then eight; trials take 10 to 20 s."""
    searched = Searched(tmp_path, slots=0, changes=[(60.0, 1), (120.0, 2), (180.0, 8)])
    opened = searched.open_at_proposals()
    assert opened[:4] == [1, 2, 3, 4]  # so that the first nodes come
    assert opened[4] == 2  # with one slot, one waits
    assert [opened.index(number) for number in (2 * 2, 2 * 8)] == sorted(opened.index(number) for number in (4, 16))
    assert max(opened) == 2 * 8
    assert searched.slots_used() == 8


def test_a_node_that_takes_long_to_start_is_not_kept_from_it_by_trials_that_end_elsewhere(tmp_path: Path) -> None:
    """It comes after half a minute and prepares its images for two, while a trial ends every 10 to 20 s on the first one."""
    trials = Searched(tmp_path, slots=1, changes=[(30.0, 2)], later_start_seconds=120.0).trials
    on_the_second = trials[trials["slot"] == 1]
    assert trials["proposed_order"].lt(on_the_second["proposed_order"].min()).sum() < 15
    assert len(on_the_second) > NUM_TRIALS / 3


def test_no_more_than_was_asked_for_is_proposed(tmp_path: Path) -> None:
    """One at a time is how a search comes out as if nothing had happened, on a cluster too."""
    assert set(Searched(tmp_path, slots=4, max_concurrent=1).open_at_proposals()) == {1}


def test_a_grid_is_asked_for_at_once_and_what_really_ran_together_is_written_down(tmp_path: Path) -> None:
    searched = Searched(tmp_path, space=GRID, slots=3)
    assert searched.open_at_proposals() == list(range(1, 21))
    assert set(searched.trials["concurrent_trials"]) == {3}
    assert set(searched.trials["slot"]) == {0, 1, 2}
    assert 3 * (searched.seconds - START_SECONDS) - 1 < searched.slots.seconds() <= 3 * searched.seconds
    for _, own in searched.trials.sort_values("started").groupby("slot"):  # a slot holds one trial at a time
        assert (own["started"].to_numpy()[1:] >= own["ended"].to_numpy()[:-1]).all()
        assert (own["ended"] > own["started"]).all()
