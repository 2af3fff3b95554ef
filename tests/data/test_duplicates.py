import time

import imagehash
import numpy as np
import pytest
from PIL import Image

from tune_lung.data import duplicates
from tune_lung.data.duplicates import duplicate_groups, near_duplicate_pairs, perceptual_hashes, thumbnail

from tests.data.conftest import texture


def groups_of(thumbnails, classes=None, sha256s=None):
    count = len(thumbnails)
    return duplicate_groups(
        np.array(thumbnails),
        classes=classes or ["A"] * count,
        sha256s=sha256s or [str(index) for index in range(count)],
    ).tolist()


def test_perceptual_hashes_equal_those_of_imagehash():
    thumbnails = np.array([thumbnail(texture(seed, size=299)) for seed in range(20)])
    for value, pixels in zip(perceptual_hashes(thumbnails), thumbnails, strict=True):
        reference = np.packbits(imagehash.phash(Image.fromarray(pixels)).hash.ravel()).view(np.uint64)[0]
        assert value == reference


def test_a_film_saved_again_smaller_and_brighter_is_a_near_duplicate(tmp_path):
    first = texture(1, size=299)
    first.resize((256, 256)).point(lambda value: value * 0.9 + 10).save(tmp_path / "again.jpg", quality=70)
    again = Image.open(tmp_path / "again.jpg")
    pairs, correlations = near_duplicate_pairs(np.array([thumbnail(texture(2)), thumbnail(first), thumbnail(again)]))
    assert pairs.tolist() == [[1, 2]]
    assert correlations[0] > 0.98


def test_different_films_are_no_near_duplicates():
    assert len(near_duplicate_pairs(np.array([thumbnail(texture(seed)) for seed in range(200)]))[0]) == 0


def test_images_of_one_grey_level_match_only_their_like():
    black = np.zeros((32, 32), np.uint8)
    assert near_duplicate_pairs(np.array([black, thumbnail(texture(1)), black]))[0].tolist() == [[0, 2]]


def test_a_group_is_named_by_its_first_member():
    copy = thumbnail(texture(1))
    assert groups_of([thumbnail(texture(2)), copy, thumbnail(texture(3)), copy]) == [0, 1, 2, 1]


def test_copies_of_other_classes_are_grouped_too():
    copy = thumbnail(texture(1))
    assert groups_of([copy, copy], classes=["A", "B"]) == [0, 0]


def test_chains_stop_at_two_percent_of_the_class():
    copies = [thumbnail(texture(1))] * 5
    others = [thumbnail(texture(seed)) for seed in range(2, 197)]
    groups = groups_of(copies + others)
    assert max(np.bincount(groups)) == 4  # 2% of 200


def test_pairs_are_joined_in_small_classes():
    copies = [thumbnail(texture(1))] * 3
    assert sorted(np.bincount(groups_of([*copies, thumbnail(texture(2))])).tolist()) == [0, 1, 1, 2]


def test_equal_files_are_joined_whatever_their_number():
    copies = [thumbnail(texture(1))] * 10
    assert groups_of(copies, sha256s=["same"] * 10) == [0] * 10


def test_no_image_and_one_image_have_no_pairs():
    assert len(near_duplicate_pairs(np.empty((0, 32, 32), np.uint8))[0]) == 0
    assert groups_of([thumbnail(texture(1))]) == [0]


@pytest.mark.timeout(60)
def test_six_thousand_images_are_compared_in_seconds():
    # 21,000 images take 12 times as long: half a minute at worst where this takes 2.5 s.
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(0, 256, (6000, 32, 32), dtype=np.uint8)
    thumbnails[4000] = thumbnails[10]
    started = time.process_time()
    assert near_duplicate_pairs(thumbnails)[0].tolist() == [[10, 4000]]
    assert time.process_time() - started < 10


def test_of_images_that_are_all_alike_the_closest_pairs_are_kept(monkeypatch):
    alike = np.array([thumbnail(texture(1))] * 40)
    pairs, correlations = near_duplicate_pairs(alike)
    assert len(pairs) == 40 * 39 // 2
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 50)
    monkeypatch.setattr(duplicates, "_DISTANCES_AT_ONCE", 80)
    some, of_some = near_duplicate_pairs(alike)
    assert np.array_equal(some, pairs[:50])
    assert np.array_equal(of_some, correlations[:50])
