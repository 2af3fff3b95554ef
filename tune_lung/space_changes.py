"""What one space changes of another: the field, its value there, its value here."""

from collections.abc import Container, Iterator

from tune_lung.config import TrialConfig
from tune_lung.space import Arm, SearchSpace


def space_changes(
    then: SearchSpace, now: SearchSpace, *, may_differ: Container[str] = ()
) -> Iterator[tuple[str, object, object]]:
    """Name what differs between two spaces, arm by arm; a field that an arm does not name has its default.

    Args:
        then: The earlier space.
        now: The later one.
        may_differ: Fields that may, where they have one value in both.
    """
    now = SearchSpace.from_json(now.as_json())  # as the earlier one was read: lists and tuples are alike
    if len(then.arms) != len(now.arms):
        yield "the number of arms", len(then.arms), len(now.arms)
    for number, (there, here) in enumerate(zip(then.arms, now.arms, strict=False), start=1):
        for name in dict.fromkeys([*here.fields, *there.fields]):
            is_free = name in may_differ and not any(name in arm.grid_axes() | arm.sampled_axes() for arm in (there, here))
            if not is_free and _meaning(there, name) != _meaning(here, name):
                yield f"{name} of arm {number}", _meaning(there, name), _meaning(here, name)


def _meaning(arm: Arm, name: str) -> object:
    """Return an arm's axis or value of a field; the default where the arm does not name it."""
    if name in arm.fields:
        return arm.fields[name]
    return TrialConfig.from_point(next(next(arm.cells()).probes())).columns()[name]
