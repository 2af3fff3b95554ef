"""A cluster that grows, vanishes and comes back under a sampled search."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest

from tests.faults.growing_cluster import EPOCH_SECONDS, NUM_TRIALS

pytestmark = pytest.mark.faults


@pytest.mark.timeout(330)
def test_demand_and_tables_follow_the_nodes_that_are_really_there(tmp_path: Path) -> None:
    seen = seen_on_cluster(tmp_path)
    # No slot: four are asked for, so that a node comes. Then one waits for each that runs.
    assert seen["most_open"].keys() == {"0", "1", "2", "3"}
    assert seen["most_open"]["0"] == 4
    assert seen["most_open"]["3"] == 6
    assert seen["lost"]["running"] == 0
    assert "0 running" in seen["lost"]["line"]
    assert "no node has room for a trial now" in seen["lost"]["line"]
    trials = pd.read_parquet(tmp_path / "run" / "trials")
    assert trials["status"].to_list() == ["completed"] * NUM_TRIALS
    assert trials["concurrent_trials"].max() == 3
    assert trials["attempts"].max() == 2  # of those whose nodes were lost
    lost = trials["attempts"] == 2
    assert set(trials.loc[lost, "slot"]) == {0}  # they ran again on the one node that came
    assert set(trials.loc[~lost, "slot"]) <= {0, 1, 2}  # a worker may tell its end in the moment in which its node is lost
    assert NUM_TRIALS * EPOCH_SECONDS < seen["slot_seconds"] < 3 * seen["seconds"]


def seen_on_cluster(folder: Path) -> dict:
    """Run the script, whose processes end with it, and return what it saw."""
    with TemporaryDirectory(prefix="ray") as short_path:  # pytest's is too long for Ray's sockets
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": short_path, "PYTHONPATH": str(Path.cwd())}
        script = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("growing_cluster.py")), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            printed, errors = script.communicate(timeout=280)
        except subprocess.TimeoutExpired:
            os.killpg(script.pid, signal.SIGKILL)
            raise
        assert script.returncode == 0, printed + errors
        return json.loads(printed.splitlines()[-1])
