"""One driver at a time, wherever the run lies and whatever the clock says."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tune_lung.data.__main__ import main as data
from tune_lung.results.layout import RunPaths
from tune_lung.results.ledger import Ledger, read_manifest
from tune_lung.results.reader import read_run
from tune_lung.search.__main__ import main
from tune_lung.training.checkpoints import load, save

from tests.faults.search_process import (
    SAMPLED,
    SAMPLED_SPACE,
    SearchProcess,
    assert_as_if_nothing_had_happened,
    assert_nothing_lost,
    begin,
    keys_of,
    num_duplicates,
    num_epochs,
    searched,
    wait_until,
)

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed in the middle."""
    folder = tmp_path_factory.mktemp("killed")
    fault = {"do": "kill driver", "file": "*/epochs/.[0-9a-f]*.parquet.*", "at": 2}
    searched(*begin(folder), "--max-epochs", "4", status=-9, fault=fault)
    return folder / "run"


@pytest.fixture
def killed(killed_once: Path, tmp_path: Path) -> Path:
    """A run killed in the middle, of one's own."""
    return Path(shutil.copytree(killed_once, tmp_path / "run"))


def test_a_second_driver_is_refused_in_under_5_seconds_and_the_first_goes_on(tmp_path: Path, undisturbed: Path) -> None:
    first = SearchProcess.start(*begin(tmp_path), "--max-epochs", "4")
    wait_until(lambda: num_epochs(tmp_path / "run") > 0)
    started = time.monotonic()
    printed = searched("--resume", str(tmp_path / "run"), status=2)
    assert time.monotonic() - started < 5
    assert "error: Another search is at work in 'run' (process " in printed
    status, printed = first.end()
    assert status == 0, printed
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)
    assert read_run(tmp_path / "run").manifest["attempt"] == 1


def test_a_worker_of_the_killed_driver_writes_no_more_when_another_has_taken_over(tmp_path: Path, undisturbed: Path) -> None:
    """The worker hangs before it renames its checkpoint; the driver is killed, and another finishes the run beside it."""
    fault = {"do": "freeze", "file": "*/.last.*", "at": 1, "once": str(tmp_path / "once")}
    first = SearchProcess.start(*begin(tmp_path), "--max-epochs", "4", fault=fault)
    wait_until((tmp_path / "once").exists)
    first.kill()
    searched("--resume", str(tmp_path / "run"))
    first.end()
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)
    assert read_run(tmp_path / "run").manifest["attempt"] == 2


