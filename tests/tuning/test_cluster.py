"""Ray's nodes: what a trial gets, and a search over two of them."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest

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
    tables = [
        pd.read_parquet(run / "trials")[METRICS].sort_values("trial_id") for run in (local, tmp_path / "cluster" / "cluster")
    ]
    pd.testing.assert_frame_equal(*(table.reset_index(drop=True) for table in tables), check_exact=True)
