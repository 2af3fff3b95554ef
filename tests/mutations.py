"""JSON values of which one place says something else, as damage or a stranger may have it."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

REMOVED = object()
"""Stands for a place that is taken out."""
ODD_VALUES = [
    None,
    True,
    False,
    0,
    -1,
    2**31,
    2**63,
    10**400,
    1.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "1",
    "../../x",
    "/etc/passwd",
    "\x1b[31mred\n\u202e",
    "\ud800",
    "x" * 5000,
    [],
    [[]],
    ["x"] * 3,
    {},
    {"x": {"y": 1}},
    [1] * 70,
]
ANY_JSON = st.recursive(
    st.sampled_from(ODD_VALUES) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
Place = tuple[str | int, ...]


def places_in(content: Any, place: Place = ()) -> Iterator[Place]:
    """List every place in JSON values, that of the whole first."""
    yield place
    if isinstance(content, dict | list):
        for name in content if isinstance(content, dict) else range(len(content)):
            yield from places_in(content[name], (*place, name))


def replaced(content: Any, place: Place, value: Any) -> Any:
    """Return a copy that holds another value at one place."""
    if not place:
        return value
    changed = copy.deepcopy(content)
    inner = changed
    for name in place[:-1]:
        inner = inner[name]
    if value is REMOVED:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return changed


@st.composite
def mutated(draw: st.DrawFn, content: Any) -> Any:
    """Draw JSON values of which one to three places hold something else, or are gone."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(sorted(places_in(content), key=str)))
        value = draw(st.just(REMOVED) | ANY_JSON if place else ANY_JSON)
        content = replaced(content, place, value)
    return content


def as_text(content: Any) -> str:
    """Write JSON values as a forger may: without a digest, numbers that are none included."""
    if isinstance(content, dict):
        content = {name: value for name, value in content.items() if name != "sha256"}
    return json.dumps(content)
