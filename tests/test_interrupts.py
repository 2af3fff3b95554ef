"""The signals that end a process are ours for as long as a search runs, and the caller's again after it."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tune_lung.errors import exit_status
from tune_lung.interrupts import Interrupted, interruptible

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
