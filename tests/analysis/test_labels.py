"""Labels stand near their points and cover neither a point nor each other."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tune_lung.analysis.labels import label_offsets

POINT_SIZE = 6.0
PLACES = st.integers(1, 12).flatmap(lambda number: arrays(np.float64, (number, 2), elements=st.floats(0, 100)))


def offsets_of(places, *, width=10.0, towards=(-1, 1)):
    sizes = np.tile([width, 8.0], (len(places), 1))
    return label_offsets(places, sizes, places, point_size=POINT_SIZE, towards=towards), sizes


def overlap(middle, size, other_middle, other_size):
    """Whether two boxes share area, beyond rounding."""
    return bool((np.abs(middle - other_middle) < (size + other_size) / 2 - 1e-9).all())


@given(PLACES, st.sampled_from([(-1, 1), (1, 1), (-1, -1), (1, -1)]))
def test_no_label_covers_a_point_another_label_or_a_line_to_one(places, towards):
    offsets, sizes = offsets_of(places, towards=towards)
    labels = [(place + offset, size) for place, offset, size in zip(places, offsets, sizes, strict=True) if offset is not None]
    points = [(place, np.full(2, POINT_SIZE)) for place in places]
    assert not any(overlap(*label, *point) for label in labels for point in points)
    assert not any(overlap(*labels[one], *labels[other]) for one in range(len(labels)) for other in range(one))
    ways = [place + np.linspace(0.1, 0.9, 9)[:, None] * offset for place, offset in zip(places, offsets, strict=True) if offset]
    assert not any(
        overlap(spot, np.zeros(2), *labels[other])
        for one, way in enumerate(ways)
        for other in range(len(labels))
        if other != one
        for spot in way
    )


def test_a_lone_label_stands_at_its_point_on_the_side_asked_for():
    for towards in ((-1, 1), (1, 1), (-1, -1), (1, -1)):
        (offset,), _ = offsets_of(np.zeros((1, 2)), towards=towards)
        assert tuple(np.sign(offset)) == towards
        assert np.hypot(*offset) < 12


def test_equal_points_get_a_label_each():
    offsets, _ = offsets_of(np.zeros((5, 2)))
    assert None not in offsets
    assert len(set(offsets)) == 5


def test_a_label_that_finds_no_room_nearby_is_left_out():
    crowd = np.stack(np.meshgrid(np.arange(-80, 81, 5.0), np.arange(-80, 81, 5.0)), axis=-1).reshape(-1, 2)
    sizes = np.array([[10.0, 8.0]])
    assert label_offsets(np.zeros((1, 2)), sizes, crowd, point_size=POINT_SIZE, towards=(-1, 1)) == [None]
