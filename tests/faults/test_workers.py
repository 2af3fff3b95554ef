"""Trials that fail, and workers and nodes that go away: each has its sort, its policy, and its count in the ledger."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

from tune_lung.results.reader import read_run

from tests.faults.search_process import (
    SPACE,
    SearchProcess,
    assert_as_if_nothing_had_happened,
    begin,
    environment_of,
    num_epochs,
    searched,
    wait_until,
    working_folders,
)

pytestmark = pytest.mark.faults

ROOM_BYTES = 5_000_000_000
"""What a search may take beside all that runs; two of the fault tests run at once."""


def bounded_memory() -> dict[str, str]:
    """Let Ray end who fills what is free, before the machine is full.

    For the one who fills alone: with such a bound another test's search would lose a worker to that filling.
    """
    memory = psutil.virtual_memory()
    most = min(0.95, (memory.total - memory.available + ROOM_BYTES) / memory.total)
    return {"RAY_memory_usage_threshold": f"{most:.4f}"}


def trials_of(folder: Path) -> pd.DataFrame:
    return read_run(folder / "run").trials.set_index("cell")


def test_a_killed_worker_costs_its_trial_nothing(tmp_path: Path, undisturbed: Path) -> None:
    fault = {"do": "kill self", "file": "*/.last.*", "at": 1, "once": str(tmp_path / "once")}
    printed = searched(*begin(tmp_path), "--max-epochs", "4", fault=fault)
    assert printed.count("lost_worker: its worker's process died; tried again") == 1
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)
    assert sorted(trials_of(tmp_path)["attempts"]) == [1, 1, 2]


def test_a_worker_that_dies_each_time_fails_its_trial_after_three(tmp_path: Path) -> None:
    fault = {"do": "kill self", "file": "*/.best.*", "at": 1}
    printed = searched(*begin(tmp_path, "--set", "model=resnet18"), "--max-epochs", "2", status=1, fault=fault)
    trials = trials_of(tmp_path)
    assert set(trials["status"]) == {"failed"}
    assert set(trials["failure_kind"]) == {"lost_worker"}
    assert set(trials["attempts"]) == {3}
    assert printed.count("tried again") == 2


def test_a_hung_worker_is_ended_and_its_trial_tried_again(tmp_path: Path) -> None:
    fault = {"do": "freeze", "file": "*/.best.*", "at": 1}
    printed = searched(
        *begin(tmp_path, "--hang-timeout", "3s", "--set", "model=resnet18"), "--max-epochs", "2", status=1, fault=fault
    )
    trials = trials_of(tmp_path)
    assert set(trials["failure_kind"]) == {"hung"}
    assert set(trials["attempts"]) == {2}
    assert "hung: nothing moved for too long; tried again" in printed


def test_a_diverged_trial_fails_at_once_and_alone(tmp_path: Path) -> None:
    rates = 'learning_rate=Grid(0.002, 10.0), weight_decay=10.0, optimizer="sgd"'
    space = SPACE.replace("learning_rate=0.002", rates).replace("Grid(4, 8)", "4")
    printed = searched(*begin(tmp_path, space=space), "--max-epochs", "30")
    kinds = read_run(tmp_path / "run").trials.set_index("learning_rate")["failure_kind"]
    assert kinds[10.0] == "diverged"
    assert kinds.isna().sum() == 2
    assert printed.count("failed: diverged: ") == 1


def test_a_loss_that_is_no_number_fails_its_trials_at_once(tmp_path: Path) -> None:
    """Infinities are in the tests of `tune_lung.training.fit`."""
    fault = {"do": "spoil the loss", "file": "*/.best.*", "at": 1, "value": "nan"}  # the first trial has its loss already
    printed = searched(*begin(tmp_path), "--max-epochs", "2", fault=fault)
    trials = read_run(tmp_path / "run").trials.sort_values("proposed_order")
    assert trials["status"].tolist() == ["completed", "failed", "failed"]
    assert trials["failure_kind"].tolist()[1:] == ["diverged"] * 2
    assert trials["attempts"].tolist() == [1, 1, 1]
    assert trials["epochs_run"].tolist() == [2, 0, 0]
    assert printed.count("diverged: The training loss is nan at epoch 1.") == 2


def test_a_bug_that_fails_the_first_three_trials_ends_the_search(tmp_path: Path) -> None:
    space = SPACE.replace("Grid(4, 8)", "Grid(4, 8, 12, 16)")
    fault = {"do": "raise", "file": "*/.best.*", "at": 0}
    printed = searched(*begin(tmp_path, space=space), "--max-epochs", "2", status=1, fault=fault)
    assert "error: The first 3 trials all failed, the last with bug: RuntimeError: injected" in printed
    trials = trials_of(tmp_path)
    assert trials["failure_kind"].tolist() == ["bug"] * 3
    assert read_run(tmp_path / "run").manifest["status"] == "failed"


@pytest.mark.parametrize(
    ("do", "told"),
    [
        ("run out of memory", "out_of_memory: MemoryError; tried again"),
        ("fill memory", "out_of_memory: Ray killed its worker, for the node was running low on memory; tried again"),
    ],
)
def test_one_that_ran_out_of_memory_is_tried_again_alone(tmp_path: Path, undisturbed: Path, do: str, told: str) -> None:
    fault = {"do": do, "file": "*/.best.*", "at": 1, "once": str(tmp_path / "once")}
    printed = searched(*begin(tmp_path), "--max-epochs", "4", fault=fault, **(bounded_memory() if do == "fill memory" else {}))
    assert printed.count(told) == 1
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)
    trials = trials_of(tmp_path)
    assert sorted(trials["attempts"]) == [1, 1, 2]
    assert trials["ended_order"].idxmax() == trials["attempts"].idxmax()  # alone, when all others had ended


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_search_that_is_told_to_end_closes_its_ledger_and_goes_on(
    tmp_path: Path, undisturbed: Path, number: signal.Signals, status: int
) -> None:
    with TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as temporary:
        search = SearchProcess.start(*begin(tmp_path), "--max-epochs", "4", TMPDIR=temporary)
        wait_until(lambda: num_epochs(tmp_path / "run") > 0)
        search.kill(number)
        found, printed = search.end(timeout=30)
        assert working_folders(Path(temporary)) == []
    assert found == status, printed
    assert "To go on: --resume" in printed
    assert read_run(tmp_path / "run").manifest["status"] == "interrupted"
    searched("--resume", str(tmp_path / "run"))
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)


def test_ctrl_c_twice_leaves_at_once(tmp_path: Path, undisturbed: Path) -> None:
    search = SearchProcess.start(*begin(tmp_path), "--max-epochs", "4")
    wait_until(lambda: num_epochs(tmp_path / "run") > 0)
    children = psutil.Process(search.process.pid).children(recursive=True)
    search.kill(signal.SIGINT)
    search.kill(signal.SIGINT)
    found, printed = search.end(timeout=10)
    assert found == 130, printed
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, [child.name() for child in alive]
    searched("--resume", str(tmp_path / "run"))
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)


def searched_on_nodes(folder: Path, nodes: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    """Run a small search on a cluster of such nodes on this machine; a node's `fault` is its own."""
    command = [sys.executable, "-m", "tune_lung.search", *begin(folder), "--max-epochs", "4", "--max-concurrent", "2"]
    with TemporaryDirectory(prefix="ray") as short_path:  # pytest's is too long for Ray's sockets
        return subprocess.run(
            [sys.executable, str(Path(__file__).with_name("cluster_of.py")), json.dumps(nodes), *command],
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
            env=os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": short_path} | environment_of(None),
        )


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_a_node_that_cannot_read_its_data_costs_no_trial(tmp_path: Path, undisturbed: Path, number: int) -> None:
    note = str(tmp_path / "refused")
    waits = {"do": "wait", "file": "*/.last.*", "at": 1, "note": note}  # lest a quick node does it all
    refuses = {"do": "refuse", "file": "*/train.npy", "errno": number, "note": note}
    done = searched_on_nodes(tmp_path, [{"num_cpus": 1, "fault": waits}, {"num_cpus": 1, "fault": refuses}])
    assert done.returncode == 0, done.stdout + done.stderr
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)
    told = f"unfit_node: its node cannot use a file or folder: {type(OSError(number, '')).__name__}: [Errno {number}]"
    assert told in done.stdout
    assert "tried again" in done.stdout
    assert max(trials_of(tmp_path)["attempts"]) == 2  # never on the same node again
    assert "127.0.0." not in done.stdout + done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use this machine's GPU")
