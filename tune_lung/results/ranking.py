"""Which trials are best: rules over rows of the table `trials`, the same for whoever tests, shows or exports them."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from tune_lung.results.schema import TrialStatus
from tune_lung.strategy import Objective

_POINT = ["cell", "point_id"]


def mean(values: Iterable[float]) -> float:
    """Average numbers, rounded once at the end, so that their order plays no part; minus infinity where there are none."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else -math.inf


def beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one point is as good as another in everything that counts, and better in something; more is better in each."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


def best_points(trials: pd.DataFrame, within: Sequence[str] = ("cell",)) -> pd.DataFrame:
    """Keep each cell's best point with all its repeats.

    Args:
        trials: Rows of the table `trials`.
        within: Columns whose equal values points are compared under; null equals null.

    Returns:
        The rows of the points with the highest mean selection score; failed trials count only where there is no other.
        Of equal points the one is kept whose id comes first, so that the order of the rows plays no part.
    """
    scores = trials["selection_score"].where(trials["status"] != TrialStatus.FAILED)
    groups = [trials[name] for name in within]
    by_point = _mean_by_point(trials, scores)
    best = by_point.groupby(groups, dropna=False).transform("max")
    kept = trials[by_point == best]
    first = kept.sort_values(_POINT).groupby(list(within), dropna=False)[_POINT].transform("first").loc[kept.index]
    return kept[(kept[_POINT] == first).all(axis=1)]


def leading_cell(trials: pd.DataFrame, order: Sequence[str] = ()) -> str | None:
    """Name the cell whose best point has the highest mean selection score.

    Args:
        trials: Rows of the table `trials`.
        order: Cells, of which the first leads where several are equal; cells that are not among them come after.

    Returns:
        The cell; None where no trial that has not failed has a score.
    """
    scored = trials[(trials["status"] != TrialStatus.FAILED) & trials["selection_score"].notna()]
    scores: dict[str, list[float]] = defaultdict(list)
    best = best_points(scored)
    for cell, score in zip(best["cell"], best["selection_score"], strict=True):
        scores[str(cell)].append(float(score))
    cells = [*(cell for cell in order if cell in scores), *sorted(set(scores) - set(order))]
    return max(cells, key=lambda cell: mean(scores[cell]), default=None)


def point_means(trials: pd.DataFrame, objectives: Sequence[Objective]) -> pd.DataFrame:
    """Average each finished point's objectives over its repeats.

    Args:
        trials: Rows of the table `trials`.
        objectives: The columns to average.

    Returns:
        A row per point that has a completed trial with every objective measured: `cell`, `point_id`, the objectives, and
        `repeats`, the number of such trials.
    """
    columns = [objective.column for objective in objectives]
    completed = trials[trials["status"] == TrialStatus.COMPLETED].dropna(subset=columns)
    means = completed.assign(**{name: _mean_by_point(completed, completed[name]) for name in columns})
    by_point = means.groupby(_POINT, sort=False)
    return by_point[columns].first().assign(repeats=by_point.size()).reset_index()


def pareto_front(points: pd.DataFrame, objectives: Sequence[Objective]) -> pd.DataFrame:
    """Keep the points that no other one beats: none is as good in every objective and better in one.

    Args:
        points: A row per point, with a column per objective, none null.
        objectives: What counts, and which way is better.

    Returns:
        The rows of the front, the best in the first objective first, of equal ones the best in the next.
    """
    if points.empty:
        return points
    values_NO = np.column_stack([objective.sign * points[objective.column].to_numpy(np.float64) for objective in objectives])
    is_beaten = [bool(((values_NO >= own).all(axis=1) & (values_NO > own).any(axis=1)).any()) for own in values_NO]
    columns = [objective.column for objective in objectives]
    ascending = [objective.direction == "min" for objective in objectives]
    return points[~np.array(is_beaten)].sort_values(columns, ascending=ascending, kind="stable")


def _mean_by_point(trials: pd.DataFrame, values: pd.Series) -> pd.Series:
    """Give each row the mean of its point's values, null ones left out."""
    numbers = values.to_numpy(np.float64, na_value=np.nan)
    points = list(zip(*(trials[name] for name in _POINT), strict=True))
    own: dict[tuple[str, str], list[float]] = defaultdict(list)
    for point, number in zip(points, numbers, strict=True):
        own[point] += [] if math.isnan(number) else [float(number)]
    means = {point: mean(listed) for point, listed in own.items()}
    return pd.Series([means[point] for point in points], index=trials.index, dtype=np.float64)
