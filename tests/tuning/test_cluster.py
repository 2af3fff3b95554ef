"""Ray's nodes: what a trial gets, and a search over two of them."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest

from tune_lung.tuning.cluster import Room, plan_resources, room_on_nodes

from tests.small_search import METRICS, search_command


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_two_nodes_both_train_and_give_the_local_table(finished_search: tuple[Path, str], tmp_path: Path) -> None:
    local, _ = finished_search
    command = search_command(tmp_path / "cluster", "--no-report", "--name", "cluster")
    script = Path(__file__).with_name("two_nodes.py")
    with TemporaryDirectory(prefix="ray") as short_path:  # pytest's is too long for Ray's sockets
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": short_path}
        done = subprocess.run(
            [sys.executable, str(script), *command], capture_output=True, text=True, timeout=200, check=False, env=environment
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "busy nodes: 2" in done.stdout
    assert "3 trials, 2 at once now, up to 3 as there is room, each with 1 CPU" in done.stdout
    tables = [
        pd.read_parquet(run / "trials")[METRICS].sort_values("trial_id") for run in (local, tmp_path / "cluster" / "cluster")
    ]
    pd.testing.assert_frame_equal(*(table.reset_index(drop=True) for table in tables), check_exact=True)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("wish", "num_trials", "is_local", "expected"),
    [(8, 64, True, 2), (None, 64, True, 2), (1, 64, True, 1), (8, 1, True, 1), (8, 64, False, 8), (None, 64, False, 64)],
)
def test_one_machine_holds_no_more_trials_than_it_has_room_for(wish, num_trials: int, is_local: bool, expected: int) -> None:
    """This one has 2 CPUs; what a cluster may come to have is not known."""
    resources = plan_resources(
        num_trials=num_trials, cpus_per_trial=None, gpus_per_trial=None, max_concurrent=wish, is_local=is_local
    )
    assert (resources.max_concurrent, resources.may_grow) == (expected, not is_local)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_room_is_counted_in_whole_trials_on_each_node() -> None:
    assert room_on_nodes(cpus_per_trial=0.5, gpus_per_trial=0) == Room(free=4, total=4)
    assert room_on_nodes(cpus_per_trial=2, gpus_per_trial=0) == Room(free=1, total=1)
    assert room_on_nodes(cpus_per_trial=1, gpus_per_trial=1) == Room(free=0, total=0)
