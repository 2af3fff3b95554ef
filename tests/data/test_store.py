import json
import os
from itertools import product

import numpy as np
import pytest

from tune_lung.data.cache_proof import write_listing
from tune_lung.data.store import DecodedImages, PixelStore, StoreDamagedError, write_store

SPLITS = ["train", "test", "train", "validation", "train", "test"]


def decoded(seed=0, *, masks=True):
    rng = np.random.default_rng(seed)
    return DecodedImages(
        pixels_MHW=rng.integers(0, 256, (6, 16, 16), dtype=np.uint8),
        masks_MHW=rng.integers(0, 256, (6, 16, 16), dtype=np.uint8) if masks else None,
        has_mask_M=np.array([masks] * 5 + [False]),
        labels_M=np.array([0, 0, 1, 1, 0, 1]),
        image_ids=[f"{number:016x}" for number in range(6)],
        whites={255: 6},
        mask_whites={255: 5} if masks else {},
        num_far_below_white=0,
    )


def store_of(folder, images, splits=SPLITS, classes=("A", "B")):
    folder.mkdir()
    write_store(folder, images, splits=splits, classes=classes, synthetic=True)
    write_listing(folder, of=folder)
    return PixelStore.open(folder)


def test_a_store_gives_back_each_part_in_order(tmp_path):
    images = decoded()
    store = store_of(tmp_path / "store", images)
    part = store.part("train")
    assert np.array_equal(part.pixels_NHW, images.pixels_MHW[[0, 2, 4]])
    assert np.array_equal(part.masks_NHW, images.masks_MHW[[0, 2, 4]])
    assert part.labels_N.tolist() == [0, 1, 0]
    assert part.image_ids == tuple(images.image_ids[row] for row in (0, 2, 4))
    assert store.open_test().has_mask_N.tolist() == [True, False]
    assert (store.classes, store.image_size, store.synthetic) == (("A", "B"), 16, True)
    assert store.num_images == {"train": 3, "validation": 1, "test": 2}
    assert store.num_masks == {"train": 3, "validation": 1, "test": 1}


def test_pixels_are_mapped_and_no_change_reaches_the_file(tmp_path):
    store = store_of(tmp_path / "store", decoded())
    before = (store.directory / "train.npy").read_bytes()
    part = store.part("train")
    assert isinstance(part.pixels_NHW, np.memmap)
    part.pixels_NHW[:] += 1
    part.pixels_NHW.flush()
    assert (store.directory / "train.npy").read_bytes() == before


def test_a_store_without_masks_says_so(tmp_path):
    part = store_of(tmp_path / "store", decoded(masks=False)).part("train")
    assert part.masks_NHW is None
    assert not part.has_mask_N.any()


def test_test_pixels_lie_in_a_file_of_their_own(tmp_path):
    images = decoded()
    store = store_of(tmp_path / "store", images)
    sealed = [path for path in store.directory.iterdir() if path.name.startswith("test")]
    for path in sealed:
        path.unlink()
    assert store.part("train").pixels_NHW.shape == (3, 16, 16)
    others = b"".join(path.read_bytes() for path in store.directory.iterdir())
    assert images.pixels_MHW[1].tobytes() not in others
    with pytest.raises(ValueError, match="part must be 'train' or 'validation', not 'test'"):
        store.part("test")


def test_mean_and_deviation_are_those_of_the_training_pixels(tmp_path):
    images = decoded()
    store = store_of(tmp_path / "store", images)
    pixels = images.pixels_MHW[[0, 2, 4]] / 255
    assert store.train_mean == pytest.approx(pixels.mean(), rel=1e-12)
    assert store.train_deviation == pytest.approx(pixels.std(), rel=1e-12)


def test_the_fingerprint_changes_with_pixels_masks_labels_split_and_classes(tmp_path):
    images = decoded()
    variants = {
        "same": (images, SPLITS, ("A", "B")),
        "pixels": (DecodedImages(**{**vars(images), "pixels_MHW": images.pixels_MHW ^ 1}), SPLITS, ("A", "B")),
        "masks": (DecodedImages(**{**vars(images), "masks_MHW": images.masks_MHW ^ 1}), SPLITS, ("A", "B")),
        "labels": (DecodedImages(**{**vars(images), "labels_M": 1 - images.labels_M}), SPLITS, ("A", "B")),
        "split": (images, ["test", "train", *SPLITS[2:]], ("A", "B")),
        "classes": (images, SPLITS, ("A", "C")),
    }
    fingerprints = {name: store_of(tmp_path / name, *variant).fingerprint for name, variant in variants.items()}
    assert len(set(fingerprints.values())) == len(variants)
    assert store_of(tmp_path / "again", images).fingerprint == fingerprints["same"]