def test_a_gpu_that_torch_cannot_use_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    done = searched_on_nodes(tmp_path, [{"num_cpus": 1, "num_gpus": 1}])
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: No trial can be trained here: its node's GPU cannot be used: Found no NVIDIA driver" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


def test_a_lost_node_costs_its_trial_nothing(tmp_path: Path, undisturbed: Path) -> None:
    command = [sys.executable, "-m", "tune_lung.search", *begin(tmp_path), "--max-epochs", "4"]
    hangs = tmp_path / "once"
    fault = {"do": "freeze", "file": "*/.last.*", "at": 1, "once": str(hangs)}
    with TemporaryDirectory(prefix="ray") as short_path:  # pytest's is too long for Ray's sockets
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("lost_node.py")), str(hangs), *command],
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
            env=os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": short_path} | environment_of(fault),
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed a node: True" in done.stdout
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)
    assert sorted(trials_of(tmp_path)["attempts"]) == [1, 1, 2]
    assert "its node went away; tried again" in done.stdout or "its worker's process died; tried again" in done.stdout


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_search_whose_ray_dies_says_so_and_what_to_do(tmp_path: Path, name: str) -> None:
    """While nothing is asked of Ray: else its C++ part may end the driver before a word is said, as a kill would."""
    patient = ("--patience", "100000")
    search = SearchProcess.start(*begin(tmp_path, "--set", "model=resnet18"), "--max-epochs", "100000", *patient)
    wait_until(lambda: num_epochs(tmp_path / "run") > 0)
    children = psutil.Process(search.process.pid).children(recursive=True)
    next(child for child in children if child.name() == name).kill()
    status, printed = search.end(timeout=45)
    assert status == 1, printed
    assert f"({name}) has died: somebody ended it, or the system did for want of memory." in printed
    assert f"To go on: --resume {tmp_path / 'run'}" in printed
    assert not [word for word in ("Traceback", "state-dump", "***", ".cc:") if word in printed], printed
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
