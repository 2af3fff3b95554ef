"""Whose networks a run keeps: those of each cell's best point, of each cell's first, of the front, and of what may go on.

Told of every trial as it begins and ends, and no more than a few points are looked at each time. What leads is decided by
the rules of `tune_lung.results.ranking` over rows of the table `trials`, as it is for whoever tests and shows them.

A point counts once every repeat of it has ended for good: before that its mean may still rise or fall, so its own networks
stay, and so do those of the point whose place it may take.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tune_lung.results.ranking import beats, mean
from tune_lung.results.schema import StopReason, TrialStatus
from tune_lung.strategy import Objective


def may_go_on(status: str, stop_reason: str | None) -> bool:
    """Whether a trial is trained further from where it stands: now, when it is tried again, or where there is more time.

    One that ran all its epochs goes on too where `--max-epochs` grows; but that may be never, and every trial may be such.
    """
    return status == TrialStatus.RUNNING or stop_reason == StopReason.TIME


class _Standing(NamedTuple):
    """What a trial's row says of its place."""

    may_go_on: bool
    score: float | None
    """Its selection score; None where it failed, or has none yet."""
    values: tuple[float, ...] | None
    """Its objectives, all such that more is better; None where it has not completed, or lacks one."""


@dataclass(eq=False)
class _Point:
    """One point of a cell, with the trials that stand for it."""

    cell: str
    point_id: str
    first_order: int
    """Place of its first proposal in the run."""
    trials: dict[str, _Standing] = field(default_factory=dict)

    def is_settled(self, repeats: int) -> bool:
        """Whether every repeat has ended for good."""
        return len(self.trials) >= repeats and not any(trial.may_go_on for trial in self.trials.values())

    def rank(self) -> tuple[float, str]:
        """Place the point among those of its cell: the lowest is the best."""
        return -mean(trial.score for trial in self.trials.values() if trial.score is not None), self.point_id

    def values(self) -> tuple[float, ...] | None:
        """Average its objectives; None where no trial has them."""
        measured = [trial.values for trial in self.trials.values() if trial.values is not None]
        return tuple(mean(column) for column in zip(*measured, strict=True)) if measured else None


@dataclass
class _Cell:
    """What is known of a cell."""

    first: _Point
    """The point proposed first."""
    best: _Point | None = None
    """The best of those that are settled."""
    points: list[_Point] = field(default_factory=list)


class Leaders:
    """The points of a run whose networks are kept."""

    def __init__(self, objectives: Sequence[Objective], *, repeats: int) -> None:
        """Begin without trials.

        Args:
            objectives: What the search goes by; there is a front where they are several.
            repeats: Trials of each point.
        """
        self._objectives, self._repeats = objectives, repeats
        self._points: dict[tuple[str, str], _Point] = {}
        self._cells: dict[str, _Cell] = {}
        self._front: dict[_Point, tuple[float, ...]] = {}

    def note(self, row: Mapping[str, Any]) -> list[str]:
        """Take note of a trial's row.

        Args:
            row: Of the table `trials`, in place of the one before.

        Returns:
            The trials, all ended for good, whose networks need not be kept any more; this one among them if it does not lead.
        """
        point = self._point_of(row)
        point.trials[row["trial_id"]] = self._standing_of(row)
        cell = self._cells[point.cell]
        touched = [point, cell.first, *self._changed_best(cell, point), *self._changed_front(point)]
        cell.first = min(cell.first, point, key=lambda one: one.first_order)
        return [trial_id for one in dict.fromkeys(touched) if not self._is_kept(one) for trial_id in one.trials]

    def keeps(self, cell: str, point_id: str) -> bool:
        """Whether the networks of a point are kept, of which a trial was noted."""
        return self._is_kept(self._points[cell, point_id])

    def _is_kept(self, point: _Point) -> bool:
        cell = self._cells[point.cell]
        return not point.is_settled(self._repeats) or point in (cell.first, cell.best) or point in self._front

    def _point_of(self, row: Mapping[str, Any]) -> _Point:
        key, order = (row["cell"], row["point_id"]), row["proposed_order"]
        point = self._points.get(key)
        if point is None:
            point = self._points[key] = _Point(*key, first_order=order)
            self._cells.setdefault(point.cell, _Cell(first=point)).points.append(point)
        point.first_order = min(point.first_order, order)
        return point

    def _standing_of(self, row: Mapping[str, Any]) -> _Standing:
        status, values = row["status"], None
        measured = [row[one.column] for one in self._objectives if row.get(one.column) is not None]
        if status == TrialStatus.COMPLETED and len(measured) == len(self._objectives):
            values = tuple(one.sign * float(value) for one, value in zip(self._objectives, measured, strict=True))
        score = None if status == TrialStatus.FAILED else row["selection_score"]
        return _Standing(may_go_on(status, row["stop_reason"]), score, values)

    def _changed_best(self, cell: _Cell, point: _Point) -> Iterable[_Point]:
        """Let a point take its place in its cell; give the one that it may have taken it from."""
        before = cell.best
        if point is before:  # it goes on, or was trained again: another may lead now
            settled = [one for one in cell.points if one.is_settled(self._repeats)]
            cell.best = min(settled, key=_Point.rank, default=None)
        elif point.is_settled(self._repeats) and (before is None or point.rank() < before.rank()):
            cell.best = point
        return () if before is None else (before,)

    def _changed_front(self, point: _Point) -> Iterable[_Point]:
        """Let a point take its place in the front; give those that stood there before."""
        if len(self._objectives) == 1:
            return ()
        before = self._front
        if point in before:
            self._front = {}
            for one in self._points.values():
                self._add_to_front(one)
        else:
            self._add_to_front(point)
        return before

    def _add_to_front(self, point: _Point) -> None:
        values = point.values() if point.is_settled(self._repeats) else None
        if values is None or any(beats(other, values) for other in self._front.values()):
            return
        self._front = {one: own for one, own in self._front.items() if not beats(values, own)} | {point: values}
