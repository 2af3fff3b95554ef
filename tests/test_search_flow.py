"""What a search says of itself before it begins."""

import pytest

from tune_lung import search_flow
from tune_lung.tuning.cluster import Resources, Room


@pytest.mark.parametrize(
    ("max_concurrent", "wish", "told"),
    [(2, None, "2 at once"), (2, 8, "2 at once (8 asked for)"), (2, 2, "2 at once"), (2, 3, "2 at once (3 asked for)")],
)
def test_on_one_machine_it_says_how_many_run_at_once_and_what_was_asked_for(max_concurrent, wish, told):
    assert search_flow._at_once(Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=max_concurrent), wish) == told


@pytest.mark.parametrize(
    ("free", "max_concurrent", "told"),
    [
        (3, 11, "3 at once now, up to 11 as there is room"),
        (0, 11, "0 at once now, up to 11 as there is room"),
        (3, 2, "2 at once now"),
        (16, 11, "11 at once now"),
    ],
)
def test_on_a_cluster_it_says_for_how_many_there_is_room_now(monkeypatch, free, max_concurrent, told):
    monkeypatch.setattr(search_flow, "room_on_nodes", lambda **_: Room(free=free, total=16))
    resources = Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=max_concurrent, may_grow=True)
    assert search_flow._at_once(resources, None) == told
