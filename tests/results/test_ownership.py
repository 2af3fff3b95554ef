"""One driver a run."""

import errno
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from tune_lung.errors import InputError, SupersededError
from tune_lung.results import ownership
from tune_lung.results.layout import RunPaths
from tune_lung.results.ledger import Ledger
from tune_lung.results.ownership import Owner, Ownership, is_out_of_time, read_owner, require_attempt

from tests.whole_manifest import whole_manifest

MANIFEST = whole_manifest(("a", "b"))


def written(root: Path, **changes) -> None:
    owner = {"attempt": 3, "pid": 1, "beat": 5, "has_ended": False, "searched_seconds": 7.5, "is_out_of_time": False}
    RunPaths(root).ownership.write_text(json.dumps(owner | changes))


@pytest.fixture
def paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ownership]:
    """The first owner of a run, whose heart does not beat and whose lock another machine does not see."""
    monkeypatch.setattr(ownership, "_SECONDS_BETWEEN_BEATS", 3600.0)
    monkeypatch.setattr(ownership, "_SECONDS_TO_WATCH", 0.0)
    Ledger.create(tmp_path / "run", MANIFEST)
    with Ownership.claim(tmp_path / "run") as own:
        RunPaths(tmp_path / "run").lock.unlink()
        yield own


