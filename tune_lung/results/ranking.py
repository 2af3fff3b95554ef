"""Which trials are best: rules over rows of the table `trials`, the same for whoever tests, shows or exports them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tune_lung.results.schema import TrialStatus
from tune_lung.strategy import Objective


def best_points(trials: pd.DataFrame) -> pd.DataFrame:
    """Keep each cell's best point with all its repeats.

    Args:
        trials: Rows of the table `trials`.

    Returns:
        The rows of the points with the highest mean selection score; failed trials count only where a cell has no other.
    """
    scores = trials["selection_score"].where(trials["status"] != TrialStatus.FAILED)
    by_point = scores.groupby([trials["cell"], trials["point_id"]]).transform("mean").fillna(-np.inf)
    best = by_point.groupby(trials["cell"]).transform("max")
    kept = trials[by_point == best]
    first_point = kept.groupby("cell")["point_id"].transform("first")
    return kept[kept["point_id"] == first_point]


def point_means(trials: pd.DataFrame, objectives: Sequence[Objective]) -> pd.DataFrame:
    """Average each finished point's objectives over its repeats.

    Args:
        trials: Rows of the table `trials`.
        objectives: The columns to average.

    Returns:
        A row per point that has a completed trial with every objective measured: `cell`, `point_id` and the objectives.
    """
    columns = [objective.column for objective in objectives]
    completed = trials[trials["status"] == TrialStatus.COMPLETED].dropna(subset=columns)
    return completed.groupby(["cell", "point_id"], sort=False)[columns].mean().reset_index()


def pareto_front(points: pd.DataFrame, objectives: Sequence[Objective]) -> pd.DataFrame:
    """Keep the points that no other one beats: none is as good in every objective and better in one.

    Args:
        points: A row per point, with a column per objective, none null.
        objectives: What counts, and which way is better.

    Returns:
        The rows of the front, the best in the first objective first.
    """
    if points.empty:
        return points
    values_NO = np.column_stack([objective.sign * points[objective.column].to_numpy(np.float64) for objective in objectives])
    is_beaten = [bool(((values_NO >= own).all(axis=1) & (values_NO > own).any(axis=1)).any()) for own in values_NO]
    front = points[~np.array(is_beaten)]
    first = objectives[0]
    return front.sort_values(first.column, ascending=first.direction == "min", kind="stable")
