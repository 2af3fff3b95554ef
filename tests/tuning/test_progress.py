"""What a person sees while a search runs."""

import io

import pytest
from rich.console import Console

from tune_lung.tuning.progress import ProgressView
from tune_lung.tuning.recorder import Recorder

from tests.tuning.conftest import LooksLikeATrial, epoch_result


def view_of(recorder: Recorder, *, width: int = 80, terminal: bool = False) -> tuple[ProgressView, io.StringIO]:
    """A view that writes into a text."""
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=terminal, color_system=None)
    return ProgressView(recorder, num_trials=3, max_concurrent=2, console=console), text


def test_nothing_is_promised_before_the_first_epoch(recorder: Recorder, trial: LooksLikeATrial):
    recorder.on_trial_start(0, [], trial)
    view, _ = view_of(recorder)
    assert view.seconds_left() is None
    assert view.summary() == "0 of 3 trials done · time left not known yet"


def test_time_left_counts_what_runs_and_what_waits(recorder: Recorder, trial: LooksLikeATrial):
    recorder.on_trial_start(0, [], trial)
    recorder.on_trial_result(0, [], trial, epoch_result(1, 0.5))
    view, _ = view_of(recorder)
    # an epoch takes 2.0 + 0.5 s: 3 left of this trial's 4 and 2 waiting trials of 4, over 2 slots
    assert view.seconds_left() == pytest.approx((3 + 2 * 4) * 2.5 / 2)
    assert "best so far 50.0% val macro recall (resnet18 frozen_blocks=2)" in view.summary()
    assert "at most 14 s left" in view.summary()


def test_the_end_of_a_trial_is_one_line_without_a_terminal(recorder: Recorder, trial: LooksLikeATrial):
    recorder.on_trial_start(0, [], trial)
    recorder.on_trial_result(0, [], trial, epoch_result(1, 0.5))
    trial.last_result = epoch_result(1, 0.5, stop_reason="patience")
    recorder.on_trial_complete(0, [], trial)
    view, text = view_of(recorder)
    with view:
        view.on_trial_complete(0, [], trial)
    assert text.getvalue() == "[1/3] resnet18 frozen_blocks=2: 50.0% val macro recall at epoch 1 of 1\n"


@pytest.mark.parametrize("width", [80, 160])
def test_the_live_view_fits_the_terminal(recorder: Recorder, trial: LooksLikeATrial, width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tune_lung.tuning.progress._SECONDS_BETWEEN_REDRAWS", 0.0)
    recorder.on_trial_start(0, [], trial)
    recorder.on_trial_result(0, [], trial, epoch_result(1, 0.5))
    view, text = view_of(recorder, width=width, terminal=True)
    with view:
        view.on_step_end(0, [])
    shown = text.getvalue()
    assert "resnet18 frozen_blocks=2" in shown
    assert "1/4" in shown
