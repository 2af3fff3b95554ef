"""Where labels find room beside crowded points.

Lengths are in any one unit, y upward. Shapes: N labelled points, M points that must stay visible.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Places: TypeAlias = NDArray[np.float64]
"""Places or lengths, a row each: x and y."""
_Box: TypeAlias = tuple[Places, Places]
"""Middle and size."""

_ANGLES = (np.radians((0, 25, -25, 50, -50)), np.radians((80, -80, 110, -110, 145, -145, 180)))
"""Off the diagonal of the side asked for: first those on that side, then the others."""
_NUM_DISTANCES = 5
_LINE_STEPS = np.linspace(0.1, 0.9, 9)


def label_offsets(
    points_N2: Places, sizes_N2: Places, visible_M2: Places, *, point_size: float, towards: tuple[int, int]
) -> list[tuple[float, float] | None]:
    """Choose a place for each label so that it covers no point, no other label and no line from a label to its point.

    Args:
        points_N2: The labelled points; the first ones choose first.
        sizes_N2: Width and height of each label.
        visible_M2: What no label may cover, the labelled points among it.
        point_size: Diameter of those.
        towards: The side to look on first, such as (-1, 1) for the upper left.

    Returns:
        From each point to its label's middle: the nearest place with room, or None where there is none nearby.
    """
    marks = [(place, np.full(2, point_size)) for place in visible_M2]
    labels: list[_Box] = []
    offsets: list[tuple[float, float] | None] = []
    for point, size in zip(points_N2, sizes_N2, strict=True):
        offset = next((one for one in _candidates(size, point_size, towards) if _has_room(point, one, size, marks, labels)), None)
        if offset is not None:
            labels.append((point + offset, size))
            marks += [(place, np.zeros(2)) for place in _line(point, offset)]
        offsets.append(None if offset is None else (float(offset[0]), float(offset[1])))
    return offsets


def _candidates(size: Places, point_size: float, towards: tuple[int, int]) -> Sequence[Places]:
    """List offsets: on the side asked for from near to far, then on the others."""
    nearest = (point_size + float(np.hypot(*size))) / 2
    distances = [nearest + step * size[1] for step in range(_NUM_DISTANCES)]
    return [
        distance * np.array([np.cos(np.pi / 4 + angle), np.sin(np.pi / 4 + angle)]) * towards
        for angles in _ANGLES
        for distance in distances
        for angle in angles
    ]


def _has_room(point: Places, offset: Places, size: Places, marks: Sequence[_Box], labels: Sequence[_Box]) -> bool:
    """Whether the label would cover nothing, and its line no other label."""
    return _is_free(point + offset, size, [*marks, *labels]) and all(
        _is_free(place, np.zeros(2), labels) for place in _line(point, offset)
    )


def _line(point: Places, offset: Places) -> list[Places]:
    """List places on the way from a point to its label."""
    return [point + step * offset for step in _LINE_STEPS]


def _is_free(place: Places, size: Places, taken: Sequence[_Box]) -> bool:
    return not any((np.abs(place - other) < (size + other_size) / 2).all() for other, other_size in taken)
