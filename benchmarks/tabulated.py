"""Problems of known learning curves: a search over them trains nothing.

A table holds configurations drawn from a space, with the selection score after each of their epochs. A proposal from
anywhere in the space stands for the nearest configuration that the same search has not trained yet.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq

from tune_lung.families.family import PointValue
from tune_lung.space import Cell, Choice, LogUniform, SampledAxis, SearchSpace

TABLES = Path(__file__).with_name("tables")
"""Where the recorded tables lie, one file a problem; `python -m benchmarks.record_curves` writes them."""
METADATA_KEY = b"tune_lung_benchmark"
"""Where a table's Parquet metadata keep, as JSON, the space and how the curves were recorded."""

Curve: TypeAlias = tuple[float, ...]
"""The selection score after each epoch, from the first; one that is not finite is the last: training failed there."""

_TO_ANOTHER_CELL = 1e6
"""Added to the squared distance of configurations outside the proposal's cell: taken when it has none left."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What a trial can be."""

    cell: str
    """Name of its cell."""
    values: Mapping[str, PointValue]
    """One value for each sampled axis."""
    curve: Curve
    """Its learning curve."""

    @property
    def fails(self) -> bool:
        """Whether training fails at the curve's last epoch."""
        return not math.isfinite(self.curve[-1])

    @property
    def value(self) -> float:
        """The score of its best epoch; minus infinity where training fails."""
        return -math.inf if self.fails else max(self.curve)


@dataclass(frozen=True, kw_only=True)
class TabulatedProblem:
    """A space of which only some configurations can be trained."""

    space: SearchSpace
    """What may be proposed: one arm, and no first points, so that no method knows more than another."""
    configurations: tuple[Configuration, ...]
    """Everything that can be trained."""

    @property
    def name(self) -> str:
        """The space's name."""
        return self.space.name

    @cached_property
    def max_epochs(self) -> int:
        """Epochs of the longest curve."""
        return max(len(one.curve) for one in self.configurations)

    @cached_property
    def best_value(self) -> float:
        """The value of the best configuration."""
        return max(one.value for one in self.configurations)

    @cached_property
    def coordinates(self) -> np.ndarray:
        """Where the configurations lie, one a row; see the function of that name."""
        axes = {cell.name: cell.axes for cell in self.space.cells()}
        return np.array([coordinates(axes[one.cell], one.values) for one in self.configurations])


class Untried:
    """What one search has left of a table."""

    def __init__(self, problem: TabulatedProblem) -> None:
        """Start with the whole table."""
        self._problem = problem
        self._cells = np.array([one.cell for one in problem.configurations])
        self._is_tried = np.zeros(len(problem.configurations), dtype=bool)

    def take(self, cell: Cell, values: Mapping[str, PointValue]) -> Configuration | None:
        """Give the configuration nearest to a proposal; from now on it is tried.

        Args:
            cell: Where the proposal belongs; when all of it is tried, the nearest one of the others is given.
            values: One value for each of its sampled axes.

        Returns:
            The configuration, the first of equally near ones; None when the whole table is tried.
        """
        if self._is_tried.all():
            return None
        distances = ((self._problem.coordinates - coordinates(cell.axes, values)) ** 2).sum(axis=1)
        distances += _TO_ANOTHER_CELL * (self._cells != cell.name)
        nearest = int(np.where(self._is_tried, math.inf, distances).argmin())
        self._is_tried[nearest] = True
        return self._problem.configurations[nearest]


def coordinates(axes: Mapping[str, SampledAxis], values: Mapping[str, PointValue]) -> np.ndarray:
    """Place a configuration so that the Euclidean distance of two says how much they differ.

    Args:
        axes: The sampled axes of its cell.
        values: One value for each.

    Returns:
        For an axis with an order one number from 0 at its low to 1 at its high end: of the logarithm on a log axis, of the
        rank where numbers are chosen from. For a choice of words one number each, so that any two words lie 1 apart.
    """
    return np.concatenate([_along(axis, values[name]) for name, axis in axes.items()])


def _along(axis: SampledAxis, value: Any) -> np.ndarray:
    if isinstance(axis, Choice):
        if any(type(choice) not in (int, float) for choice in axis.values):
            return np.array([choice == value for choice in axis.values]) / math.sqrt(2)
        return np.array([sorted(axis.values).index(value) / (len(axis.values) - 1)])
    low, high = float(axis.low), float(axis.high)
    if isinstance(axis, LogUniform):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return np.array([(value - low) / (high - low)])


def read_table(path: Path) -> TabulatedProblem:
    """Read a table that `benchmarks.record_curves` wrote."""
    table = pq.read_table(path)
    space = SearchSpace.from_json(json.loads(table.schema.metadata[METADATA_KEY])["space"])
    axes = space.arms[0].sampled_axes()
    configurations: dict[int, Configuration] = {}
    for row in table.sort_by([("configuration", "ascending"), ("epoch", "ascending")]).to_pylist():
        values = {name: row[name] for name in axes}
        score = math.nan if row["selection_score"] is None else row["selection_score"]
        known = configurations.get(row["configuration"], Configuration(cell=row["cell"], values=values, curve=()))
        configurations[row["configuration"]] = replace(known, curve=(*known.curve, score))
    return TabulatedProblem(space=replace(space, first_points=()), configurations=tuple(configurations.values()))
