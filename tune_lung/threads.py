"""Work of several threads whose results are wanted in order, and that can be left at any moment."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_AHEAD = 16
"""Calls for each thread that wait or have results that are not taken yet."""


class Threads:
    """A pool of threads. Leaving its block waits for the calls under way, and no others begin."""

    def __init__(self, number: int) -> None:
        """Start with so many threads."""
        self._number = number
        self._pool = ThreadPoolExecutor(number)

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """Yield the function's results in the order of the items; few are begun before they are wanted."""
        begun: deque[Future[_Result]] = deque()
        for item in items:
            begun.append(self._pool.submit(function, item))
            if len(begun) >= _AHEAD * self._number:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()

    def __enter__(self) -> Self:
        """Return the threads themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of them."""
        self._pool.shutdown(cancel_futures=True)
