"""A manifest that says all that every manifest must say."""

from collections.abc import Sequence
from typing import Any

from tune_lung.config import RunConfig
from tune_lung.results.manifest import DataFacts, SearchFacts, new_manifest
from tune_lung.space import Arm, SearchSpace
from tune_lung.strategy import Strategy

SPACE = SearchSpace(arms=(Arm(model="cnn"),), name="one_cell")


def whole_manifest(classes: Sequence[str], *, space: SearchSpace = SPACE, **changes: Any) -> dict[str, Any]:
    """Describe a run of phantoms that has just begun.

    Args:
        classes: Its classes.
        space: What is tried.
        **changes: Fields that say something else.
    """
    manifest = new_manifest(
        SearchFacts(space=space, strategy=Strategy.for_space(space), sampler_options={}, run=RunConfig()),
        name="run",
        arguments=[],
        data=DataFacts(
            fingerprint="f" * 64, synthetic=True, classes=tuple(classes), counts={"train": 8, "validation": 4, "test": 4}
        ),
        weights={},
    )
    return manifest | changes
