"""Search on a cluster that grows from no slot to three, loses them all and gets another; prints what was seen, as JSON.

Usage: growing_cluster.py FOLDER. The trials sleep and report: the machine's load decides how long it takes, and nothing else.
"""

import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A lost node is noticed within a second.
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled", RAY_health_check_failure_threshold="2")
os.environ.update({f"RAY_health_check_{name}_ms": "500" for name in ("initial_delay", "period", "timeout")})

from ray import tune
from ray.cluster_utils import Cluster
from ray.tune import Callback
from rich.console import Console

from tune_lung.config import RunConfig
from tune_lung.results.ledger import Ledger
from tune_lung.results.manifest import DataFacts, SearchFacts, new_manifest
from tune_lung.space import Arm, LogUniform, SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.tuning.cluster import plan_resources, ray_session
from tune_lung.tuning.driver_only import DriverOnly
from tune_lung.tuning.plan import DataRequest, SearchSetup
from tune_lung.tuning.proposals.studies import Studies
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.search_plan import SearchPlan
from tune_lung.tuning.search_run import train
from tune_lung.tuning.watching.progress import ProgressView
from tune_lung.tuning.watching.time_left import TimeLeft

from tests.tuning.conftest import epoch_result

SPACE = SearchSpace(arms=(Arm(model="cnn", learning_rate=LogUniform(1e-4, 1e-1)),), name="rates")
NUM_TRIALS = 10
EPOCH_SECONDS = 0.5
THREE_AT_ONCE = "three"
"""A file that is there once three trials have run at once."""
_NODE_MEMORY_BYTES = 100_000_000


class Sleeper(tune.Trainable):
    """Sleeps through epochs until three trials have run at once, and ends with the next one."""

    def setup(self, config: dict[str, Any], setup: SearchSetup | None = None) -> None:
        """Get ready."""
        assert setup is not None
        self._mark = setup.run_root.parent / THREE_AT_ONCE
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Get ready for another."""
        self._score, self._epoch = new_config["point"]["learning_rate"], 0
        return True

    def step(self) -> dict[str, Any]:
        """Sleep for an epoch."""
        time.sleep(EPOCH_SECONDS)
        self._epoch += 1
        ends = self._mark.exists()
        reason = "max_epochs" if ends else None
        return epoch_result(self._epoch, self._score, stop_reason=reason, done=ends, epoch_seconds=EPOCH_SECONDS)


class Weather(DriverOnly, Callback):
    """Lets nodes come and go as the search goes on, and notes what the search says of them."""

    def __init__(self, cluster: Cluster, recorder: Recorder, line: Callable[[], str], mark: Path) -> None:
        self._cluster, self._recorder, self._line, self._mark = cluster, recorder, line, mark
        self._nodes: list[Any] = []
        self.most_open: dict[int, int] = {}
        """Trials asked for at most, by the slots that there were."""
        self.lost: dict[str, Any] = {}
        """What was said when every node was gone."""

    def add_node(self) -> None:
        """Let a node with one CPU come."""
        self._nodes.append(self._cluster.add_node(num_cpus=1, object_store_memory=_NODE_MEMORY_BYTES))

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:  # noqa: ARG002 - Ray's
        """Look, and let the next thing happen."""
        slots, is_lost = self._recorder.slots, self._mark.exists()
        num_running, num_live = len(slots.running), slots.num_live()
        if not is_lost:
            self.most_open[num_live] = max(sum(not one.is_finished() for one in trials), self.most_open.get(num_live, 0))
        if not is_lost and num_running == len(self._nodes) < 3:
            self.add_node()
        elif num_running == 3 and not is_lost:
            for node in self._nodes:
                self._cluster.remove_node(node, allow_graceful=False)
            self._mark.touch()
        elif is_lost and not self.lost and not num_running and not num_live:
            self.lost = {"line": self._line(), "running": len(self._recorder.running())}
            self.add_node()


def main() -> int:
    """Start a head without CPUs and search on whatever comes."""
    root = Path(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": _NODE_MEMORY_BYTES})
    try:
        with ray_session(cluster.address):
            seen = search(root, cluster)
    finally:
        cluster.shutdown()
    sys.stdout.write(json.dumps(seen) + "\n")
    return 0


def search(root: Path, cluster: Cluster) -> dict[str, Any]:
    """Search, and return what was seen."""
    run = RunConfig(image_size=64)
    strategy = Strategy.for_space(SPACE, samples=NUM_TRIALS, scheduler="none")
    resources = plan_resources(num_trials=NUM_TRIALS, cpus_per_trial=1, gpus_per_trial=0, max_concurrent=None, is_local=False)
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
    facts = DataFacts(fingerprint="f" * 64, synthetic=True, classes=("a", "b"), counts={"train": 4, "validation": 2, "test": 2})
    manifest = new_manifest(
        SearchFacts(space=SPACE, strategy=strategy, sampler_options={}, run=run), name="run", arguments=[], data=facts, weights={}
    )
    recorder = Recorder(Ledger.create(setup.run_root, manifest), setup, resources)
    time_left = TimeLeft(SPACE.cells(), strategy, work={cell.name: 1.0 for cell in SPACE.cells()})
    text = io.StringIO()
    view = ProgressView(
        recorder,
        SPACE,
        strategy,
        time_left=time_left,
        max_concurrent=resources.max_concurrent,
        console=Console(file=text, width=200),
    )

    def line() -> str:
        view._shown_at = 0.0  # as if it were time
        view.on_step_end(0, [])
        return text.getvalue().splitlines()[-1]

    weather = Weather(cluster, recorder, line, root / THREE_AT_ONCE)
    began = time.monotonic()
    train(
        SearchPlan(space=SPACE, strategy=strategy, setup=setup, resources=resources),
        Studies(SPACE, strategy, seed=0),
        recorder,
        callbacks=[view, weather],
        trainable=Sleeper,
    )
    return {
        "most_open": weather.most_open,
        "lost": weather.lost,
        "seconds": time.monotonic() - began,
        "slot_seconds": recorder.slots.seconds(),
    }


if __name__ == "__main__":
    sys.exit(main())
