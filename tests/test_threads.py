import threading
import time

import pytest

from tune_lung.threads import Threads


def test_results_come_in_the_order_of_the_items():
    with Threads(4) as threads:
        assert list(threads.map(lambda number: time.sleep(0.01 * (number % 3)) or number, range(50))) == list(range(50))


def test_few_items_are_begun_before_their_results_are_wanted():
    begun = []
    with Threads(2) as threads:
        results = threads.map(begun.append, range(10_000))
        next(results)
        assert len(begun) <= 32


@pytest.mark.timeout(30)
def test_who_leaves_waits_for_the_calls_under_way_alone():
    release, ended = threading.Event(), []

    def call(number: int) -> None:
        release.wait(0.2)
        ended.append(number)

    def leave() -> None:
        with Threads(1) as threads:
            next(threads.map(call, range(1000)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert len(ended) <= 2
