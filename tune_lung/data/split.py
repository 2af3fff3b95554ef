"""Which image is for training, for validation and for the sealed test: the strict split and the paper's."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import PurePosixPath

import numpy as np

from tune_lung.config import Split
from tune_lung.errors import InputError
from tune_lung.randomness import derive_seed

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_MIN_GROUPS = len(SPLITS)
_TEST_SHARE = Fraction(1, 10)
_PUBLISHED_GENERATOR_SEED = 42


def check_enough(counts: Mapping[str, int], what: str) -> None:
    """Refuse classes too small to be split in three.

    Args:
        counts: Images or groups of each class.
        what: What was counted, for the error's text.

    Raises:
        InputError: A class has fewer than 3; the text names the classes and counts.
    """
    small = [f"'{name}' has {count}" for name, count in sorted(counts.items()) if count < _MIN_GROUPS]
    if small:
        raise InputError(
            f"Every class needs at least {_MIN_GROUPS} {what}, one each for training, validation and test: "
            f"{', '.join(small)}. Add images, or leave the class out."
        )


def limited(classes: Sequence[str], *, limit: int, seed: int) -> list[int]:
    """Choose a stratified part of the images (`--limit`).

    A larger limit keeps what a smaller one chose, up to the rounding of each class's share.

    Args:
        classes: The class of each image.
        limit: Images to keep, at least 3 a class; more than there are keeps all.
        seed: Root seed of the run.

    Returns:
        Indices of the chosen images, rising.

    Raises:
        InputError: The limit is too small for the classes.
    """
    counts = Counter(classes)
    if limit < _MIN_GROUPS * len(counts):
        raise InputError(
            f"--limit {limit} is too small: {len(counts)} classes need at least {_MIN_GROUPS * len(counts)} images "
            f"({_MIN_GROUPS} a class)."
        )
    if limit >= len(classes):
        return list(range(len(classes)))
    rng = np.random.default_rng(derive_seed(seed, "limit"))
    chosen: list[int] = []
    for name, size in _shares(counts, limit).items():
        members = np.array([index for index, own in enumerate(classes) if own == name])
        chosen += rng.permutation(members)[:size].tolist()
    return sorted(chosen)


def _shares(counts: Mapping[str, int], limit: int) -> dict[str, int]:
    """Share a limit out in proportion, whole images each, at least 3 where there are 3."""
    total = sum(counts.values())
    exact = {name: Fraction(limit * count, total) for name, count in sorted(counts.items())}
    sizes = {name: max(int(exact[name]), min(_MIN_GROUPS, counts[name])) for name in exact}
    while (missing := limit - sum(sizes.values())) != 0:
        step = 1 if missing > 0 else -1
        movable = [name for name in sizes if (sizes[name] < counts[name] if step > 0 else sizes[name] > _MIN_GROUPS)]
        sizes[max(movable, key=lambda name: (step * (exact[name] - sizes[name]), name))] += step
    return sizes


def strict_split(classes: Sequence[str], groups: Sequence[int], *, seed: int) -> list[Split]:
    """Split by class in whole groups of near-duplicates.

    10% of each class are for the test; of the rest max(10%, min(30 images, 20%)) for validation. Sizes are met as
    nearly as whole groups allow; every class has at least one image in each part.

    Args:
        classes: The class of each image.
        groups: The group of each image; equal numbers stay together, across classes too.
        seed: Root seed of the run.

    Returns:
        The part of each image.

    Raises:
        InputError: A class has fewer than 3 groups, or only groups that it shares with other classes.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    sizes = {group: Counter(classes[index] for index in indices) for group, indices in members.items()}
    check_enough(_groups_by_class(sizes.values()), "images that are no copies of each other")
    order = np.random.default_rng(derive_seed(seed, "split")).permutation(np.array(sorted(sizes))).tolist()
    shuffled = {group: sizes[group] for group in order}
    counts = Counter(classes)
    test = _draw(
        shuffled, {name: max(1, round_half_up(_TEST_SHARE * count)) for name, count in counts.items()}, groups_to_leave=2
    )
    for group in test:
        del shuffled[group]
    rest = sum(shuffled.values(), Counter[str]())
    validation = _draw(shuffled, {name: validation_size(count) for name, count in rest.items()}, groups_to_leave=1)
    drawn: dict[int, Split] = {}
    drawn.update((group, "test") for group in test)
    drawn.update((group, "validation") for group in validation)
    splits: list[Split] = [drawn.get(group, "train") for group in groups]
    _check_all_parts(classes, splits, "Too many of its images are copies of another class's: remove those")
    return splits