def content_of(run: Path) -> dict[Path, bytes]:
    """Every file of a run, byte for byte."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


MOMENTS = {
    "training": lambda run: num_epochs(run) > 0,
    "the sealed evaluation": lambda run: (run / "run.json").exists() and read_run(run).manifest["test_openings"],
    "the figures": lambda run: (run / "figures").exists(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_paused_driver_whose_run_was_taken_over_writes_nothing_more(tmp_path: Path, undisturbed: Path, moment: str) -> None:
    """Its lock is not shared, as between machines: whoever comes next locks another file."""
    run = tmp_path / "run"
    first = SearchProcess.start(*(option for option in begin(tmp_path) if option != "--no-report"), "--max-epochs", "4")
    wait_until(lambda: MOMENTS[moment](run))
    first.kill(signal.SIGSTOP)
    (run / ".lock").unlink()
    searched("--resume", str(run))
    assert_as_if_nothing_had_happened(run, undisturbed)
    assert num_duplicates(run) == 0
    left = content_of(run)
    first.kill(signal.SIGCONT)
    status, printed = first.end(timeout=60)
    assert status == 3, printed
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: The run 'run' was taken over by another search (attempt 2). This one stops; nothing more of it is written."
    ]
    assert "Traceback" not in printed
    assert content_of(run) == left


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_run_that_was_moved_or_copied_goes_on_where_it_lies(killed: Path, tmp_path: Path, undisturbed: Path, move) -> None:
    before = keys_of(killed)
    elsewhere = tmp_path / "elsewhere"
    move(killed, elsewhere)
    left = {path: path.stat().st_mtime_ns for path in killed.rglob("*")} if killed.exists() else {}
    searched("--resume", str(elsewhere))
    assert_nothing_lost(before, elsewhere)
    assert_as_if_nothing_had_happened(elsewhere, undisturbed)
    assert left == ({path: path.stat().st_mtime_ns for path in killed.rglob("*")} if killed.exists() else {})


def test_the_clock_moved_back_changes_nothing(killed: Path, undisturbed: Path) -> None:
    """Every file of the run is of tomorrow, as seen by a clock that was put back."""
    tomorrow = time.time() + 86400
    for path in killed.rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    searched("--resume", str(killed))
    assert_as_if_nothing_had_happened(killed, undisturbed)


def test_a_run_of_a_newer_version_is_refused_and_left_as_it_is(killed: Path) -> None:
    manifest = read_manifest(RunPaths(killed))
    Ledger(killed).write_manifest(manifest | {"schema_version": 99})
    text = (killed / "run.json").read_text()
    printed = searched("--resume", str(killed), status=2)
    assert "was written by a newer tune_lung (tables of version 99" in printed
    assert (killed / "run.json").read_text() == text


def test_a_run_of_version_1_goes_on(killed: Path, undisturbed: Path) -> None:
    """Tables of version 1 have no order, manifests no digest, checkpoints no history: its unfinished trials begin anew."""
    for path in (killed / "trials").glob("*.parquet"):
        lacking = ["failure_kind", "proposed_order", "ended_order", "started", "ended", "slot"]
        table = pq.read_table(path).drop_columns(lacking)
        pq.write_table(table.replace_schema_metadata({"tune_lung_schema_version": "1"}), path)
    for path in (killed / "epochs").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["ended"]), path)
    manifest = read_manifest(RunPaths(killed))
    (killed / "run.json").write_text(json.dumps({**manifest, "schema_version": 1}))
    for name in (".run.json.copy", ".owner-1.json"):
        (killed / name).unlink()
    for path in killed.glob("checkpoints/*/last.safetensors"):
        checkpoint = load(path)
        save(path, replace(checkpoint, state={name: value for name, value in checkpoint.state.items() if name != "history"}))
    searched("--resume", str(killed))
    assert_as_if_nothing_had_happened(killed, undisturbed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "4"], "--seed is 3 in 'run' and 4 here"),
        (["--image-size", "64"], "--image-size is 32 in 'run' and 64 here"),
        (["--limit", "60"], "--limit is 80 in 'run' and 60 here"),
        (["--protocol", "published"], "--protocol is strict in 'run' and published here"),
        (["--space", "freeze_grid"], "depth of arm 1 is 3 in 'run' and None here"),
        (["--set", "batch_size=8"], "batch_size of arm 1 is 16 in 'run' and 8 here"),
        (["--patience", "3"], "patience of arm 1 is 20 in 'run' and 3 here"),
        (["--scheduler", "asha"], "scheduler is none in the run and asha here"),
        (["--max-epochs", "2"], "--max-epochs may grow (4 so far), not shrink to 2"),
        (["--samples", "3"], "--samples means nothing here"),
        (["--name", "other"], "--name does not go together with --resume"),
    ],
)
def test_what_would_change_the_search_is_refused_with_the_difference(
    undisturbed: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--resume", str(undisturbed), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_other_images_are_refused(killed: Path, tmp_path: Path) -> None:
    assert data(["phantoms", str(tmp_path / "others"), "--seed", "9", "--images", "80"]) == 0
    printed = searched("--resume", str(killed), "--data", str(tmp_path / "others"), "--weights", "random", status=2)
    assert "error: --resume: the images are not those of 'run'" in printed


@pytest.mark.parametrize(("keep", "is_trained_again"), [("leaders", True), ("all", False)])
def test_more_epochs_let_those_go_on_that_ended_for_want_of_them(
    tmp_path: Path, undisturbed: Path, keep: str, is_trained_again: bool
) -> None:
    searched(*begin(tmp_path), "--max-epochs", "2", "--keep", keep)
    before = keys_of(tmp_path / "run")
    printed = searched("--resume", str(tmp_path / "run"), "--max-epochs", "4", "--keep", "leaders")
    told = "3 trials are trained again from their start: their state was not kept (--keep all keeps it)"
    assert (told in printed) == is_trained_again
    assert_nothing_lost({table: rows for table, rows in before.items() if "predictions" not in table}, tmp_path / "run")
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)


def test_more_samples_propose_what_they_would_have_proposed(tmp_path: Path, undisturbed_sampled: Path) -> None:
    few = ["2" if option == "4" else option for option in SAMPLED]
    searched(*begin(tmp_path, *few, space=SAMPLED_SPACE), "--max-epochs", "4")
    searched("--resume", str(tmp_path / "run"), "--samples", "4")
    run, other = (read_run(root).trials for root in (tmp_path / "run", undisturbed_sampled))
    assert run[["trial_id", "selection_score", "status"]].equals(other[["trial_id", "selection_score", "status"]])


def test_more_time_lets_those_go_on_that_ran_out_of_it(tmp_path: Path) -> None:
    many = ("--max-epochs", "600", "--patience", "600")
    searched(*begin(tmp_path), *many, "--time-budget", "4s")
    assert "time" in set(read_run(tmp_path / "run").trials["stop_reason"])
    before = keys_of(tmp_path / "run")
    searched("--resume", str(tmp_path / "run"), "--time-budget", "1h")
    run = read_run(tmp_path / "run")
    assert set(run.trials["stop_reason"]) == {"max_epochs"}
    assert all(sorted(own) == list(range(1, 601)) for _, own in run.epochs.groupby("trial_id")["epoch"])
    assert_nothing_lost({table: rows for table, rows in before.items() if "predictions" not in table}, tmp_path / "run")


def test_more_repeats_train_the_same_points_with_more_seeds(tmp_path: Path) -> None:
    searched(*begin(tmp_path), "--max-epochs", "2")
    before = read_run(tmp_path / "run").trials
    searched("--resume", str(tmp_path / "run"), "--repeats", "2")
    after = read_run(tmp_path / "run").trials
    assert sorted(after["repeat"]) == [0, 0, 0, 1, 1, 1]
    kept = after[after["repeat"] == 0].reset_index(drop=True)
    assert kept[["trial_id", "selection_score"]].equals(before[["trial_id", "selection_score"]])
