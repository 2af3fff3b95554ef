"""Ray's own processes die: the last words are said, and the process ends."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tune_lung.tuning import cluster_watch
from tune_lung.tuning.cluster_watch import ClusterWatch


class Watched(ClusterWatch):
    """A watch whose process does not end, but is asked whether it would have."""

    def __init__(self, node: Any, **told: bool) -> None:
        super().__init__(node, **told)
        self.ends, self.told = threading.Event(), []
        self.last_words = lambda: self.told.append(self.sentence())

    def _end_process(self) -> None:
        self.ends.set()


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


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("raylet", r"Ray's node process (raylet) has died: somebody ended it, or the system did for want of memory."),
        ("gcs_server", r"Ray's head process (gcs_server) has died: somebody ended it, or the system did for want of memory."),
    ],
)
def test_a_death_is_told_at_once_and_ends_the_process(processes: dict[str, Any], kind: str, sentence: str) -> None:
    """Ray's C++ part may end it some milliseconds later, with words of its own."""
    watch = Watched(node_of(processes))
    with watch.watching():
        processes[kind].kill()
        assert watch.ends.wait(0.5)
    assert watch.told == [sentence]


def test_a_guest_tells_of_a_death_and_leaves_the_end_to_ray(processes: dict[str, Any]) -> None:
    watch = Watched(node_of(processes), is_guest=True)
    with watch.watching():
        processes["raylet"].kill()
        deadline = time.monotonic() + 20
        while not watch.told and time.monotonic() < deadline:
            time.sleep(0.01)
        watch.gives_way()
    assert (len(watch.told), watch.ends.is_set()) == (1, False)
    assert processes["gcs_server"].poll() is None


def test_whoever_searches_need_not_be_the_main_thread(processes: dict[str, Any]) -> None:
    watch = Watched(node_of(processes))

    def search() -> None:
        with watch.watching():
            watch.ends.wait(20)

    thread = threading.Thread(target=search)
    thread.start()
    processes["raylet"].kill()
    thread.join()
    assert len(watch.told) == 1


def test_processes_that_end_when_ray_is_closed_are_not_lost(processes: dict[str, Any]) -> None:
    watch = Watched(node_of(processes))
    with watch.watching():
        watch.closes()
        processes["raylet"].kill()
        assert not watch.ends.wait(0.3)
    assert watch.lost is None


def test_of_two_deaths_one_is_told(processes: dict[str, Any]) -> None:
    watch = Watched(node_of(processes))
    with watch.watching():
        for process in processes.values():
            process.kill()
        assert watch.ends.wait(20)
        time.sleep(0.2)
    assert len(watch.told) == 1


def test_whoever_meets_the_loss_first_waits_until_it_is_told(processes: dict[str, Any]) -> None:
    watch, goes_on = Watched(node_of(processes)), threading.Event()
    begun = threading.Event()
    watch.last_words = lambda: (begun.set(), goes_on.wait(20))
    with watch.watching():
        processes["raylet"].kill()
        assert begun.wait(20)
        waiting = threading.Thread(target=watch.gives_way)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        goes_on.set()
        waiting.join()
    assert watch.ends.is_set()


def test_words_that_cannot_be_told_keep_nothing_from_its_end(processes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_watch, "_SECONDS_TO_TELL", 0.2)
    failing, stuck = (Watched(node_of(processes)) for _ in range(2))
    goes_on = threading.Event()
    failing.last_words, stuck.last_words = lambda: 1 / 0, lambda: goes_on.wait(20)
    with failing.watching(), stuck.watching():
        processes["raylet"].kill()
        assert failing.ends.wait(20)
        assert stuck.ends.wait(20)
        goes_on.set()


def test_a_cluster_that_stops_answering_is_lost(tmp_path: Path) -> None:
    node = SimpleNamespace(all_processes={}, gcs_address="127.0.0.1:1", raylet_socket_name=str(tmp_path / "raylet"))
    watch = Watched(node)
    with watch.watching():
        assert watch.ends.wait(20)
    assert watch.lost == "The cluster's head at 127.0.0.1:1"


def test_a_cluster_that_lives_is_left_alone(processes: dict[str, Any]) -> None:
    watch = Watched(node_of(processes))
    with watch.watching():
        assert not watch.ends.wait(0.5)
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
