"""Where the time of a trial goes: what `--profile` writes down."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tune_lung.results.schema import TimePart


class Stopwatch:
    """Adds up seconds by part. On a GPU each measured piece waits for the device, so that it is told its own time."""

    def __init__(self, device: torch.device) -> None:
        """Start at zero.

        Args:
            device: Where the measured work is done.
        """
        self._device = device
        self._seconds: dict[TimePart, float] = defaultdict(float)

    @contextmanager
    def measure(self, part: TimePart) -> Iterator[None]:
        """Add the time of what is done inside."""
        self._wait()
        started = time.perf_counter()
        yield
        self._wait()
        self.add(part, time.perf_counter() - started)

    def add(self, part: TimePart, seconds: float) -> None:
        """Add time that was measured elsewhere."""
        self._seconds[part] += seconds

    def take(self) -> dict[TimePart, float]:
        """Give the seconds by part since the last call, and start at zero again."""
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class StoppedStopwatch(Stopwatch):
    """Measures nothing and waits for nothing."""

    def __init__(self) -> None:
        """Stay at zero."""
        super().__init__(torch.device("cpu"))

    @contextmanager
    def measure(self, part: TimePart) -> Iterator[None]:  # noqa: ARG002 - nothing is measured
        """Do what is done inside."""
        yield

    def add(self, part: TimePart, seconds: float) -> None:
        """Leave it out."""
