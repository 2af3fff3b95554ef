"""A run's first moments: killed at any of them, there is no run, or a whole one; begun twice at once, there is one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tune_lung.files import read_json_with_digest
from tune_lung.results import ownership
from tune_lung.results.layout import RunPaths
from tune_lung.results.ownership import Ownership
from tune_lung.results.reader import read_run

from tests.faults.beginning import begun
from tests.faults.search_process import (
    SearchProcess,
    assert_as_if_nothing_had_happened,
    begin,
    environment_of,
    searched,
)

pytestmark = pytest.mark.faults

KILLED = -signal.SIGKILL


def test_a_kill_at_any_file_leaves_no_run_or_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "_SECONDS_TO_WATCH", 0.0)
    num_whole, at, status = 0, 0, KILLED
    while status == KILLED:
        at += 1
        run = tmp_path / str(at) / "run"
        command = [sys.executable, "-m", "tests.faults.beginning", str(run)]
        fault = {"do": "kill self", "file": f"{run.parent}/*", "at": at}
        status = subprocess.run(command, env=os.environ | environment_of(fault), timeout=60, check=False).returncode
        if run.exists():
            num_whole += 1
            found = read_run(run)
            assert (found.name, found.damaged, len(found.images)) == ("run", (), 1)
            assert json.loads(found.paths.manifest_copy.read_text()) == json.loads(found.paths.manifest.read_text())
            assert read_json_with_digest(found.paths.lessons) == {"trials": []}
            with Ownership.claim(run) as own:
                assert own.attempt == 2
        else:
            begun(run)
            assert read_run(run).name == "run"
        begun(run.with_name("other"))
        assert {path.name for path in run.parent.iterdir()} == {"run", "other"}
    assert status == 0
    # The owner, 8 empty tables, the manifest and its copy, lessons and images; then, in its place, the owner twice. Between
    # them lie as many heartbeats as there is time for.
    assert at >= 16
    assert num_whole >= 3


def test_a_search_killed_while_it_makes_its_run_is_begun_again_under_the_same_name(tmp_path: Path, undisturbed: Path) -> None:
    fault = {"do": "kill driver", "file": "*/trials/.schema.parquet.*", "at": 1}
    searched(*begin(tmp_path), "--max-epochs", "4", status=KILLED, fault=fault)
    (left,) = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert left.name.startswith(".run.")
    assert not (tmp_path / "run").exists()
    searched(*begin(tmp_path), "--max-epochs", "4")
    assert not left.exists()
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)


def test_a_search_killed_when_its_run_has_just_appeared_goes_on(tmp_path: Path, undisturbed: Path) -> None:
    fault = {"do": "kill driver", "file": "*/run/..owner-1.json.*", "at": 1}
    searched(*begin(tmp_path), "--max-epochs", "4", status=KILLED, fault=fault)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]
    searched("--resume", str(tmp_path / "run"))
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)


def test_of_two_searches_of_one_name_begun_at_once_one_runs(tmp_path: Path) -> None:
    options = [*begin(tmp_path), "--max-epochs", "1"]
    searches = {seed: SearchProcess.start(*options, "--seed", seed) for seed in "45"}
    ended = {seed: search.end() for seed, search in searches.items()}
    (winner,) = [seed for seed, (status, _) in ended.items() if status == 0]
    (lost,) = [printed for status, printed in ended.values() if status == 2]
    (line,) = [line for line in lost.splitlines() if line.startswith("error: ")]
    assert line == "error: The run folder 'run' exists already. Choose another --name or remove it."
    assert "Traceback" not in lost
    run = read_run(tmp_path / "run")
    assert (str(run.manifest["seed"]), run.manifest["status"], run.manifest["attempt"]) == (winner, "completed", 1)
    assert set(run.trials["status"]) == {"completed"}
    assert RunPaths(tmp_path / "run").owner(1).exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
