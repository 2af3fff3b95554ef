"""The pixel store as a worker opens it, on the driver's node or on another: always the images that the search began with."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tune_lung.config import RunConfig
from tune_lung.data import prepare as prepare_module
from tune_lung.data.cache import Cache
from tune_lung.data.store import PixelStore
from tune_lung.tuning import plan as plan_module
from tune_lung.tuning.plan import DataRequest, OtherImagesError, SearchSetup

RUN = RunConfig(image_size=16)


def invert(path: Path) -> None:
    values = np.load(path, mmap_mode="r+")
    values[:] = 255 - values
    values.flush()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "pixels inverted": lambda store: invert(store / "train.npy"),
    "test pixels inverted": lambda store: invert(store / "test.npy"),
    "masks removed": lambda store: (store / "train_masks.npy").unlink(),
    "the tail cut": lambda store: (store / "train.npy").write_bytes((store / "train.npy").read_bytes()[:-40]),
    "zero bytes": lambda store: (store / "validation_index.npz").write_bytes(b""),
    "its description gone": lambda store: (store / "store.json").unlink(),
    "its listing gone": lambda store: (store / ".digests.json").unlink(),
    "another's file in it": lambda store: ((store / "notes.txt").write_text("mine"), invert(store / "train.npy")),
    "the store gone": shutil.rmtree,
    "the cache gone": lambda store: shutil.rmtree(store.parents[1]),
}


def write_images(root: Path) -> None:
    draws = np.random.default_rng(0)
    for name in ("A", "B"):
        for kind in ("images", "masks"):
            (root / name / kind).mkdir(parents=True)
        for number in range(1, 13):
            grey = Image.fromarray(draws.integers(0, 256, (6, 6), dtype=np.uint8)).resize((32, 32))
            grey.save(root / name / "images" / f"{name}-{number}.png")
            Image.new("L", (32, 32), 255).save(root / name / "masks" / f"{name}-{number}.png")


@pytest.fixture
def request_of_images(tmp_path: Path) -> DataRequest:
    write_images(tmp_path / "images")
    return DataRequest(root=tmp_path / "images", run=RUN, cache_root=tmp_path / "cache", cache_size_bytes=10**9)


@pytest.fixture
def searching(setup: SearchSetup, request_of_images: DataRequest) -> Iterator[SearchSetup]:
    """The setup of a search whose driver holds the store that it has prepared."""
    plan_module._prepared_here.cache_clear()
    with request_of_images.open_cache() as cache:
        prepared = request_of_images.prepare(cache)
        yield replace(setup, run=RUN, data=request_of_images, store=prepared.store, data_fingerprint=prepared.fingerprint)
    plan_module._prepared_here.cache_clear()


def content_of(store: PixelStore) -> list[list[Any]]:
    parts = [store.part("train"), store.part("validation"), store.open_test()]
    return [
        [part.pixels_NHW.tolist(), np.asarray(part.masks_NHW).tolist(), part.labels_N.tolist(), part.image_ids] for part in parts
    ]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_worker_builds_a_damaged_or_vanished_store_again(searching: SearchSetup, damage: str) -> None:
    before = content_of(searching.open_store())
    DAMAGES[damage](searching.store)
    assert content_of(searching.open_store()) == before
    assert content_of(searching.open_store()) == before  # whatever stays at the old place


@pytest.mark.parametrize("damage", ["pixels inverted", "the store gone"])
def test_on_a_node_with_a_cache_of_its_own_too(searching: SearchSetup, tmp_path: Path, damage: str) -> None:
    before = content_of(searching.open_store())
    own = replace(searching.data, cache_root=tmp_path / "own")
    elsewhere = replace(searching, data=own, store=tmp_path / "not here" / "stores" / searching.store.name)
    for _ in range(2):  # a store that it has built is damaged like any other
        opened = elsewhere.open_store()
        assert opened.directory.parents[1] == tmp_path / "own"
        assert content_of(opened) == before
        DAMAGES[damage](opened.directory)
    assert content_of(elsewhere.open_store()) == before


def test_a_store_is_decoded_anew_only_where_it_is_damaged(searching: SearchSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "_decode_all", lambda *_: pytest.fail("decoded"))
    for _ in range(2):
        searching.open_store()


def test_a_store_of_images_that_changed_since_is_none_of_the_search(searching: SearchSetup) -> None:
    shutil.copy(searching.data.root / "A" / "images" / "A-1.png", searching.data.root / "B" / "images" / "B-1.png")  # type: ignore[operator]
    searching.open_store()  # what was decoded counts
    shutil.rmtree(searching.store)
    with pytest.raises(OtherImagesError, match="not those that the search began with"):
        searching.open_store()


def open_beside(setup: SearchSetup, log: Path) -> None:
    """Open the store in a process of its own; who decodes images says so, and takes its time."""
    decode_all = prepare_module._decode_all

    def slowly(*arguments: Any) -> Iterator[Any]:
        with log.open("a") as file:
            file.write("decoded\n")
        yield from decode_all(*arguments)

    prepare_module._decode_all = slowly  # type: ignore[assignment]
    with log.with_name(f"{log.name}-answers").open("a") as file:
        file.write(f"{hash(str(content_of(setup.open_store())))}\n")


def test_two_workers_that_find_it_damaged_at_once_build_it_once(
    searching: SearchSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    before = content_of(searching.open_store())
    invert(searching.store / "train.npy")
    log = tmp_path / "log"
    processes = [get_context("spawn").Process(target=open_beside, args=(searching, log)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=200)
    assert [process.exitcode for process in processes] == [0, 0]
    assert log.read_text() == "decoded\n"
    assert len(set((tmp_path / "log-answers").read_text().split())) == 1
    assert content_of(searching.open_store()) == before


def test_a_cache_of_size_0_that_is_gone_is_made_again_for_the_worker(searching: SearchSetup, tmp_path: Path) -> None:
    before = content_of(searching.open_store())
    small = replace(searching.data, cache_size_bytes=0, cache_root=tmp_path / "small")
    with Cache.open(tmp_path / "small", 0) as cache:
        store = replace(small).prepare(cache).store
        temporary = replace(searching, data=small, store=store)
        shutil.rmtree(store.parents[1])
        assert content_of(temporary.open_store()) == before