@pytest.mark.parametrize("name", ["train.npy", "test.npy", "validation_masks.npy", "train_index.npz", "store.json"])
def test_a_store_with_a_missing_or_short_file_is_refused(tmp_path, name):
    store = store_of(tmp_path / "store", decoded())
    content = (store.directory / name).read_bytes()
    (store.directory / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreDamagedError, match="is damaged or of another version"):
        PixelStore.open(store.directory)
    (store.directory / name).unlink()
    with pytest.raises(StoreDamagedError, match="is damaged or of another version"):
        PixelStore.open(store.directory)


def test_a_store_of_another_version_is_refused(tmp_path):
    description = store_of(tmp_path / "store", decoded()).directory / "store.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"version": 0}))
    write_listing(tmp_path / "store", of=tmp_path / "store")
    with pytest.raises(StoreDamagedError, match="another version"):
        PixelStore.open(tmp_path / "store")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["store.json", "train.npy", "train_index.npz"])
def test_a_store_of_pipes_is_damaged(tmp_path, name):
    store_of(tmp_path / "store", decoded())
    (tmp_path / "store" / name).unlink()
    os.mkfifo(tmp_path / "store" / name)
    with pytest.raises(StoreDamagedError, match="damaged"):
        PixelStore.open(tmp_path / "store").part("train")


def test_an_index_that_is_packed_is_none_of_ours(tmp_path):
    folder = store_of(tmp_path / "store", decoded()).directory
    index, description = folder / "train_index.npz", folder / "store.json"
    np.savez_compressed(index, labels=np.zeros(10**7, np.int64), has_mask=[], image_ids=[])
    said = json.loads(description.read_text())
    said["files"][index.name] = index.stat().st_size
    description.write_text(json.dumps(said))
    write_listing(folder, of=folder)
    store = PixelStore.open(folder)
    with pytest.raises(StoreDamagedError, match="damaged"):
        store.part("train")


def invert(path):
    """Write other pixels into the file as it lies there, under the old time of change; whoever has mapped it sees them."""
    status = path.stat()
    values = np.load(path, mmap_mode="r+")
    values[:] = 255 - values
    values.flush()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_equal(path):
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").replace(path)


CHANGES = {
    "inverted": invert,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "removed": lambda path: path.unlink(),
    "replaced": replace_by_equal,
}


@pytest.mark.parametrize("name", ["train.npy", "train_masks.npy", "validation.npy", "test.npy"])
@pytest.mark.parametrize("change", ["inverted", "cut", "removed"])
def test_a_store_that_is_not_what_was_built_is_never_opened(tmp_path, name, change):
    store = store_of(tmp_path / "store", decoded())
    CHANGES[change](tmp_path / "store" / name)
    with pytest.raises(StoreDamagedError, match="damaged"):
        PixelStore.open(tmp_path / "store")
    CHANGES["removed"](store.directory / "store.json")
    with pytest.raises(StoreDamagedError, match="damaged"):
        PixelStore.open(tmp_path / "store")


@pytest.mark.parametrize(
    ("name", "change"),
    [*product(["train.npy", "train_masks.npy"], CHANGES), *product(["train_index.npz"], sorted(CHANGES.keys() - {"inverted"}))],
)
def test_what_changed_since_a_store_was_opened_is_told_to_whoever_has_read_it(tmp_path, name, change):
    """Even where the same lies there again: what was read meanwhile may have been other."""
    store = store_of(tmp_path / "store", decoded())
    store.part("train")
    store.check("train", "validation", "test")
    CHANGES[change](tmp_path / "store" / name)
    with pytest.raises(StoreDamagedError, match="changed while it was read"):
        store.check("train", "validation")
    with pytest.raises(StoreDamagedError, match="changed while it was read"):
        store.part("train")
    store.check("validation", "test")
    assert len(store.part("validation").labels_N) == 1
