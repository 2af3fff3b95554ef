"""Slots: how many there really are, whatever was asked for."""

from types import SimpleNamespace

import pytest
from ray.exceptions import RayError
from ray.tune.execution import tune_controller

from tune_lung.tuning.cluster import Resources, Room
from tune_lung.tuning.slots import Slots


class Cluster:
    """Nodes whose room is set by hand, and a clock."""

    def __init__(self, *, max_concurrent: int = 64, may_grow: bool = True) -> None:
        self.now, self.room, self.num_looks = 0.0, Room(free=0, total=0), 0
        resources = Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=max_concurrent, may_grow=may_grow)
        self.slots = Slots(resources, room=self._look, clock=lambda: self.now)

    def _look(self) -> Room:
        self.num_looks += 1
        if self.room.total < 0:
            raise RayError
        return self.room

    def becomes(self, *, free: int, total: int, after: float = 1.0) -> None:
        """Let time pass, and nodes come, go or fill."""
        self.now += after
        self.room = Room(free=free, total=total)


def test_a_trial_has_the_lowest_number_that_is_free() -> None:
    slots = Cluster().slots
    assert [slots.take(name) for name in "abc"] == [0, 1, 2]
    slots.leave("b")
    slots.leave("a")
    assert [slots.take(name) for name in "de"] == [0, 1]
    assert sorted(slots.running) == ["c", "d", "e"]
    slots.leave("nobody")


def test_on_one_machine_the_slots_are_those_that_were_found_and_nobody_is_asked() -> None:
    machine = Cluster(max_concurrent=2, may_grow=False)
    assert (machine.slots.num_live(), machine.slots.most_open()) == (2, 2)
    machine.now = 10.0
    assert machine.slots.seconds() == 20.0
    assert machine.num_looks == 0


def test_demand_doubles_while_nodes_come_up_to_what_was_asked_for() -> None:
    cluster, asked_for = Cluster(max_concurrent=20), []
    for total in (0, 1, 2, 4, 8, 16, 32):
        cluster.becomes(free=total, total=total)
        asked_for.append(cluster.slots.most_open())
    assert asked_for == [4, 2, 4, 8, 16, 20, 20]
    assert cluster.slots.num_live() == 20


def test_what_others_hold_is_none_of_ours() -> None:
    cluster = Cluster()
    for name in "abc":
        cluster.slots.take(name)
    cluster.becomes(free=1, total=16)
    assert (cluster.slots.num_live(), cluster.slots.most_open()) == (4, 8)
    cluster.becomes(free=0, total=2)  # a node is gone, and nobody has heard yet that its trials are
    assert cluster.slots.num_live() == 3
    for name in "abc":
        cluster.slots.leave(name)
    cluster.becomes(free=0, total=0)
    assert (cluster.slots.num_live(), cluster.slots.most_open()) == (0, 4)


def test_ray_is_asked_once_a_second_and_a_trial_that_starts_between_is_not_counted_twice() -> None:
    cluster = Cluster()
    cluster.becomes(free=4, total=4)
    assert cluster.slots.num_live() == 4
    for name in "abcd":
        cluster.slots.take(name)
        cluster.becomes(free=0, total=4, after=0.2)
        assert cluster.slots.num_live() == 4
    assert cluster.num_looks == 1
    cluster.becomes(free=0, total=4, after=0.5)
    assert (cluster.slots.num_live(), cluster.num_looks) == (4, 2)


def test_while_ray_does_not_answer_what_was_seen_last_counts() -> None:
    cluster = Cluster()
    cluster.becomes(free=3, total=3)
    cluster.slots.num_live()
    cluster.becomes(free=0, total=-1)
    assert cluster.slots.num_live() == 3


def test_slots_are_counted_for_as_long_as_they_are_there() -> None:
    cluster = Cluster(max_concurrent=3)
    for total, seconds in ((0, 10), (2, 5), (8, 4), (1, 7)):  # of 8 the search may use 3
        cluster.becomes(free=total, total=total, after=0)
        cluster.slots.num_live()
        cluster.now += seconds
    assert cluster.slots.seconds() == 0 * 10 + 2 * 5 + 3 * 4 + 1 * 7


def test_a_worker_that_starts_or_waits_for_a_trial_holds_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_controller, "RayActorManager", lambda **_: SimpleNamespace(num_live_actors=3))
    before, cluster = tune_controller.RayActorManager, Cluster()
    with cluster.slots.counting_workers():
        tune_controller.RayActorManager(resource_manager=None)  # as Tune makes its own
        cluster.becomes(free=1, total=9)
        assert cluster.slots.num_live() == 4
    assert tune_controller.RayActorManager is before
