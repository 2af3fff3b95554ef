"""What a killed search leaves: every network that its rows promise, and working folders that the next one removes."""

import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import psutil
import pytest

from tune_lung.metrics import metrics_on_test
from tune_lung.results.ranking import best_points
from tune_lung.results.reader import read_run
from tune_lung.training.checkpoints import load

from tests.faults.search_process import (
    SAMPLED,
    SAMPLED_SPACE,
    SearchProcess,
    assert_as_if_nothing_had_happened,
    begin,
    comparable,
    num_epochs,
    searched,
    wait_until,
    working_folders,
)

pytestmark = pytest.mark.faults

KILLED = -9


def promised(root: Path) -> dict[str, int]:
    """The best epoch of each ended trial whose network the rows promise: of each cell's first point and best."""
    trials = read_run(root).trials
    first = trials.loc[trials.groupby("cell")["proposed_order"].idxmin(), "trial_id"]
    ended = trials[trials["status"] != "running"]
    kept = ended[ended["trial_id"].isin({*first, *best_points(ended)["trial_id"]})]
    return {row.trial_id: int(row.best_epoch) for row in kept.itertuples()}


def files_of(root: Path) -> dict[str, list[str]]:
    return {folder.name: sorted(path.name for path in folder.iterdir()) for folder in (root / "checkpoints").iterdir()}


def assert_promise_is_kept(root: Path) -> None:
    """Every promised network is there, whole, and of the epoch that its row says."""
    for trial_id, epoch in promised(root).items():
        assert load(root / "checkpoints" / trial_id / "best.safetensors").state["epoch"] == epoch


@pytest.mark.timeout(400)  # four searches
def test_a_search_killed_at_its_deletions_loses_no_network_that_its_rows_promise(
    tmp_path: Path, undisturbed_sampled: Path
) -> None:
    """Every single deletion is in the tests of `tune_lung.tuning.retention`."""
    root, options = tmp_path / "run", [*begin(tmp_path, *SAMPLED, space=SAMPLED_SPACE), "--max-epochs", "4"]
    for file, when in (("last", "after deletion"), ("best", "before deletion"), ("best", "after deletion")):
        fault = {"do": "kill driver", "file": f"*/checkpoints/*/{file}.safetensors", "at": 1, "when": when}
        searched(*options, status=KILLED, fault=fault)
        assert_promise_is_kept(root)
        options = ["--resume", str(root)]
    searched(*options)
    assert_as_if_nothing_had_happened(root, undisturbed_sampled)
    assert_promise_is_kept(root)
    assert files_of(root) == {trial_id: ["best.safetensors"] for trial_id in promised(root)}


@pytest.mark.timeout(400)  # three searches
def test_more_repeats_train_again_what_leads_by_them_and_was_not_kept(tmp_path: Path) -> None:
    """What leads by one seed may not lead by the mean of three: the tables are those of three from the beginning."""
    options = ("--samples", "4", "--sampler", "random", "--scheduler", "none", "--max-epochs", "2")
    searched(*begin(tmp_path / "at once", *options, "--repeats", "3", space=SAMPLED_SPACE))
    searched(*begin(tmp_path / "grown", *options, space=SAMPLED_SPACE))
    searched("--resume", str(tmp_path / "grown" / "run"), "--repeats", "3")
    grown, at_once = (tmp_path / name / "run" for name in ("grown", "at once"))
    tested = best_points(read_run(at_once).trials)["trial_id"]
    tables = [read_run(root) for root in (grown, at_once)]
    of_test = [metric.test_column for metric in metrics_on_test()]
    untested = [comparable(run, "trials").drop(columns=of_test) for run in tables]
    pd.testing.assert_frame_equal(*untested, check_exact=True)
    scores = [run.trials.set_index("trial_id").loc[tested, of_test] for run in tables]
    pd.testing.assert_frame_equal(*scores, check_exact=True)
    assert scores[0].notna().all(axis=None)
    assert_promise_is_kept(grown)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary folder of one's own; pytest's has too long a path for Ray's sockets."""
    with TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as name:
        yield Path(name)


def test_what_a_killed_search_left_in_the_temporary_folder_goes_with_the_next_and_nothing_else(
    tmp_path: Path, temporary: Path, undisturbed: Path
) -> None:
    search = SearchProcess.start(*begin(tmp_path), "--max-epochs", "4", TMPDIR=str(temporary))
    wait_until(lambda: num_epochs(tmp_path / "run") > 0)
    folders = working_folders(temporary)
    assert len([path for folder in folders for path in folder.glob("w/session_2*")]) == 1
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
    children = psutil.Process(search.process.pid).children(recursive=True)
    search.kill()
    search.end()
    for child in children:  # those that would live on for a minute
        if child.is_running():
            child.kill()
    psutil.wait_procs(children, timeout=60)
    assert all(folder.exists() for folder in folders)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "session_latest").write_text("a user's own")
    for name in ("tl-link", "tune_lung-link"):
        (temporary / name).symlink_to(elsewhere)
    for name in ("tl-abcd1234", "tune_lung-ray-abcd1234", "ray"):
        (temporary / name / "w" / "session_2026").mkdir(parents=True)
    planted = sorted(path for path in temporary.rglob("*") if not any(path.is_relative_to(folder) for folder in folders))
    assert len(planted) >= 11
    searched("--resume", str(tmp_path / "run"), TMPDIR=str(temporary))
    assert sorted(temporary.rglob("*")) == planted
    assert (elsewhere / "session_latest").read_text() == "a user's own"
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)


def test_a_temporary_folder_too_long_for_sockets_is_said_in_one_line_and_not_made(tmp_path: Path) -> None:
    long = tmp_path / ("long" * 20)
    printed = searched(*begin(tmp_path), "--max-epochs", "1", status=2, RAY_TMPDIR=str(long))
    assert "error: The temporary folder's path is too long for Ray's sockets. Set RAY_TMPDIR to a short one." in printed
    assert not long.exists()
    assert not (tmp_path / "run").exists()


def test_no_working_folder_is_left_by_a_search_that_ends(temporary: Path, tmp_path: Path) -> None:
    """Not even by one that a bug has ended; those that Ctrl-C and SIGTERM end are looked at where they are told to."""
    fault = {"do": "raise", "file": "*/.best.*", "at": 0}
    options = begin(tmp_path, space=SAMPLED_SPACE.replace("Grid(2, 3)", "Grid(2, 3, 4)"))
    printed = searched(*options, "--samples", "1", "--max-epochs", "1", status=1, fault=fault, TMPDIR=str(temporary))
    assert "error: The first 3 trials all failed" in printed
    assert working_folders(temporary) == []
