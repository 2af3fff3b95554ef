"""The signals that end a process are ours for as long as a search runs, and the caller's again after it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tune_lung.errors import exit_status
from tune_lung.interrupts import Interrupted, interruptible

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LEFT_BEHIND = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from tune_lung.interrupts import end_process
pool = ThreadPoolExecutor()
pool.submit(print, "done by a pool that nobody has closed").result()
threading.Thread(target=lambda: (time.sleep(0.3), print("done by a thread"))).start()
atexit.register(print, "done at the end")
end_process(int(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in ENDING]


def mine(number: int, _: object) -> None:
    raise AssertionError(f"Signal {number} came through.")


def search() -> int:
    with interruptible():
        assert mine not in handlers()
        return 0


def interrupted_search(number: int) -> int:
    with pytest.raises(Interrupted), interruptible() as interruption:
        os.kill(os.getpid(), number)
    return interruption.exit_status


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("handler", [mine, signal.SIG_DFL])
def test_after_a_search_each_signal_does_what_it_did_before(number: int, handler: Any) -> None:
    for each in ENDING:
        signal.signal(each, handler)
    assert search() == 0
    assert handlers() == [handler] * 3
    assert exit_status(search) == 0
    assert handlers() == [handler] * 3
    assert exit_status(lambda: interrupted_search(number)) == 128 + number
    assert handlers() == [handler] * 3


def test_a_signal_that_is_ignored_stays_so() -> None:
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    with interruptible():
        for each in ENDING:
            os.kill(os.getpid(), each)
    assert handlers() == [signal.SIG_IGN] * 3


def test_a_search_needs_no_main_thread() -> None:
    for each in ENDING:
        signal.signal(each, mine)
    statuses: list[Any] = []

    def in_a_thread() -> int:
        with interruptible():
            return 0 if handlers() == [mine] * 3 else 1

    thread = threading.Thread(target=lambda: statuses.append(exit_status(in_a_thread)))
    thread.start()
    thread.join()
    assert statuses == [0]
    assert handlers() == [mine] * 3


def test_the_same_wish_twice_at_once_is_one_and_a_later_one_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` sends its signal to the process, and then to its group."""
    left: list[int] = []
    moments = iter([10.0, 10.4, 10.5])
    monkeypatch.setattr("tune_lung.interrupts.os._exit", left.append)
    monkeypatch.setattr("tune_lung.interrupts.time.monotonic", lambda: next(moments))
    with pytest.raises(Interrupted), interruptible():
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert left == []
    signal.raise_signal(signal.SIGTERM)
    assert left == [143]


def test_one_wish_unwinds_once() -> None:
    def work() -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)
        return 0

    cleaned: list[bool] = []
    for each in ENDING:
        signal.signal(each, signal.SIG_DFL)
    assert exit_status(work) == 143
    assert cleaned == [True]


def test_a_wish_that_python_drops_is_said_again() -> None:
    class Finalised:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def work() -> int:
        del things[0]
        time.sleep(20)
        return 0

    things = [Finalised()]
    for each in ENDING:
        signal.signal(each, signal.SIG_DFL)
    started = time.monotonic()
    assert exit_status(work) == 143
    assert time.monotonic() - started < 10


def test_what_takes_too_long_to_unwind_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "stuck.py"
    script.write_text(
        "import signal, time\nfrom tune_lung import interrupts\nfrom tune_lung.errors import exit_status\n"
        "interrupts._SECONDS_TO_UNWIND = 0.5\n"
        "def work():\n    try:\n        signal.raise_signal(signal.SIGTERM)\n    finally:\n        time.sleep(60)\n"
        "exit_status(work)\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, str(script)], timeout=50, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "Stopped, without waiting any longer for what does not end.\n")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(("status", "is_waited_for"), [(0, True), (2, True), (130, False), (143, False)])
def test_a_process_ends_with_its_status_and_waits_for_its_threads_unless_it_was_interrupted(
    status: int, is_waited_for: bool
) -> None:
    command = [sys.executable, "-c", LEFT_BEHIND, str(status)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (status, "")
    waited_for = ["done by a thread"] if is_waited_for else []
    assert done.stdout.splitlines() == ["done by a pool that nobody has closed", *waited_for, "done at the end"]


def test_a_guest_leaves_signals_as_they_were_though_it_was_interrupted_and_never_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tune_lung.interrupts.os._exit", lambda status: pytest.fail(f"Ended with {status}."))
    moments = iter([10.0, 11.0])
    monkeypatch.setattr("tune_lung.interrupts.time.monotonic", lambda: next(moments))
    for each in ENDING:
        signal.signal(each, mine)
    with interruptible(is_guest=True):
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
    assert handlers() == [mine] * 3
