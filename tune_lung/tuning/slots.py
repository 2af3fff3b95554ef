"""The slots of a search: which trials really run, and for how many there is room. What was asked for plays no part."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from ray.exceptions import RayError
from ray.tune.execution import tune_controller

from tune_lung.tuning.cluster import Resources, Room, room_on_nodes

_SECONDS_BETWEEN_LOOKS = 1.0
_ASKED_FOR_WITHOUT_SLOTS = 4
"""Trials that a cluster without any room is asked for, so that its first nodes come."""


class Slots:
    """Where trials run, one in each slot.

    A slot is there while a worker of ours holds it or a node has room for one more. Where others use the cluster too, what they
    hold is none of ours. A trial runs once its worker answers, and no longer than until it ends or the worker is lost.
    """

    def __init__(
        self, resources: Resources, *, room: Callable[[], Room] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin without a trial.

        Args:
            resources: What a trial gets, and how many may run at once.
            room: Counts the room on the nodes that are there; None asks Ray. Only asked where nodes may come and go.
            clock: Tells seconds.
        """
        self._resources, self._clock = resources, clock
        self._room = room or (
            lambda: room_on_nodes(cpus_per_trial=resources.cpus_per_trial, gpus_per_trial=resources.gpus_per_trial)
        )
        self._number_of: dict[str, int] = {}
        self._num_workers: Callable[[], int] = lambda: len(self._number_of)
        self._num_seen = 0 if resources.may_grow else resources.max_concurrent
        self._looked_at: float | None = None
        self._added_at, self._seconds = clock(), 0.0

    @contextmanager
    def counting_workers(self) -> Iterator[None]:
        """Let the search that is run in the block tell how many workers it has: those that start, work, or wait for a trial."""
        make_manager = tune_controller.RayActorManager  # type: ignore[attr-defined]

        def make_and_remember(*arguments: Any, **more: Any) -> Any:
            manager = make_manager(*arguments, **more)
            self._num_workers = lambda: int(manager.num_live_actors)
            return manager

        tune_controller.RayActorManager = make_and_remember  # type: ignore[assignment, attr-defined]
        try:
            yield
        finally:
            tune_controller.RayActorManager = make_manager  # type: ignore[attr-defined]

    @property
    def running(self) -> Collection[str]:
        """The trials that run, by Ray's names."""
        return self._number_of.keys()

    def take(self, ray_id: str) -> int:
        """Take note that a trial's worker answers, and give its slot the lowest number that is free."""
        self._add_seconds()
        taken = set(self._number_of.values())
        self._number_of[ray_id] = next(number for number in count() if number not in taken)
        return self._number_of[ray_id]

    def leave(self, ray_id: str) -> None:
        """Take note that a trial runs no more, if it did."""
        self._add_seconds()
        self._number_of.pop(ray_id, None)

    def num_live(self) -> int:
        """Count the slots that are there now, as seen within the last second; never more than trials may run at once."""
        now = self._clock()
        if self._resources.may_grow and (self._looked_at is None or now - self._looked_at >= _SECONDS_BETWEEN_LOOKS):
            self._add_seconds()
            self._looked_at = now
            self._look()
        return self._num_live

    def most_open(self) -> int:
        """Bound how many trials of a sampled space are proposed and have not ended.

        As many wait as run: what is proposed next knows nearly all that can be known, no slot waits for a proposal, and a
        cluster that grows by what waits doubles.
        """
        return min(self._resources.max_concurrent, 2 * self.num_live() or _ASKED_FOR_WITHOUT_SLOTS)

    def seconds(self) -> float:
        """Add up how long each slot has been there, since this was begun."""
        self._add_seconds()
        return self._seconds

    @property
    def _num_live(self) -> int:
        return min(self._resources.max_concurrent, max(self._num_seen, len(self._number_of)))

    def _add_seconds(self) -> None:
        now = self._clock()
        self._seconds += self._num_live * (now - self._added_at)
        self._added_at = now

    def _look(self) -> None:
        try:
            room = self._room()
        except RayError:  # what was seen last counts until Ray answers again
            return
        self._num_seen = min(room.total, self._num_workers() + room.free)