def content_of(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_each_ownership_has_a_higher_attempt(tmp_path):
    for attempt in (1, 2, 3):
        with Ownership.claim(tmp_path) as own:
            assert own.attempt == attempt
    owner = read_owner(RunPaths(tmp_path))
    assert owner is not None
    assert owner.has_ended


def test_a_second_owner_in_the_same_moment_is_refused(tmp_path):
    with Ownership.claim(tmp_path), pytest.raises(InputError, match=r"Another search is at work in '.*' \(process \d+\)"):
        Ownership.claim(tmp_path)
    with Ownership.claim(tmp_path) as own:
        assert own.attempt == 2


def test_a_heartbeat_that_stands_still_is_a_dead_drivers(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "_SECONDS_TO_WATCH", 0.3)
    written(tmp_path)
    with Ownership.claim(tmp_path) as own:
        assert (own.attempt, own.searched_seconds()) == (4, 7.5)


def test_a_heartbeat_that_goes_on_is_a_driver_on_another_machine(tmp_path, monkeypatch):
    written(tmp_path)
    sleep, beats = time.sleep, iter(range(6, 100))
    monkeypatch.setattr(ownership.time, "sleep", lambda seconds: (written(tmp_path, beat=next(beats)), sleep(seconds / 100)))
    with pytest.raises(InputError, match="on another machine"):
        Ownership.claim(tmp_path)


def test_a_driver_that_let_go_is_not_waited_for(tmp_path, monkeypatch):
    written(tmp_path, has_ended=True)
    monkeypatch.setattr(ownership.time, "sleep", lambda _: pytest.fail("It waited."))
    with Ownership.claim(tmp_path) as own:
        assert own.attempt == 4


@pytest.mark.parametrize("text", ["", "{", "[]", '{"attempt": 1}', '{"foo": 1}'])
def test_a_damaged_owner_file_leaves_the_manifests_attempt(tmp_path, text):
    RunPaths(tmp_path).ownership.write_text(text)
    assert read_owner(RunPaths(tmp_path)) is None
    with Ownership.claim(tmp_path, at_least=8) as own:
        assert own.attempt == 8


def test_an_older_attempt_may_not_write(tmp_path):
    written(tmp_path)
    require_attempt(tmp_path, 3)
    require_attempt(tmp_path, 0)  # nobody owns it
    with pytest.raises(SupersededError, match=r"was taken over by another search \(attempt 3\). This one stops"):
        require_attempt(tmp_path, 2)


def test_workers_are_told_when_the_time_of_all_attempts_is_spent(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "_SECONDS_BETWEEN_BEATS", 0.02)
    written(tmp_path, has_ended=True)
    with Ownership.claim(tmp_path) as own:
        own.start_searching(7.6)  # of which 7.5 are spent
        assert not is_out_of_time(tmp_path)
        until = time.monotonic() + 5
        while not is_out_of_time(tmp_path) and time.monotonic() < until:
            time.sleep(0.01)
        assert is_out_of_time(tmp_path)
        own.stop_searching()
        assert own.searched_seconds() >= 7.6


def test_owners_are_plain_values():
    assert Owner(attempt=1, pid=2).beat == 0


def test_a_superseded_owner_is_told_so_and_never_takes_the_run_back(paused: Ownership, tmp_path: Path):
    root = tmp_path / "run"
    with Ownership.claim(root) as newer:
        before = content_of(root)
        with pytest.raises(
            SupersededError, match=r"The run 'run' was taken over by another search \(attempt 2\)\. This one stops"
        ):
            paused.check()
        assert not paused._try_to_write({"beat": 9})
        paused.release()
        assert content_of(root) == before
        newer.check()
        assert read_owner(RunPaths(root)).token == newer.token


@pytest.mark.parametrize(
    "write",
    [
        lambda ledger: ledger.write_manifest(MANIFEST | {"name": "older"}),
        lambda ledger: ledger.write_trial({"trial_id": "a"}),
        lambda ledger: ledger.write_epochs("a", [{"epoch": 1}]),
        lambda ledger: ledger.write_decisions([{"trial_id": "a", "decision": 1}]),
        lambda ledger: ledger.write_images(pd.DataFrame({"path": ["x"]})),
        lambda ledger: ledger.write_predictions("a", pd.DataFrame({"image_id": ["x"]})),
        lambda ledger: ledger.write_validation_predictions("a", pd.DataFrame({"image_id": ["x"]})),
        lambda ledger: ledger.write_explanations("a", [{"image_id": "x"}]),
        lambda ledger: ledger.write_profile("a", [{"part": "idle"}]),
        lambda ledger: ledger.write_run_profile([{"part": "idle"}]),
        lambda ledger: Ledger.open(ledger.paths.root, damaged=["epochs/schema.parquet"], check_writer=ledger.check_writer),
    ],
)
def test_nothing_of_a_superseded_owner_reaches_the_tables(paused: Ownership, tmp_path: Path, write: Callable[[Ledger], object]):
    root = tmp_path / "run"
    with Ownership.claim(root):
        before = content_of(root)
        with pytest.raises(SupersededError):
            write(Ledger(root, check_writer=paused.check))
        assert content_of(root) == before


def test_one_that_is_paused_between_its_last_look_and_the_rename_changes_nothing(
    paused: Ownership, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Right before its part takes its place another takes over, reads the table, and writes a row of its own."""
    root, replace, newer = tmp_path / "run", Path.replace, []

    def replace_late(path: Path, target: Path) -> Path:
        if not newer:
            newer.append(Ownership.claim(root))
            Ledger(root, check_writer=newer[0].check).write_epochs("a", [{"epoch": 2}])
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_late)
    with pytest.raises(SupersededError, match=r"attempt 2"):
        Ledger(root, check_writer=paused.check).write_epochs("a", [{"epoch": 1}])
    newer[0].release()
    assert pd.read_parquet(root / "epochs")["epoch"].tolist() == [2]
    assert not [path for path in root.rglob(".*") if path.name.startswith(".a.parquet")]


def test_only_files_with_an_earlier_owners_mark_are_removed(paused: Ownership, tmp_path: Path):
    root = tmp_path / "run"
    mark = paused.token[:8]
    kept = [
        root / "trials" / ".a.parquet.0123456789abcdef",
        root / "trials" / f".a.parquet.{mark}",
        root / "trials" / f"a.parquet.{mark}01234567",
        root / "mine" / f".a.parquet.{mark}01234567",
        tmp_path / "elsewhere" / f".a.parquet.{mark}01234567",
    ]
    for path in (*kept, root / "trials" / f".a.parquet.{mark}01234567", root / f".run.json.{mark}01234567"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    with Ownership.claim(root):
        assert [path for path in kept if not path.exists()] == []
        assert not (root / "trials" / f".a.parquet.{mark}01234567").exists()
        assert not (root / f".run.json.{mark}01234567").exists()


def test_of_two_who_find_the_same_driver_dead_one_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each locks a file of its own, as on machines whose locks are not shared."""
    monkeypatch.setattr(ownership, "_SECONDS_TO_WATCH", 0.05)
    lock_names = iter(f"{number}.lock" for number in range(1000))
    monkeypatch.setattr(RunPaths, "lock", property(lambda paths: paths.root / next(lock_names)))
    for number in range(20):
        root = tmp_path / str(number)
        root.mkdir()
        written(root)
        together, outcomes = threading.Barrier(6), Counter()

        def claim(root: Path = root, together: threading.Barrier = together, outcomes: Counter = outcomes) -> None:
            together.wait()
            try:
                with Ownership.claim(root) as own:
                    outcomes[own.attempt] += 1
                    time.sleep(0.2)
            except InputError as error:
                outcomes["refused"] += "on another machine" in str(error)

        threads = [threading.Thread(target=claim) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes == {4: 1, "refused": 5}


def test_a_run_that_was_removed_and_begun_anew_is_anothers(paused: Ownership, tmp_path: Path):
    root = tmp_path / "run"
    shutil.rmtree(root)
    Ledger.create(root, MANIFEST)
    with Ownership.claim(root) as newer:
        assert newer.attempt == paused.attempt == 1
        before = content_of(root)
        with pytest.raises(SupersededError, match="was removed, and another search began one of that name"):
            paused.check()
        with pytest.raises(SupersededError, match="was removed"):
            require_attempt(root, paused.attempt, paused.token)
        paused.release()
        assert content_of(root) == before


def test_a_run_that_is_gone_is_not_made_anew(paused: Ownership, tmp_path: Path):
    ledger = Ledger(tmp_path / "run", check_writer=paused.check)
    assert ledger.classes == ("a", "b")
    (tmp_path / "run").rename(tmp_path / "moved")
    before = content_of(tmp_path)
    with pytest.raises(SupersededError, match=r"The run 'run' was moved, removed or robbed of its \.owner-1\.json by another"):
        ledger.write_trial({"trial_id": "a"})
    paused.release()
    assert content_of(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_where_the_newest_file_is_damaged_its_name_tells_the_attempt_and_the_one_before_the_time(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(ownership, "_SECONDS_TO_WATCH", 0.0)
    for attempt in (1, 2):
        with Ownership.claim(tmp_path) as own:
            own._searched_before = 10.0 * attempt
    RunPaths(tmp_path).owner(2).write_text("{")
    with Ownership.claim(tmp_path) as own:
        assert (own.attempt, own.searched_seconds()) == (3, 10.0)


def test_an_owner_file_of_an_earlier_version_counts(tmp_path: Path):
    written(tmp_path, has_ended=True)
    with Ownership.claim(tmp_path) as own:
        assert (own.attempt, own.searched_seconds()) == (4, 7.5)
        own.check()
        written(tmp_path, attempt=5)  # of a driver of that version, which has taken over
        with pytest.raises(SupersededError, match=r"attempt 5"):
            own.check()


def test_without_flock_the_lock_moves_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    (tmp_path / ".run.01234567").mkdir()
    with pytest.warns(UserWarning, match="flock not supported"):
        own = Ownership.claim(tmp_path / ".run.01234567", is_unfinished=True)
    own.move(tmp_path / "run")
    with pytest.warns(UserWarning, match="flock"), pytest.raises(InputError, match="at work"):
        Ownership.claim(tmp_path / "run")
    own.release()
    with pytest.warns(UserWarning, match="flock"), Ownership.claim(tmp_path / "run") as own:
        assert own.attempt == 2


@pytest.mark.timeout(20)
def test_an_owner_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(RunPaths(tmp_path).ownership)
    assert read_owner(RunPaths(tmp_path)) is None
