"""What a manifest says of how a run's numbers were computed."""

from typing import Any

import pytest

from tune_lung.results.manifest import note_of_other_numbers, require_manifest
from tune_lung.shapes import WrongShapeError

from tests.whole_manifest import whole_manifest

CPU = {"device": "cpu", "threads": 1, "precision": "fp32"}


def manifest_of(*attempts: dict[str, Any]) -> dict[str, Any]:
    return {**attempts[-1], "earlier_attempts": list(attempts[:-1])}


@pytest.mark.parametrize(
    "attempts",
    [
        [{}],
        [{"numerics": CPU}],
        [{"numerics": CPU}, {"numerics": CPU, "allow_other_numbers": True}],
        [{}, {"numerics": CPU}],
    ],
)
def test_nothing_is_said_where_all_was_computed_alike_or_nobody_knows_better(attempts: list[dict[str, Any]]) -> None:
    assert note_of_other_numbers(manifest_of(*attempts)) is None


@pytest.mark.parametrize(
    ("attempts", "told"),
    [
        (
            [{"numerics": CPU}, {"numerics": CPU | {"device": "cuda", "precision": "bf16"}, "allow_other_numbers": True}],
            "on CPUs with 1 thread a trial in fp32 from attempt 1 on; on GPUs with 1 thread a trial in bf16 from attempt 2 on.",
        ),
        (
            [{"attempt": 1}, {"attempt": 3, "numerics": CPU | {"threads": 2}, "allow_other_numbers": True}],
            "not known how from attempt 1 on; on CPUs with 2 threads a trial in fp32 from attempt 3 on.",
        ),
    ],
)
def test_other_numbers_are_told_by_the_attempt_that_began_with_them(attempts: list[dict[str, Any]], told: str) -> None:
    note = note_of_other_numbers(manifest_of(*attempts))
    assert note == f"Not all trials were computed alike (--allow-other-numbers): {told}"


def test_of_many_kinds_the_first_are_named() -> None:
    attempts = [{"numerics": CPU | {"threads": number + 1}, "allow_other_numbers": True} for number in range(9)]
    note = str(note_of_other_numbers(manifest_of(*attempts)))
    assert note.endswith("from attempt 3 on, and 6 more.")


PIXELS = {
    "train_mean": 0.5,
    "train_deviation": 0.2,
    "whites": {"declared": [{"declared": [4095, 65535], "white": 4095}], "used": 1023},
    "mask_whites": {"declared": [], "used": None},
}


def data_with(pixels: Any) -> dict[str, Any]:
    manifest = whole_manifest(("a", "b"))
    return manifest | {"data": manifest["data"] | {"pixels": pixels}}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"train_mean": 2.0}, "train_mean"),
        ({"train_deviation": float("nan")}, "train_deviation"),
        ({"whites": {"declared": [], "used": 0}}, "whites.used"),
        ({"whites": {"declared": [{"declared": ["x"], "white": 1}], "used": 1}}, "whites.declared.0.declared.0"),
        ({"mask_whites": None}, "mask_whites"),
    ],
)
def test_what_a_manifest_says_of_pixels_is_checked(change: dict[str, Any], where: str) -> None:
    require_manifest(data_with(PIXELS))
    with pytest.raises(WrongShapeError, match=rf"^data\.pixels\.{where}: "):
        require_manifest(data_with(PIXELS | change))
