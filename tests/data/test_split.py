from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tune_lung.data.split import limited, published_split, strict_split, validation_size
from tune_lung.errors import InputError


def counts(classes, splits) -> dict[str, tuple[int, int, int]]:
    table = Counter(zip(classes, splits, strict=True))
    return {name: tuple(table[name, part] for part in ("train", "validation", "test")) for name in sorted(set(classes))}


@pytest.mark.parametrize(
    ("rest", "expected"),
    [(2, 1), (3, 1), (88, 18), (150, 30), (207, 30), (300, 30), (342, 34), (576, 58), (9173, 917)],
)
def test_validation_is_the_larger_of_a_tenth_and_of_30_images_or_a_fifth(rest, expected):
    assert validation_size(rest) == expected


def test_strict_split_has_the_sizes_of_the_design_on_the_radiography_classes():
    sizes = {"Normal": 640, "Lung_Opacity": 380, "COVID": 230, "Viral Pneumonia": 98}
    classes = [name for name, count in sizes.items() for _ in range(count)]
    assert counts(classes, strict_split(classes, range(len(classes)), seed=0)) == {
        "COVID": (177, 30, 23),  # 23 = 10% of 230; 30 of the other 207, which is more than 10%
        "Lung_Opacity": (308, 34, 38),
        "Normal": (518, 58, 64),
        "Viral Pneumonia": (70, 18, 10),  # 20% of 88 is 17.6
    }


@st.composite
def grouped_classes(draw):
    """Classes of at least 3 groups, some groups shared between classes."""
    classes, groups = [], []
    for label in range(draw(st.integers(2, 4))):
        for number, size in enumerate(draw(st.lists(st.integers(1, 6), min_size=3, max_size=30))):
            classes += [f"class {label}"] * size
            groups += [100 * label + number] * size
    if draw(st.booleans()) and groups.count(0) and len(set(groups[:])) > 8:
        groups = [100 if group == 0 and len({g for g in groups if g < 100}) > 4 else group for group in groups]
    return classes, groups


@given(grouped_classes(), st.integers(0, 2**63 - 1))
def test_strict_split_keeps_near_duplicates_on_one_side_and_every_class_everywhere(data, seed):
    classes, groups = data
    splits = strict_split(classes, groups, seed=seed)
    assert all(len({s for s, g in zip(splits, groups, strict=True) if g == group}) == 1 for group in set(groups))
    assert all(min(sizes) >= 1 for sizes in counts(classes, splits).values())


def test_strict_split_meets_its_sizes_though_a_tenth_are_pairs():
    groups = [index // 2 if index < 20 else index for index in range(200)]
    assert counts(["A"] * 200, strict_split(["A"] * 200, groups, seed=3)) == {"A": (150, 30, 20)}


@pytest.mark.parametrize("seed", range(5))
def test_strict_split_leaves_a_group_for_each_part_though_one_is_large(seed):
    assert counts(["A"] * 100, strict_split(["A"] * 100, [0, 1] + [2] * 98, seed=seed)) == {"A": (98, 1, 1)}


def test_strict_split_follows_the_seed_alone():
    classes = ["A"] * 50 + ["B"] * 60
    first = strict_split(classes, range(110), seed=1)
    assert first == strict_split(classes, range(110), seed=1)
    assert first != strict_split(classes, range(110), seed=2)


def test_strict_split_draws_pairs_for_the_test_as_often_as_single_images():
    # 40 of 400 images lie in pairs: a test image is one of them with probability 0.1 (3.9 sigmas over 100 seeds x 40 draws).
    groups = [index // 2 if index < 40 else index for index in range(400)]
    drawn = [
        split == "test" and index < 40
        for seed in range(100)
        for index, split in enumerate(strict_split(["A"] * 400, groups, seed=seed))
    ]
    assert abs(sum(drawn) / 4000 - 0.1) < 3.9 * np.sqrt(2 * 0.1 * 0.9 / 4000)


def test_strict_split_refuses_a_class_with_fewer_than_3_groups():
    classes = ["A"] * 9 + ["B"] * 4
    with pytest.raises(InputError, match="'B' has 2"):
        strict_split(classes, [*range(9), 20, 20, 21, 21], seed=0)


@given(st.lists(st.integers(1, 60), min_size=2, max_size=4), st.integers(12, 250), st.integers(0, 100))
def test_limit_keeps_proportions_and_three_a_class(sizes, limit, seed):
    classes = [f"class {label}" for label, size in enumerate(sizes) for _ in range(size)]
    chosen = limited(classes, limit=limit, seed=seed)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(limit, len(classes))
    kept = Counter(classes[index] for index in chosen)
    assert all(kept[f"class {label}"] >= min(3, size) for label, size in enumerate(sizes))


def test_limit_is_stratified_and_grows_by_adding():
    classes = ["A"] * 600 + ["B"] * 300 + ["C"] * 100
    small, large = limited(classes, limit=100, seed=5), limited(classes, limit=500, seed=5)
    assert Counter(classes[index] for index in small) == {"A": 60, "B": 30, "C": 10}
    assert set(small) < set(large)
    assert small != limited(classes, limit=100, seed=6)


def test_limit_refuses_fewer_than_three_a_class():
    with pytest.raises(InputError, match="--limit 5 is too small: 2 classes need at least 6 images"):
        limited(["A"] * 9 + ["B"] * 9, limit=5, seed=0)


def test_published_split_takes_the_last_tenth_in_file_number_order_for_the_test():
    paths = [f"A/A-{number}.png" for number in range(1, 21)] + [f"B/B-{number}.png" for number in range(1, 31)]
    order = sorted(range(50), key=lambda index: paths[index])  # as text, A-10 stands before A-2
    classes, paths = [paths[index][0] for index in order], [paths[index] for index in order]
    splits = dict(zip(paths, published_split(classes, paths), strict=True))
    assert {path for path, split in splits.items() if split == "test"} == {
        *(f"A/A-{number}.png" for number in (19, 20)),
        *(f"B/B-{number}.png" for number in (28, 29, 30)),
    }


def test_published_split_draws_validation_as_random_split_does():
    paths = [f"A/A-{number}.png" for number in range(1, 101)] + [f"B/B-{number}.png" for number in range(1, 51)]
    rest = paths[:90] + paths[100:145]
    generator = torch.Generator().manual_seed(42)
    _, validation = torch.utils.data.random_split(rest, [len(rest) - 13, 13], generator=generator)
    splits = published_split([path[0] for path in paths], paths)
    assert {path for path, split in zip(paths, splits, strict=True) if split == "validation"} == set(validation)


def test_published_split_refuses_to_leave_a_class_out_of_a_part():
    with pytest.raises(InputError, match=r"without a .* image. Add images, or use --protocol strict"):
        published_split(["A"] * 3 + ["B"] * 3, [f"{i}.png" for i in range(6)])
