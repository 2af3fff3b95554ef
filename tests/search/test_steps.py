"""What a search says of itself before it begins."""

from io import StringIO

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tune_lung.config import RunConfig
from tune_lung.data.cache import Cache
from tune_lung.data.prepare import prepare
from tune_lung.search import steps as search_steps
from tune_lung.tuning.cluster import Resources, Room


@pytest.mark.parametrize(
    ("max_concurrent", "wish", "told"),
    [(2, None, "2 at once"), (2, 8, "2 at once (8 asked for)"), (2, 2, "2 at once"), (2, 3, "2 at once (3 asked for)")],
)
def test_on_one_machine_it_says_how_many_run_at_once_and_what_was_asked_for(max_concurrent, wish, told):
    assert search_steps._at_once(Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=max_concurrent), wish) == told


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
    monkeypatch.setattr(search_steps, "room_on_nodes", lambda **_: Room(free=free, total=16))
    resources = Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=max_concurrent, may_grow=True)
    assert search_steps._at_once(resources, None) == told


@pytest.mark.parametrize(("depths", "told"), [((12, 16), "10 X-rays reach a quarter of the common white"), ((12, 12), "")])
def test_it_says_that_its_films_mix_depths(tmp_path, depths, told):
    draws = np.random.default_rng(0)
    for name, bits in zip("AB", depths, strict=True):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(10):
            values = draws.integers(0, 2**bits, (32, 32)).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / "data" / name / f"{number}.png")
    with Cache.open(tmp_path / "cache") as cache:
        prepared = prepare(tmp_path / "data", run=RunConfig(image_size=16), cache=cache)
        console = Console(file=StringIO())
        search_steps._warn_of_depths(prepared, console)
    printed = console.file.getvalue()
    assert printed.startswith(told)
    assert bool(printed) == bool(told)
