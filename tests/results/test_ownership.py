"""One driver a run."""

import json
import time
from pathlib import Path

import pytest

from tune_lung.errors import InputError
from tune_lung.results import ownership
from tune_lung.results.layout import RunPaths
from tune_lung.results.ownership import Owner, Ownership, SupersededError, is_out_of_time, read_owner, require_attempt


def written(root: Path, **changes) -> None:
    owner = {"attempt": 3, "pid": 1, "beat": 5, "has_ended": False, "searched_seconds": 7.5, "is_out_of_time": False}
    RunPaths(root).ownership.write_text(json.dumps(owner | changes))


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
    with pytest.raises(SupersededError, match="Attempt 3 has taken over from attempt 2"):
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
