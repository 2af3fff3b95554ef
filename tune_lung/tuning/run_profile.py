"""Where a run's own time went: what it spent before and after its training, and what its slots were there for and did not do."""

import time
from collections.abc import Mapping
from typing import Any

from ray.tune import Callback

from tune_lung.results.ledger import Ledger
from tune_lung.results.schema import TimePart
from tune_lung.tuning.driver_only import DriverOnly
from tune_lung.tuning.recorder import Recorder

_SECONDS_BETWEEN_WRITES = 10.0


class RunProfile(DriverOnly, Callback):
    """The run's own rows of the table `profile`, those of all its attempts added up; a killed one lacks its last seconds."""

    def __init__(
        self, ledger: Ledger, recorder: Recorder, *, before: Mapping[TimePart, float], earlier: Mapping[TimePart, float]
    ) -> None:
        """Begin when training begins.

        Args:
            ledger: The run's ledger.
            recorder: Knows the slots, and what trials worked in them.
            before: Seconds that this attempt has taken so far.
            earlier: What the attempts before have written down.
        """
        self._ledger, self._recorder = ledger, recorder
        self._before, self._earlier = before, earlier
        self._slot_seconds_before = recorder.slots.seconds()
        self._written_at = time.monotonic()

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Write it down now and then."""
        if time.monotonic() - self._written_at >= _SECONDS_BETWEEN_WRITES:
            self.write(idle_seconds=self.idle_seconds())

    def idle_seconds(self) -> float:
        """Add up how long slots that were there trained nothing, from the beginning of training to now."""
        slot_seconds = self._recorder.slots.seconds() - self._slot_seconds_before
        return max(0.0, slot_seconds - self._recorder.busy_seconds())

    def write(self, *, idle_seconds: float, evaluation_seconds: float = 0.0) -> None:
        """Write it down.

        Args:
            idle_seconds: What slots were idle in this attempt.
            evaluation_seconds: What its sealed test took.
        """
        own = {**self._before, TimePart.IDLE: idle_seconds, TimePart.EVALUATION: evaluation_seconds}
        parts = dict.fromkeys((*own, *self._earlier))
        self._ledger.write_run_profile(
            {"part": part, "seconds": own.get(part, 0.0) + self._earlier.get(part, 0.0)} for part in parts
        )
        self._written_at = time.monotonic()
