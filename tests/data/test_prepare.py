import shutil
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tune_lung.config import RunConfig
from tune_lung.data.cache import Cache
from tune_lung.data.decode import squash
from tune_lung.data.duplicates import near_duplicate_pairs, thumbnail
from tune_lung.data.prepare import IMAGES_COLUMNS, image_id, prepare
from tune_lung.data.reading import read_grey
from tune_lung.data.scan import ImageChoice
from tune_lung.data.store import PixelStore
from tune_lung.errors import InputError

from tests.data.conftest import texture

RUN = RunConfig(image_size=16)


def test_prepare_gives_a_row_for_every_file_and_its_pixels(image_folder, cache):
    root = image_folder({"A": 20, "B": 30}, masks=True)
    data = prepare(root, run=RUN, cache=cache)
    assert tuple(data.images.columns) == IMAGES_COLUMNS
    assert data.classes == ("A", "B")
    assert data.images["split"].value_counts().to_dict() == {"train": 36, "validation": 9, "test": 5}
    store = PixelStore.open(data.store)
    assert store.fingerprint == data.fingerprint
    part = store.part("train")
    by_id = data.images.set_index("image_id")
    for row, name in enumerate(part.image_ids):
        assert by_id.loc[name, "split"] == "train"
        assert data.classes[part.labels_N[row]] == by_id.loc[name, "class"]
        assert name == image_id(by_id.loc[name, "path"])
        assert np.array_equal(part.pixels_NHW[row], squash(read_grey(root / by_id.loc[name, "path"]), 16))
    assert part.has_mask_N.all()
    assert part.masks_NHW.min() == 255


def test_prepare_pads_masks_under_the_published_protocol(image_folder, cache):
    root = image_folder({"A": 30, "B": 30}, masks=True)
    data = prepare(root, run=RunConfig(image_size=48, protocol="published"), cache=cache)
    mask = PixelStore.open(data.store).part("train").masks_NHW[0]
    assert (mask == 255).sum() == 40 * 40
    assert mask[4:44, 4:44].min() == 255


def test_prepare_leaves_bad_files_out_and_says_why(image_folder, cache):
    root = image_folder({"A": 10, "B": 10})
    images = root / "A" / "images"
    (images / "empty.png").touch()
    (images / "page.png").write_text("<html></html>")
    texture(77, size=200).save(images / "whole.jpg")
    (images / "half.jpg").write_bytes((images / "whole.jpg").read_bytes()[:2000])
    (images / "half.png").write_bytes((images / "A-1.png").read_bytes()[:600])
    (images / "x.png").mkdir()
    (images / "loop").symlink_to(images, target_is_directory=True)
    (images / "notes.txt").touch()
    (root / "A" / "masks").mkdir()
    (root / "A" / "masks" / "A-1.png").touch()
    data = prepare(root, run=RUN, cache=cache)
    left_out = data.images[data.images["excluded_reason"].notna()].set_index("path")
    assert left_out["excluded_reason"].to_dict() == {
        "A/images/empty.png": "empty",
        "A/images/half.jpg": "truncated",
        "A/images/half.png": "truncated",
        "A/images/loop": "link_loop",
        "A/images/notes.txt": "other_file",
        "A/images/page.png": "not_an_image",
        "A/images/x.png": "folder",
    }
    assert left_out[["split", "group"]].isna().all(axis=None)
    assert data.images["split"].notna().sum() == 21
    assert sum(PixelStore.open(data.store).num_masks.values()) == 0
    with pytest.raises(InputError, match=r"--strict-data: 6 files cannot be used \(1 empty, 1 folder, 1 link_loop, ") as caught:
        prepare(root, choice=ImageChoice(strict_data=True), run=RUN, cache=cache)
    assert "half" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_prepare_refuses_small_classes_before_and_after_decoding(image_folder, cache):
    with pytest.raises(InputError, match="'B' has 2"):
        prepare(image_folder({"A": 5, "B": 2}), run=RUN, cache=cache)
    root = image_folder({"A": 5, "B": 4}, name="bad")
    for number in (1, 2):
        (root / "B" / "images" / f"B-{number}.png").write_bytes(b"")
    with pytest.raises(InputError, match="'B' has 2"):
        prepare(root, run=RUN, cache=cache)
    copies = image_folder({"A": 5, "B": 3}, name="copies")
    shutil.copy(copies / "B/images/B-1.png", copies / "B/images/B-2.png")
    with pytest.raises(InputError, match=r"no copies of each other.*'B' has 2"):
        prepare(copies, run=RUN, cache=cache)
    assert not any((cache.root / "stores").glob("*"))


def test_prepare_keeps_copies_on_one_side(image_folder, cache):
    root = image_folder({"A": 40, "B": 40})
    for number in range(1, 16):
        shutil.copy(root / f"A/images/A-{number}.png", root / f"A/images/copy-{number}.png")
    images = prepare(root, run=RUN, cache=cache).images
    by_file = images.groupby("sha256")
    assert (by_file["split"].nunique() == 1).all()
    assert (by_file["group"].nunique() == 1).all()
    assert images["group"].nunique() == 80