def round_half_up(value: Fraction) -> int:
    """Round to the nearest whole number, halves up."""
    return math.floor(value + Fraction(1, 2))


def validation_size(rest: int) -> int:
    """Compute how many of a class's images are for validation.

    Args:
        rest: Images of the class without the test's.

    Returns:
        max(10%, min(30 images, 20%)), rounded, at least 1.
    """
    return max(1, round_half_up(max(Fraction(rest, 10), min(Fraction(30), Fraction(rest, 5)))))


def _groups_by_class(sizes: Iterable[Counter[str]]) -> Counter[str]:
    return Counter(name for size in sizes for name in size)


def _draw(sizes: Mapping[int, Counter[str]], targets: Mapping[str, int], *, groups_to_leave: int) -> set[int]:
    """Take groups in the given order while they fit; then the smallest for a class that got none.

    Args:
        sizes: Images of each class in each group.
        targets: Images wanted of each class.
        groups_to_leave: Groups of every class that must stay for the other parts.

    Returns:
        The groups taken.
    """
    taken: set[int] = set()
    left = _groups_by_class(sizes.values())
    wanted = dict(targets)

    def take(group: int) -> None:
        taken.add(group)
        for name, count in sizes[group].items():
            left[name] -= 1
            wanted[name] -= count

    def spares(group: int) -> bool:
        return group not in taken and all(left[name] > groups_to_leave for name in sizes[group])

    for group, size in sizes.items():
        if spares(group) and all(count <= wanted[name] for name, count in size.items()):
            take(group)
    for name in targets:
        if not any(name in sizes[group] for group in taken):
            spare = [group for group, size in sizes.items() if name in size and spares(group)]
            if spare:
                take(min(spare, key=lambda group: sizes[group].total()))
    return taken


def published_split(classes: Sequence[str], paths: Sequence[str]) -> list[Split]:
    """Split as the paper's program did.

    Each class is put in file-number order (COVID-2 before COVID-10); rank >= floor(0.9 n), counted from 0, is test. The
    rest of all classes, one class after the other in alphabetical order, goes through
    `torch.utils.data.random_split(rest, [N - int(0.1 N), int(0.1 N)])` with a generator seeded 42: its second part
    is validation. Copies may lie on two sides; the strict split exists for that.

    Args:
        classes: The class of each image.
        paths: The path of each image; the last number in its file name is its file number.

    Returns:
        The part of each image.

    Raises:
        InputError: A part has no image of some class.
    """
    import torch  # only this split needs it

    splits: list[Split] = ["train"] * len(classes)
    rest: list[int] = []
    for name in sorted(set(classes)):
        members = sorted((i for i, own in enumerate(classes) if own == name), key=lambda i: _file_number(paths[i]))
        first_test = len(members) * 9 // 10
        rest += members[:first_test]
        for index in members[first_test:]:
            splits[index] = "test"
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(_PUBLISHED_GENERATOR_SEED)).tolist()
    for position in order[len(rest) - len(rest) // 10 :]:
        splits[rest[position]] = "validation"
    _check_all_parts(classes, splits, "Add images, or use --protocol strict")
    return splits


def _file_number(path: str) -> tuple[int, str]:
    name = PurePosixPath(path)
    numbers = re.findall(r"\d+", name.stem)
    return (int(numbers[-1]) if numbers else 0, path)


def _check_all_parts(classes: Sequence[str], splits: Sequence[Split], advice: str) -> None:
    present = set(zip(classes, splits, strict=True))
    for name in sorted(set(classes)):
        for split in SPLITS:
            if (name, split) not in present:
                raise InputError(f"The split leaves class '{name}' without a {split} image. {advice}.")
