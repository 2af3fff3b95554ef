"""Ray's own processes die: what waits for them is left, and where that is not possible, the last words are said."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tune_lung.tuning import cluster_watch
from tune_lung.tuning.cluster_watch import ClusterLostError, ClusterWatch


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_watch, "_SECONDS_BETWEEN_LOOKS", 0.05)


@pytest.fixture
def processes() -> Iterator[dict[str, Any]]:
    started = {kind: subprocess.Popen(["/bin/sleep", "100"]) for kind in ("raylet", "gcs_server")}
    yield started
    for process in started.values():
        process.kill()
        process.wait()


def node_of(processes: dict[str, Any]) -> Any:
    """A node of Ray's as its driver knows it: each kind has its processes."""
    return SimpleNamespace(all_processes={kind: [SimpleNamespace(process=process)] for kind, process in processes.items()})


def wait_for_ray(seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("raylet", r"Ray's node process (raylet) has died: somebody ended it, or the system did for want of memory."),
        ("gcs_server", r"Ray's head process (gcs_server) has died: somebody ended it, or the system did for want of memory."),
    ],
)
def test_what_waits_for_a_process_that_died_is_left(processes: dict[str, Any], kind: str, sentence: str) -> None:
    watch = ClusterWatch(node_of(processes))
    threading.Timer(0.2, processes[kind].kill).start()
    with pytest.raises(ClusterLostError), watch.watching():
        wait_for_ray()
    assert watch.sentence() == sentence


def test_the_thread_that_searches_need_not_be_the_main_one(processes: dict[str, Any]) -> None:
    left: list[str | None] = []

    def search() -> None:
        watch = ClusterWatch(node_of(processes))
        try:
            with watch.watching():
                wait_for_ray()
        except ClusterLostError:
            left.append(watch.lost)

    thread = threading.Thread(target=search)
    thread.start()
    time.sleep(0.3)  # it waits by now
    processes["raylet"].kill()
    thread.join()
    assert left == ["Ray's node process (raylet)"]


def test_processes_that_end_when_ray_is_closed_are_not_lost(processes: dict[str, Any]) -> None:
    watch = ClusterWatch(node_of(processes))
    with watch.watching():
        watch.closes()
        processes["raylet"].kill()
        wait_for_ray(0.3)
    assert watch.lost is None


def test_the_loss_is_told_in_the_moment_of_the_death(processes: dict[str, Any]) -> None:
    """Ray's C++ part may end this process some milliseconds later."""
    watch, told = ClusterWatch(node_of(processes)), threading.Event()
    watch.last_words = told.set
    with suppress(ClusterLostError), watch.watching():
        processes["gcs_server"].kill()
        assert told.wait(0.5)


def test_of_two_deaths_one_is_told(processes: dict[str, Any]) -> None:
    watch, told = ClusterWatch(node_of(processes)), []
    watch.last_words = lambda: told.append(watch.lost)
    with suppress(ClusterLostError), watch.watching():
        for process in processes.values():
            process.kill()
        wait_for_ray()
    assert len(told) == 1


def test_a_cluster_that_stops_answering_is_lost(tmp_path: Path) -> None:
    node = SimpleNamespace(all_processes={}, gcs_address="127.0.0.1:1", raylet_socket_name=str(tmp_path / "raylet"))
    watch = ClusterWatch(node)
    with pytest.raises(ClusterLostError), watch.watching():
        wait_for_ray()
    assert watch.lost == "The cluster's head at 127.0.0.1:1"


def test_a_cluster_that_lives_is_left_alone(processes: dict[str, Any]) -> None:
    watch = ClusterWatch(node_of(processes))
    with watch.watching():
        wait_for_ray(0.5)
    assert watch.lost is None


@pytest.mark.parametrize("dead", ["head", "raylet", None])
def test_of_a_clusters_processes_their_sockets_tell(dead: str | None, tmp_path: Path) -> None:
    with socket.socket() as head, socket.socket(socket.AF_UNIX) as raylet:
        head.bind(("127.0.0.1", 0))
        raylet.bind(str(tmp_path / "raylet"))
        node = SimpleNamespace(
            all_processes={}, gcs_address=f"127.0.0.1:{head.getsockname()[1]}", raylet_socket_name=str(tmp_path / "raylet")
        )
        for name, listening in (("head", head), ("raylet", raylet)):
            if name != dead:
                listening.listen()
        missing = ClusterWatch(node)._missing()
    expected = {"head": "The cluster's head at 127", "raylet": "The cluster's node process (raylet)", None: "None"}
    assert str(missing).startswith(expected[dead])


STUCK = """
import subprocess, threading
from types import SimpleNamespace
from tune_lung.tuning import cluster_watch
cluster_watch._SECONDS_TO_CLOSE = 0.5
process = subprocess.Popen(["/bin/sleep", "2"])
node = SimpleNamespace(all_processes={"raylet": [SimpleNamespace(process=process)]})
watch = cluster_watch.ClusterWatch(node)
WORDS
with watch.watching():
    lock = threading.Lock(); lock.acquire(); lock.acquire()
"""
"""Waits where no exception of Python's comes through, as in Ray's C++ part."""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "error: Ray's node process (raylet) has died: somebody ended it, or the system did for want of memory.\n"),
        ("watch.last_words = lambda: print('written')", "written\n"),
    ],
)
def test_where_nothing_comes_through_the_last_words_are_said(words: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-u", "-c", STUCK.replace("WORDS", words)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (1, said)