def test_prepare_leaves_images_aside_over_the_limit(image_folder, cache):
    images = prepare(image_folder({"A": 40, "B": 20}), choice=ImageChoice(limit=30), run=RUN, cache=cache).images
    used = images[images["split"].notna()]
    assert used["class"].value_counts().to_dict() == {"A": 20, "B": 10}
    assert (images.loc[images["split"].isna(), "excluded_reason"] == "limit").all()


def test_a_store_depends_on_everything_its_content_follows_from(image_folder, cache):
    root = image_folder({"A": 24, "B": 24}, masks=True)

    def store(**changes):
        arguments = {"run": RUN, "cache": cache, **changes}
        return prepare(root, **arguments).store

    stores = {
        "first": store(),
        "size": store(run=RunConfig(image_size=17)),
        "protocol": store(run=RunConfig(image_size=16, protocol="published")),
        "seed": store(run=RunConfig(image_size=16, seed=1)),
        "limit": store(choice=ImageChoice(limit=40)),
        "synthetic": store(synthetic=True),
    }
    texture(99).save(root / "A/images/A-1.png")
    stores["image"] = store()
    Image.new("L", (40, 40), 0).save(root / "A/masks/A-1.png")
    stores["mask"] = store()
    (root / "A/images/A-2.png").rename(root / "A/images/A-200.png")
    stores["name"] = store()
    (root / "A/images/A-3.png").rename(root / "B/images/A-3.png")
    stores["class"] = store()
    (root / "A.metadata.xlsx").write_bytes(b"no table")
    stores["metadata"] = store()
    (root / "A/images/notes.txt").touch()
    stores["left out"] = store()
    (root / "A/images/A-4.png").unlink()
    stores["removed"] = store()
    assert len(set(stores.values())) == len(stores)
    assert store() == stores["removed"]


def test_a_new_version_of_the_code_builds_a_new_store(image_folder, cache, monkeypatch):
    root = image_folder({"A": 5, "B": 5})
    first = prepare(root, run=RUN, cache=cache).store
    monkeypatch.setattr("tune_lung.data.prepare.STORE_VERSION", 0)
    monkeypatch.setattr("tune_lung.data.store.STORE_VERSION", 0)
    assert prepare(root, run=RUN, cache=cache).store != first


def test_the_place_of_a_folder_changes_nothing(image_folder, cache, tmp_path):
    root = image_folder({"A": 9, "B": 9})
    first = prepare(root, run=RUN, cache=cache)
    root.rename(tmp_path / "elsewhere")
    assert prepare(tmp_path / "elsewhere", run=RUN, cache=cache).store == first.store


def test_two_caches_get_the_same_store(image_folder, tmp_path):
    root = image_folder({"A": 30, "B": 9})
    one, two = (prepare(root, run=RUN, cache=Cache.open(tmp_path / name)) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    pd.testing.assert_frame_equal(one.images, two.images)


def test_a_damaged_store_is_built_again(image_folder, cache):
    root = image_folder({"A": 9, "B": 9})
    data = prepare(root, run=RUN, cache=cache)
    for name in ("test.npy", "images.parquet"):
        (data.store / name).unlink()
        assert prepare(root, run=RUN, cache=cache).fingerprint == data.fingerprint
        assert (data.store / name).exists()


def test_progress_counts_every_file(image_folder, cache):
    told = []
    prepare(image_folder({"A": 9, "B": 9}), run=RUN, cache=cache, progress=lambda *step: told.append(step))
    assert told == [("Reading", done, 18) for done in range(1, 19)] + [("Decoding", done, 18) for done in range(1, 19)]


@pytest.mark.real
def test_no_near_duplicates_of_the_real_x_rays_lie_on_two_sides(radiography, tmp_path):
    data = prepare(radiography, run=RunConfig(image_size=64), cache=Cache.open(tmp_path))
    images = data.images
    assert images["excluded_reason"].isna().all()
    thumbnails = np.array([thumbnail(read_grey(radiography / path)) for path in images["path"]])
    pairs, _ = near_duplicate_pairs(thumbnails)
    splits = images["split"].to_numpy()
    assert len(pairs) == 19  # 17 of them within 2 bits of hash and above 0.9999; none between 0.969 and 0.992
    assert all(splits[first] == splits[second] for first, second in pairs)
    assert images["group"].value_counts().max() == 2
    sizes = images.groupby(["class", "split"]).size().unstack()[["train", "validation", "test"]]
    assert sizes.T.to_dict("list") == {
        "COVID": [177, 30, 23],
        "Lung_Opacity": [308, 34, 38],
        "Normal": [518, 58, 64],
        "Viral Pneumonia": [70, 18, 10],
    }
    assert images["source"].notna().all()
    started = time.perf_counter()
    prepare(radiography, run=RunConfig(image_size=64), cache=Cache.open(tmp_path))
    assert time.perf_counter() - started < 3  # about 0.15 s on an idle core; the bound leaves room for a busy machine


def test_a_class_whose_name_is_as_long_as_names_may_be_is_one_like_others(image_folder, cache):
    root = image_folder({"A": 10})
    (root / "A").rename(root / ("B" * 255))
    (root / "A" / "images").mkdir(parents=True)
    for number in range(10):
        texture(number).save(root / "A" / "images" / f"{number}.png")
    data = prepare(root, run=RunConfig(image_size=16), cache=cache)
    assert data.classes == ("A", "B" * 255)
