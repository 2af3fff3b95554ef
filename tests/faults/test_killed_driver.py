"""A driver killed by SIGKILL, wherever it stands: the run goes on as if nothing had happened."""

import signal
from pathlib import Path

import pytest

from tune_lung.results.reader import read_run

from tests.faults.search_process import (
    SAMPLED,
    SAMPLED_SPACE,
    SearchProcess,
    assert_as_if_nothing_had_happened,
    assert_nothing_lost,
    begin,
    keys_of,
    num_epochs,
    searched,
    wait_until,
)

pytestmark = pytest.mark.faults

KILLED = -signal.SIGKILL
MOMENTS = {
    "before the first trial": ("*/trials/.[0-9a-f]*.parquet.*", 1),
    "while a checkpoint is written": ("*/checkpoints/*/.last.safetensors.*", 1),
    "while a best network is written": ("*/checkpoints/*/.best.safetensors.*", 1),
    "while a ledger part is written": ("*/epochs/.[0-9a-f]*.parquet.*", 2),
    "while a trial's row is written": ("*/trials/.[0-9a-f]*.parquet.*", 4),
    "while the manifest is written": ("*/.run.json.*", 3),
    "during the evaluation": ("*/predictions/.[0-9a-f]*.parquet.*", 2),
}
"""File names, and how often such a file must have been written by one process, when the kill comes."""


def assert_a_kill_costs_nothing(search: SearchProcess, run: Path, undisturbed: Path) -> None:
    """Kill a search as it stands; resumed, its run must have lost nothing, and equal the undisturbed one."""
    search.kill()
    search.end()
    before = keys_of(run)
    searched("--resume", str(run))
    assert_nothing_lost(before, run)
    assert_as_if_nothing_had_happened(run, undisturbed)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_grid_goes_on_as_if_nothing_had_happened(tmp_path: Path, undisturbed: Path, moment: str) -> None:
    file, at = MOMENTS[moment]
    fault = {"do": "kill driver", "file": file, "at": at}
    searched(*begin(tmp_path), "--max-epochs", "4", status=KILLED, fault=fault)
    before = keys_of(tmp_path / "run")
    searched("--resume", str(tmp_path / "run"))
    assert_nothing_lost(before, tmp_path / "run")
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)


def test_killed_in_the_middle_of_an_epoch(tmp_path: Path, undisturbed: Path) -> None:
    search = SearchProcess.start(*begin(tmp_path), "--max-epochs", "4")
    wait_until(lambda: num_epochs(tmp_path / "run") > 0)
    assert_a_kill_costs_nothing(search, tmp_path / "run", undisturbed)


def test_killed_while_prefix_features_are_computed(tmp_path: Path, undisturbed: Path) -> None:
    cache = tmp_path / "cache"
    search = SearchProcess.start(*begin(tmp_path), "--max-epochs", "4", "--cache", str(cache))
    wait_until(lambda: any(cache.glob("features/.*")))
    search.kill()
    search.end()
    searched("--resume", str(tmp_path / "run"))
    assert not any(cache.glob("features/.*"))
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)


def test_killed_while_figures_are_drawn(tmp_path: Path, undisturbed: Path) -> None:
    options = [option for option in begin(tmp_path) if option != "--no-report"]
    search = SearchProcess.start(*options, "--max-epochs", "4")
    wait_until(lambda: (tmp_path / "run" / "figures").exists())
    search.kill()
    search.end()
    printed = searched("--resume", str(tmp_path / "run"))
    assert "3 trials have ended, 0 go on" in printed
    assert all(path.stat().st_size > 0 for path in (tmp_path / "run" / "figures").glob("*.png"))
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)


def test_killed_during_a_resume_and_resumed_again(tmp_path: Path, undisturbed: Path) -> None:
    fault = {"do": "kill driver", "file": "*/epochs/.[0-9a-f]*.parquet.*", "at": 2}
    searched(*begin(tmp_path), "--max-epochs", "4", status=KILLED, fault=fault)
    first = keys_of(tmp_path / "run")
    for file, at in (("*/.run.json.*", 1), ("*/trials/.[0-9a-f]*.parquet.*", 1)):
        searched("--resume", str(tmp_path / "run"), status=KILLED, fault={"do": "kill driver", "file": file, "at": at})
    searched("--resume", str(tmp_path / "run"))
    assert_nothing_lost(first, tmp_path / "run")
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)
    assert read_run(tmp_path / "run").manifest["attempt"] == 4


@pytest.mark.parametrize("at", [2, 5])
def test_a_sampled_search_killed_at_a_rung_goes_on_with_the_same_points_and_verdicts(
    tmp_path: Path, undisturbed_sampled: Path, at: int
) -> None:
    fault = {"do": "kill driver", "file": "*/decisions/.[0-9a-f]*.parquet.*", "at": at}
    searched(*begin(tmp_path, *SAMPLED, space=SAMPLED_SPACE), "--max-epochs", "4", status=KILLED, fault=fault)
    before = keys_of(tmp_path / "run")
    searched("--resume", str(tmp_path / "run"))
    assert_nothing_lost(before, tmp_path / "run")
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed_sampled)


def test_a_sampled_search_killed_between_rungs_goes_on_with_the_same_points_and_verdicts(
    tmp_path: Path, undisturbed_sampled: Path
) -> None:
    search = SearchProcess.start(*begin(tmp_path, *SAMPLED, space=SAMPLED_SPACE), "--max-epochs", "4")
    wait_until(lambda: num_epochs(tmp_path / "run") >= 6)
    assert_a_kill_costs_nothing(search, tmp_path / "run", undisturbed_sampled)
