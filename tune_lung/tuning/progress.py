"""What a person sees while a search runs: a live view on a terminal, else a line now and then."""

import time
from types import TracebackType
from typing import Any, Self

from ray.tune import Callback
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tune_lung.results.schema import TrialStatus
from tune_lung.tuning.driver_only import DriverOnly
from tune_lung.tuning.recorder import Recorder, TrialRecord

_SECONDS_BETWEEN_REDRAWS = 0.5
_SECONDS_BETWEEN_LINES = 30.0


class ProgressView(DriverOnly, Callback):
    """Shows trials done, the best so far, what runs and the time left at most."""

    def __init__(self, recorder: Recorder, *, num_trials: int, max_concurrent: int, console: Console) -> None:
        """Take what is shown.

        Args:
            recorder: Knows every trial's state.
            num_trials: Trials of the whole search.
            max_concurrent: Trials at once at most.
            console: Where to show; a live view is drawn only on a terminal.
        """
        self._recorder, self._num_trials, self._max_concurrent = recorder, num_trials, max_concurrent
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._shown_at = time.monotonic()

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
            self._live.update(Group(Text(self.summary()), self._running_table()), refresh=True)
        else:
            self._console.print(self.summary(), highlight=False, soft_wrap=True)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Print how the trial ended; the line stays above the live view."""
        record = self._recorder.record_of(trial.trial_id)
        if record is not None:
            self._print_end(record)

    on_trial_error = on_trial_complete

    def summary(self) -> str:
        """Put the state of the search in one line."""
        records = self._recorder.records
        ended = sum(record.status is not TrialStatus.RUNNING for record in records)
        failed = sum(record.status is TrialStatus.FAILED for record in records)
        parts = [f"{ended} of {self._num_trials} trials done"]
        if failed:
            parts.append(f"{failed} failed")
        leader = self._recorder.leader()
        if leader is not None and leader.best is not None:
            parts.append(f"best so far {_percent(leader.best['val_macro_recall'])} val macro recall ({leader.plan.cell})")
        seconds = self.seconds_left()
        parts.append("time left not known yet" if seconds is None else f"at most {_duration(seconds)} left")
        return " · ".join(parts)

    def seconds_left(self) -> float | None:
        """Bound the time left from the epochs seen so far.

        Returns:
            Seconds if every trial runs all its epochs, those of a network not yet seen as dear as the mean of the
            others; None before the first epoch.
        """
        records = self._recorder.records
        costs = [_epoch_cost(record) for record in records if record.epochs]
        if not costs:
            return None
        mean_cost = sum(costs) / len(costs)
        max_epochs = records[0].plan.trial.max_epochs
        waiting = (self._num_trials - len(records)) * max_epochs * mean_cost
        running = sum(
            (record.plan.trial.max_epochs - len(record.epochs)) * (_epoch_cost(record) if record.epochs else mean_cost)
            for record in self._recorder.running()
        )
        return (waiting + running) / self._max_concurrent

    def _running_table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("running", "epoch", "val macro recall", "best", "images/s"):
            table.add_column(heading, justify="left" if heading == "running" else "right", no_wrap=True)
        for record in self._recorder.running():
            last, best = (record.epochs[-1], record.best) if record.epochs else (None, None)
            table.add_row(
                record.plan.cell,
                f"{len(record.epochs)}/{record.plan.trial.max_epochs}",
                _percent(last["val_macro_recall"]) if last else "",
                _percent(best["val_macro_recall"]) if best else "",
                f"{last['images_per_second']:.0f}" if last else "",
            )
        return table

    def _print_end(self, record: TrialRecord) -> None:
        best = record.best
        if record.failure is not None or best is None:
            text = f"failed: {record.failure}"
        else:
            text = f"{_percent(best['val_macro_recall'])} val macro recall at epoch {best['epoch']} of {len(record.epochs)}"
        done = sum(other.status is not TrialStatus.RUNNING for other in self._recorder.records)
        line = f"[{done:>{len(str(self._num_trials))}}/{self._num_trials}] {record.plan.cell}: {text}"
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


def _epoch_cost(record: TrialRecord) -> float:
    seconds = [row["epoch_seconds"] + row["validation_seconds"] for row in record.epochs]
    return float(sum(seconds) / len(seconds))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
