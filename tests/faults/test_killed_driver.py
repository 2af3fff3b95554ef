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
    "training": {
        "before the first trial": ("*/trials/.[0-9a-f]*.parquet.*", 1),
        "while a checkpoint is written": ("*/checkpoints/*/.last.safetensors.*", 1),
        "while a best network is written": ("*/checkpoints/*/.best.safetensors.*", 1),
        "while a ledger part is written": ("*/epochs/.[0-9a-f]*.parquet.*", 2),
    },
    "the end": {
        "while a trial's row is written": ("*/trials/.[0-9a-f]*.parquet.*", 4),
        "as a resume begins": ("*/.run.json.*", 1),
        "during the evaluation": ("*/predictions/.[0-9a-f]*.parquet.*", 2),
        "while the manifest is written": ("*/.run.json.*", 3),
    },
}
"""File names, and how often such a file must have been written by one process, when the kill comes."""


@pytest.mark.timeout(400)  # five searches
@pytest.mark.parametrize("part", MOMENTS)
def test_a_grid_killed_again_and_again_goes_on_as_if_nothing_had_happened(tmp_path: Path, undisturbed: Path, part: str) -> None:
    run, options = tmp_path / "run", [*begin(tmp_path), "--max-epochs", "4"]
    for file, at in MOMENTS[part].values():
        before = keys_of(run)
        searched(*options, status=KILLED, fault={"do": "kill driver", "file": file, "at": at})
        assert_nothing_lost(before, run)
        options = ["--resume", str(run)]
    before = keys_of(run)
    searched(*options)
    assert_nothing_lost(before, run)
    assert_as_if_nothing_had_happened(run, undisturbed)
    assert read_run(run).manifest["attempt"] == 1 + len(MOMENTS[part])


def test_killed_in_the_middle_of_an_epoch(tmp_path: Path, undisturbed: Path) -> None:
    search = SearchProcess.start(*begin(tmp_path), "--max-epochs", "4")
    wait_until(lambda: num_epochs(tmp_path / "run") > 0)
    search.kill()
    search.end()
    before = keys_of(tmp_path / "run")
    searched("--resume", str(tmp_path / "run"))
    assert_nothing_lost(before, tmp_path / "run")
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)


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


@pytest.mark.timeout(400)  # four searches
def test_a_sampled_search_killed_at_its_rungs_and_between_them_goes_on_with_the_same_points_and_verdicts(
    tmp_path: Path, undisturbed_sampled: Path
) -> None:
    run, fault = tmp_path / "run", {"do": "kill driver", "file": "*/decisions/.[0-9a-f]*.parquet.*"}
    searched(*begin(tmp_path, *SAMPLED, space=SAMPLED_SPACE), "--max-epochs", "4", status=KILLED, fault=fault | {"at": 2})
    before, num_before = keys_of(run), num_epochs(run)
    search = SearchProcess.start("--resume", str(run))
    wait_until(lambda: num_epochs(run) >= num_before + 3)
    search.kill()
    search.end()
    assert_nothing_lost(before, run)
    before = keys_of(run)
    searched("--resume", str(run), status=KILLED, fault=fault | {"at": 3})
    assert_nothing_lost(before, run)
    before = keys_of(run)
    searched("--resume", str(run))
    assert_nothing_lost(before, run)
    assert_as_if_nothing_had_happened(run, undisturbed_sampled)
