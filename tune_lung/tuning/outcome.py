"""What a reported result says of its trial: the one place that tells a sound one from a failure."""

import math
from collections.abc import Mapping
from typing import Any

METRIC = "selection_score"
"""The reported number that decides."""

EPOCHS = "epochs"
"""The rows of the epochs trained since the report before, in their order, the last one's numbers among them."""

DIED_SILENTLY = "The worker died without a word."


def failure_of(result: Mapping[str, Any] | None) -> str | None:
    """Say why a result ends its trial as failed: it says so itself, or a score in it is not finite.

    Returns:
        One line; None for a sound result.
    """
    if not result:
        return DIED_SILENTLY
    if "failure" in result:
        return str(result["failure"])
    for name in (METRIC, "best_score"):
        if not math.isfinite(result.get(name, math.nan)):
            return f"diverged: {name} is {result.get(name)} at epoch {result.get('epoch')}."
    return None
