"""What a reported result says of its trial: the one place that tells a sound one from a failure."""

import math
from collections.abc import Mapping
from typing import Any

METRIC = "selection_score"
"""The reported number that decides."""

EPOCHS = "epochs"
"""Every number of the epochs trained since the report before, a row each, in their order. Ray keeps averages of every number
that stands at the top of a report, 2 KB for each trial and number, so none stands there."""

FAILURE = "failure"
"""Why a trial diverged, in a report that has no epochs."""

DIED_SILENTLY = "The worker died without a word."


def failure_of(result: Mapping[str, Any] | None) -> str | None:
    """Say why a result ends its trial as failed: it says so itself, or a score in it is not finite.

    Returns:
        One line; None for a sound result.
    """
    if not result:
        return DIED_SILENTLY
    if FAILURE in result:
        return str(result[FAILURE])
    row = last_epoch(result)
    for name in (METRIC, "best_score"):
        if not math.isfinite(row[name]):
            return f"diverged: {name} is {row[name]} at epoch {row['epoch']}."
    return None


def last_epoch(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row of the newest epoch in a result that is no failure."""
    row: Mapping[str, Any] = result[EPOCHS][-1]
    return row
