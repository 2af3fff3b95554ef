"""What a person sees while a search runs: a live view on a terminal, else a line now and then."""

import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from ray.tune import Callback
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tune_lung.metrics import Metric
from tune_lung.printable import in_one_line
from tune_lung.results.schema import FailureKind, StopReason, TrialStatus
from tune_lung.space import SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.tuning.driver_only import DriverOnly
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.trial_record import TrialRecord
from tune_lung.tuning.watching.time_left import TimeLeft
from tune_lung.tuning.watching.trial_label import trial_label

_SECONDS_BETWEEN_REDRAWS = 0.5
_SECONDS_BETWEEN_LINES = 30.0
_SEPARATOR = " · "
_NUMBER_WIDTHS = (7, 6, 6, 6)
"""Characters of what stands beside a trial: its epoch, its newest and its best value, and its speed."""
_COLUMN_GAP = 2
_LEAST_LABEL_WIDTH = 24
"""Characters of a trial's label that a long reason of failure leaves it."""


class ProgressView(DriverOnly, Callback):
    """Shows trials done, the best so far, what runs and the time left; every trial's end stays as a line of its own."""

    def __init__(
        self,
        recorder: Recorder,
        space: SearchSpace,
        strategy: Strategy,
        *,
        time_left: TimeLeft,
        max_concurrent: int,
        console: Console,
        searched_seconds: Callable[[], float] | None = None,
    ) -> None:
        """Take what is shown.

        Args:
            recorder: Knows every trial's state.
            space: What is tried; trials are named by what it samples.
            strategy: How often each point is repeated.
            time_left: Knows how many trials there are, and bounds their time.
            max_concurrent: Trials at once at most.
            console: Where to show. A live view is drawn only on a terminal that can move its cursor.
            searched_seconds: Tells how much of the time budget is spent; None counts from now.
        """
        self._recorder, self._max_concurrent, self._console = recorder, max_concurrent, console
        self._time_left = time_left
        self._shown_fields = {cell.name: (*cell.axes, *(("repeat",) if strategy.repeats > 1 else ())) for cell in space.cells()}
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_interactive else None
        started_at = self._shown_at = time.monotonic()
        self._searched_seconds = searched_seconds or (lambda: time.monotonic() - started_at)

    def __enter__(self) -> Self:
        """Start the live view."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Take the live view away."""
        if self._live:
            self._live.stop()

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Redraw the live view, or print a line, when it is time."""
        wait = _SECONDS_BETWEEN_REDRAWS if self._live else _SECONDS_BETWEEN_LINES
        if time.monotonic() - self._shown_at < wait:
            return
        self._shown_at = time.monotonic()
        if self._live:
            self._live.update(self._picture(), refresh=True)
        else:
            self._print_line(_SEPARATOR.join([*self._state(), self._running_text(), *self._best()]))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Print how the trial ended; the line stays above the live view."""
        record = self._recorder.record_of(trial.trial_id)
        if record is None:  # taken out of the queue before its start
            return
        num_ended = sum(each.status is not TrialStatus.RUNNING for each in self._recorder.records)
        num_trials = self._time_left.num_trials
        prefix, outcome = f"[{num_ended:>{len(str(num_trials))}}/{num_trials}] ", f": {_outcome(record, self._recorder.selected)}"
        self._print_line(prefix + self._label(record, room=len(prefix) + len(outcome), least=_LEAST_LABEL_WIDTH) + outcome)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Print why a trial failed, or why it is tried again."""
        failure, record = self._recorder.failure_of(trial.trial_id), self._recorder.record_of(trial.trial_id)
        if failure is None or record is None or failure.is_final:
            self.on_trial_complete(iteration, trials, trial)
        else:
            outcome = f": {failure.text.removesuffix('.')}; tried again"
            self._print_line(self._label(record, room=len(outcome), least=_LEAST_LABEL_WIDTH) + outcome)

    def _print_line(self, line: str) -> None:
        """Print one line: cut to a terminal's width, whole in a file."""
        has_width = self._console.is_terminal
        self._console.print(
            Text(in_one_line(line)), no_wrap=has_width, overflow="ellipsis" if has_width else None, soft_wrap=not has_width
        )

    def _picture(self) -> Group:
        width = self._console.width
        lines = [*_folded(self._state(), width), *(line[:width] for line in self._best())]
        return Group(*map(Text, lines), self._table(num_rows=max(1, self._console.height - len(lines) - 3)))

    def _state(self) -> list[str]:
        """Say how far the search is, in parts."""
        records, now = self._recorder.records, time.monotonic()
        counts = Counter(record.status for record in records)
        kinds = Counter(record.failure_kind for record in records if record.failure_kind is not None)
        ended = f"{len(records) - counts[TrialStatus.RUNNING]} of {self._time_left.num_trials} done"
        told = [f"{counts[TrialStatus.STOPPED]} stopped"] if counts[TrialStatus.STOPPED] else []
        told += [f"{count} failed: {_words(kind)}" for kind, count in kinds.items()]
        told += [f"{count} tried again: {_words(kind)}" for kind, count in self._recorder.retried().items()]
        slots = min(self._recorder.slots.num_live(), self._max_concurrent)
        left = "no node has room for a trial now"
        if slots:
            left = self._time_left.text(records, slots=slots, elapsed_seconds=self._searched_seconds(), now=now)
        return [f"{ended} ({', '.join(told)})" if told else ended, *self._speed(records, now), left]

    def _speed(self, records: list[TrialRecord], now: float) -> list[str]:
        num_epochs = sum(len(record.moments) - 1 for record in records)
        if not num_epochs:
            return []
        rate = num_epochs / (now - records[0].moments[0])
        return [f"{rate:.1f} epochs/s" if rate >= 10 else f"{rate:.2g} epochs/s"]

    def _best(self) -> list[str]:
        leader = self._recorder.leader()
        if leader is None or leader.best is None:
            return []
        selected = self._recorder.selected
        start = f"best val {selected.label} {selected.text(leader.best.get(selected.column))}: "
        return [start + self._label(leader, room=len(start))]

    def _running_text(self) -> str:
        return f"{len(self._recorder.running())} running"

    def _table(self, *, num_rows: int) -> Table:
        """Draw the running trials, the earliest first, and say how many there is no room for."""
        running = self._recorder.running()
        table = Table(box=None, pad_edge=False, padding=(0, _COLUMN_GAP, 0, 0), header_style="dim")
        table.add_column(self._running_text(), no_wrap=True)
        headings = ("epoch", self._recorder.selected.noun, "best", "img/s")
        for heading, width in zip(headings, _NUMBER_WIDTHS, strict=True):
            table.add_column(heading, justify="right", no_wrap=True, min_width=width)
        shown = running if len(running) <= num_rows else running[: num_rows - 1]
        for record in shown:
            table.add_row(*map(Text, self._cells_of(record)))
        if len(shown) < len(running):
            table.add_row(f"and {len(running) - len(shown)} more")
        return table

    def _cells_of(self, record: TrialRecord) -> tuple[str, ...]:
        label = self._label(record, room=sum(_NUMBER_WIDTHS) + _COLUMN_GAP * len(_NUMBER_WIDTHS))
        epoch = f"{len(record.epochs)}/{record.plan.trial.max_epochs}"
        if not record.epochs or record.best is None:
            return label, epoch
        last = record.epochs[-1]
        selected = self._recorder.selected
        values = (selected.text(row.get(selected.column)) for row in (last, record.best))
        return label, epoch, *values, f"{last['images_per_second']:.0f}"

    def _label(self, record: TrialRecord, *, room: int, least: int = 1) -> str:
        """Name a trial in what is left of a terminal's line.

        Args:
            record: The trial.
            room: Characters that the line needs for the rest.
            least: Characters to use in any case.
        """
        columns = record.plan.trial.columns() | {"repeat": record.plan.repeat}
        shown = {name: columns[name] for name in self._shown_fields[record.plan.cell]}
        width = max(least, self._console.width - room) if self._console.is_terminal else None
        return in_one_line(trial_label(record.plan.cell, shown, width=width))


def _outcome(record: TrialRecord, selected: Metric) -> str:
    best = record.best
    if record.status is TrialStatus.FAILED or best is None:
        return f"failed: {record.failure}"
    value = selected.text(best.get(selected.column))
    if record.status is TrialStatus.STOPPED:
        by = "the time budget" if record.stop_reason is StopReason.TIME else record.stop_reason
        return f"stopped by {by} at epoch {len(record.epochs)} ({value})"
    return f"{selected.noun} {value} at epoch {best['epoch']} of {len(record.epochs)}"


def _words(kind: FailureKind) -> str:
    return kind.replace("_", " ")


def _folded(parts: list[str], width: int) -> list[str]:
    """Join parts into as few lines as a width allows, breaking between parts only."""
    lines = [parts[0]]
    for part in parts[1:]:
        joined = lines[-1] + _SEPARATOR + part
        if len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(part)
    return lines
