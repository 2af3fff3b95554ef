"""Slots in simulated time: Ray's actor manager replaced, so that Tune's own controller, our searcher and our scheduler run on
as many as are wanted, in this process."""

import heapq
import itertools
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.tune.execution import tune_controller

from tune_lung.tuning import ray_patches, search_run
from tune_lung.tuning.cluster import _RAY_SETTINGS, Room

START_SECONDS = 3.0
"""From the moment that a worker has room to its first answer."""


class VirtualSlots:
    """So many slots, more or fewer at given moments.

    A worker is an object of this process, and time passes from event to event.
    """

    def __init__(
        self, number: int, *, changes: Iterable[tuple[float, int]] = (), later_start_seconds: float = START_SECONDS
    ) -> None:
        self.now, self.number = 0.0, number
        self._later_start_seconds = later_start_seconds
        self._changes, self._num_changed = sorted(changes), 0
        self._events: list[tuple[float, int, Any, Callable[[], None]]] = []
        self._count = itertools.count()
        self.managers: list[_Manager] = []

    @contextmanager
    def in_place_of_rays(self):
        """Let searches run here."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in _RAY_SETTINGS.items():
                patch.setenv(name, value)
            patch.setattr(search_run, "survive_killed_workers", lambda: None)
            patch.setattr(tune_controller, "RayActorManager", self._make_manager)
            yield
        ray_patches.survive_killed_workers()

    def _make_manager(self, **_: Any) -> "_Manager":
        self.managers.append(_Manager(self))
        return self.managers[-1]

    def start_seconds(self) -> float:
        """How long a worker takes that starts now: those after the first changes may prepare their images first."""
        return self._later_start_seconds if self._num_changed else START_SECONDS

    def room(self) -> Room:
        """What nodes would say."""
        held = sum(len(manager.live) for manager in self.managers)
        return Room(free=max(0, self.number - held), total=self.number)

    def clock(self) -> float:
        """Simulated seconds."""
        return self.now

    def after(self, seconds: float, owner: Any, what: Callable[[], None]) -> None:
        """Let something happen later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._count), owner, what))

    def forget(self, owner: Any) -> None:
        """Let nothing happen any more to a worker."""
        self._events = [event for event in self._events if event[2] is not owner]
        heapq.heapify(self._events)

    def happen(self) -> bool:
        """Let the next thing happen; whether there was one."""
        due = self._events[0][0] if self._events else None
        if self._changes and (due is None or self._changes[0][0] <= due):
            self.now, self.number = self._changes.pop(0)
            self._num_changed += 1
            return False
        if due is None:
            self.now += 0.1
            return False
        self.now, _, _, what = heapq.heappop(self._events)
        what()
        return True


class _Manager:
    """What Tune asks of its actor manager."""

    def __init__(self, slots: VirtualSlots) -> None:
        self._slots = slots
        self._pending: dict[TrackedActor, tuple[Any, dict[str, Any]]] = {}
        self.live: dict[TrackedActor, Any] = {}
        self._answering: set[TrackedActor] = set()

    @property
    def _live_actors_to_ray_actors_resources(self) -> dict[TrackedActor, tuple[Any, None]]:
        actor = SimpleNamespace(get_auto_filled_metrics=SimpleNamespace(remote=lambda **_: {}))
        return {tracked: (actor, None) for tracked in self.live}

    num_live_actors = property(lambda self: len(self.live))
    num_pending_actors = property(lambda self: len(self._pending))
    num_total_actors = property(lambda self: len(self.live) + len(self._pending))
    num_actor_tasks = property(lambda self: len(self.live))

    def add_actor(
        self, *, cls: Any, kwargs: dict[str, Any], on_start: Any, on_stop: Any, on_error: Any, **_: Any
    ) -> TrackedActor:
        tracked = TrackedActor(next(self._slots._count), on_start=on_start, on_stop=on_stop, on_error=on_error)
        self._pending[tracked] = (cls, kwargs)
        return tracked

    def next(self, timeout: float | None = None) -> bool:  # noqa: ARG002 - nothing to wait for
        for tracked in list(self._pending):
            if not self._slots.room().free:
                break
            cls, kwargs = self._pending.pop(tracked)
            self.live[tracked] = cls.__ray_metadata__.modified_class(**kwargs)
            self._slots.after(self._slots.start_seconds(), tracked, lambda tracked=tracked: self._start(tracked))
        return self._slots.happen()

    def _start(self, tracked: TrackedActor) -> None:
        self._answering.add(tracked)
        tracked._on_start(tracked)

    def schedule_actor_task(
        self,
        tracked_actor: TrackedActor,
        method_name: str,
        args: Any = (),
        kwargs: Any = None,
        on_result: Any = None,
        on_error: Any = None,  # noqa: ARG002 - scripted trials raise nothing
        _return_future: bool = False,
    ) -> Any:
        if method_name == "stop" or tracked_actor not in self.live:
            return None
        result = getattr(self.live[tracked_actor], method_name)(*(args or ()), **(kwargs or {}))
        seconds = sum(row["epoch_seconds"] for row in result["epochs"]) if method_name == "train" else 0.1
        self._slots.after(seconds, tracked_actor, lambda: on_result and on_result(tracked_actor, result))
        return None

    def remove_actor(self, tracked_actor: TrackedActor, kill: bool = False, stop_future: Any = None) -> bool:  # noqa: ARG002
        if self._pending.pop(tracked_actor, None) is not None:
            return False
        self._slots.forget(tracked_actor)
        self._slots.after(0.1, tracked_actor, lambda: self._stop(tracked_actor))
        return True

    def _stop(self, tracked: TrackedActor) -> None:
        self.live.pop(tracked, None)
        self._answering.discard(tracked)
        if tracked._on_stop:
            tracked._on_stop(tracked)

    def is_actor_started(self, tracked_actor: TrackedActor) -> bool:
        return tracked_actor in self.live

    def is_actor_failed(self, tracked_actor: TrackedActor) -> bool:  # noqa: ARG002 - none does
        return False

    def clear_actor_task_futures(self, tracked_actor: TrackedActor) -> None:
        self._slots.forget(tracked_actor)

    def cleanup(self) -> None:
        self.live.clear()
        self._pending.clear()
