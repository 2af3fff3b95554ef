"""What a person sees while a search runs."""

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tune_lung.results.schema import StopReason
from tune_lung.space import Arm, Choice, Grid, LogUniform, SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.tuning.cluster import Resources, Room
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.slots import Slots
from tune_lung.tuning.watching.progress import ProgressView
from tune_lung.tuning.watching.time_left import TimeLeft

from tests.tuning.conftest import LooksLikeATrial, epoch_result

CELL = "resnet18 frozen_blocks=2"
GRID = SearchSpace(arms=(Arm(model="resnet18", frozen_blocks=Grid(2, 3, 4), max_epochs=4),))
TUNED = SearchSpace(
    arms=(
        Arm(
            model="resnet18",
            frozen_blocks=Grid(2, 3, 4),
            max_epochs=4,
            learning_rate=LogUniform(1e-4, 1e-2),
            batch_size=Choice(16, 128),
            weight_decay=LogUniform(1e-6, 1e-2),
        ),
    )
)
LABEL = f"{CELL} lr 1.2e-3 batch 128 wd 5e-5"
TOKENS = re.compile(r"\x1b\[(?P<number>[0-9?]*)(?P<code>[A-Za-z])|(?P<move>[\r\n])|(?P<text>[^\x1b\r\n]+)")


@pytest.fixture(autouse=True)
def _capable_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that can move its cursor, redrawn as often as the search asks, whatever the tests run on."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for variable in ("COLUMNS", "LINES", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("tune_lung.tuning.watching.progress._SECONDS_BETWEEN_REDRAWS", 0.0)
    monkeypatch.setattr("tune_lung.tuning.watching.progress._SECONDS_BETWEEN_LINES", 0.0)


def view_of(
    recorder: Recorder,
    space: SearchSpace = TUNED,
    *,
    width: int = 80,
    height: int = 24,
    terminal: bool = True,
    max_concurrent: int = 2,
    **strategy: Any,
) -> tuple[ProgressView, io.StringIO]:
    """A view that writes into a text."""
    text = io.StringIO()
    console = Console(file=text, width=width, height=height, force_terminal=terminal, color_system=None)
    work = dict.fromkeys((cell.name for cell in space.cells()), 1.0)
    if not space.is_grid:
        strategy.setdefault("samples", 2)
    chosen = Strategy.for_space(space, **strategy)
    time_left = TimeLeft(space.cells(), chosen, work=work)
    view = ProgressView(recorder, space, chosen, time_left=time_left, max_concurrent=max_concurrent, console=console)
    return view, text


def start(recorder: Recorder, number: int = 0, *, cell: str = CELL, **point: Any) -> LooksLikeATrial:
    values = {"learning_rate": 0.00123, "batch_size": 128, "weight_decay": 5e-5, "max_epochs": 4} | point
    own = {"model": "resnet18", "frozen_blocks": int(cell[-1]), "weights": "random"} | values
    trial = LooksLikeATrial(
        trial_id=f"ray{number}", config={"cell": cell, "point": own, "repeat": number, "proposed_order": number}
    )
    recorder.on_trial_start(0, [], trial)
    return trial


def report(recorder: Recorder, trial: LooksLikeATrial, *scores: float, **more: Any) -> None:
    for epoch, score in enumerate(scores, start=1):
        trial.last_result = epoch_result(epoch, score, **more)
        recorder.on_trial_result(0, [], trial, trial.last_result)


def end(recorder: Recorder, view: ProgressView, trial: LooksLikeATrial) -> None:
    recorder.on_trial_complete(0, [], trial)
    view.on_trial_complete(0, [], trial)


def screen_of(text: io.StringIO) -> list[str]:
    """What a terminal of endless height shows after all that was written, from the first line to the last that is not empty."""
    lines, row, column = [""], 0, 0
    for token in TOKENS.finditer(text.getvalue()):
        if token["text"]:
            lines[row] = lines[row][:column].ljust(column) + token["text"] + lines[row][column + len(token["text"]) :]
            column += len(token["text"])
        elif token["move"]:
            column, row = 0, row + (token["move"] == "\n")
            lines += [""] * (row + 1 - len(lines))
        elif token["code"] == "A":
            row -= int(token["number"])
        elif token["code"] == "K":
            assert token["number"] == "2"
            lines[row] = ""
        else:
            assert token["code"] in "lh"  # the cursor hidden, and shown
    return "\n".join(line.rstrip() for line in lines).rstrip().split("\n")


def picture_of(view: ProgressView, text: io.StringIO) -> list[str]:
    """The lines of the live view, once drawn."""
    with view:
        view.on_step_end(0, [])
        return screen_of(text)


@pytest.mark.parametrize(
    ("select_by", "named", "heading"),
    [
        ("val_macro_recall", "best val macro recall 80.0%: ", "recall"),
        ("val_loss", "best val loss 0.9000: ", "loss"),
        ("val_recall:Lung_x", "best val recall of Lung_x 25.0%: ", "recall"),
    ],
)
def test_the_view_names_and_shows_what_trials_are_ranked_by(
    setup: SearchSetup, recorder: Recorder, select_by: str, named: str, heading: str
) -> None:
    recorder._setup = replace(setup, run=replace(setup.run, select_by=select_by))
    recorder._ledger.classes = ("Lung_x",)
    view, text = view_of(recorder, width=120)
    trial = start(recorder)
    trial.last_result = epoch_result(1, 0.8, **{"val_recall:Lung_x": 0.25})
    recorder.on_trial_result(0, [], trial, trial.last_result)
    lines = picture_of(view, text)
    assert any(line.startswith(named) for line in lines)
    value = named.split()[-1].removesuffix(":")
    headings = next(line for line in lines if "img/s" in line)
    assert headings.split()[-4:] == ["epoch", heading, "best", "img/s"]
    assert lines[-1].split()[-3:-1] == [value, value]


@pytest.mark.parametrize("width", [80, 160])
def test_the_live_view_has_a_summary_the_best_and_a_row_for_each_running_trial(recorder: Recorder, width: int):
    report(recorder, start(recorder, 0), 0.5, 0.9, 0.8)
    start(recorder, 1, cell="resnet18 frozen_blocks=3")
    summary, best, heading, first, second = picture_of(*view_of(recorder, width=width))
    assert re.fullmatch(r"0 of 6 done · [\d.e+]+ epochs/s · about .+ left", summary)
    assert best.startswith("best val macro recall 90.0%: resnet18 frozen")
    assert heading.split() == ["2", "running", "epoch", "recall", "best", "img/s"]
    assert first.endswith("3/4   80.0%   90.0%      50")
    assert second.split()[-1] == "0/4"
    assert first.startswith(LABEL if width == 160 else "resnet18 frozen=2 lr 1.2e-3 batch 128 wd 5e-5")
    assert best.endswith("wd 5e-5")


@pytest.mark.parametrize("width", [40, 80, 160])
def test_no_line_is_wider_than_the_terminal(recorder: Recorder, width: int):
    view, text = view_of(recorder, width=width, max_concurrent=9)
    ends = [start(recorder, number) for number in range(3)]
    with view:
        for number in range(3, 6):
            report(recorder, start(recorder, number, cell="resnet18 frozen_blocks=4"), 0.5, 0.9)
            view.on_step_end(0, [])
        for trial in ends:
            report(recorder, trial, 0.3)
        recorder.note_stop("ray0", StopReason.ASHA)
        ends[1].last_result["epochs"][-1]["stop_reason"] = "patience"
        ends[2].last_result = {"failure": "diverged: The training loss is nan at epoch 2, and this goes on. " * 4}
        for trial in ends:
            end(recorder, view, trial)
        view.on_step_end(0, [])
        shown = screen_of(text)
    assert [line[:5] for line in shown[:3]] == ["[1/6]", "[2/6]", "[3/6]"]
    assert len(shown) > 6
    assert max(map(len, shown)) <= width


@pytest.mark.parametrize("height", [10, 24])
def test_many_trials_at_once_leave_the_terminal_its_height(recorder: Recorder, height: int):
    for number in range(64):
        report(recorder, start(recorder, number), 0.5)
    lines = picture_of(*view_of(recorder, height=height, max_concurrent=64))
    assert len(lines) < height
    assert lines[2].startswith("64 running")
    shown = [line for line in lines if line.startswith("resnet18")]
    assert len(shown) == height - 6  # two lines above, the heading, what there is no room for, two spare
    assert lines[-1] == f"and {64 - len(shown)} more"


def test_trials_that_fit_are_all_shown(recorder: Recorder):
    for number in range(19):
        start(recorder, number)
    lines = picture_of(*view_of(recorder, height=24, max_concurrent=64))
    assert sum(line.startswith("resnet18") for line in lines) == 19
    assert not lines[-1].startswith("and")


def test_ends_are_counted_by_kind(recorder: Recorder):
    view, text = view_of(recorder)
    trials = [start(recorder, number) for number in range(4)]
    for trial in trials:
        report(recorder, trial, 0.5)
    recorder.note_stop("ray0", StopReason.ASHA)
    recorder.note_stop("ray1", StopReason.TIME)
    trials[2].last_result = {"failure": "diverged: The training loss is nan at epoch 2."}
    trials[3].last_result["epochs"][-1]["stop_reason"] = "patience"
    for trial in trials:
        end(recorder, view, trial)
    assert "4 of 6 done (2 stopped, 1 failed: diverged)" in "\n".join(picture_of(view, text))


@pytest.mark.parametrize(
    ("ending", "line"),
    [
        ({"stop_reason": "patience"}, f"[1/6] {LABEL}: recall 90.0% at epoch 2 of 3"),
        ({}, f"[1/6] {LABEL}: stopped by asha at epoch 3 (90.0%)"),
        ({"failure": "diverged: nan at epoch 4."}, f"[1/6] {LABEL}: failed: diverged: nan at epoch 4."),
    ],
)
def test_the_end_of_a_trial_is_one_line_whole_in_a_file(recorder: Recorder, ending: dict[str, str], line: str):
    view, text = view_of(recorder, terminal=False)
    trial = start(recorder)
    report(recorder, trial, 0.5, 0.9, 0.8)
    recorder.note_stop("ray0", StopReason.ASHA)
    trial.last_result |= {name: text for name, text in ending.items() if name == "failure"}
    trial.last_result["epochs"][-1] |= ending
    with view:
        end(recorder, view, trial)
    assert text.getvalue() == f"{line}\n"


def test_a_trial_stopped_by_the_time_budget_says_so(recorder: Recorder):
    view, text = view_of(recorder, GRID, terminal=False)
    trial = start(recorder)
    report(recorder, trial, 0.5)
    end(recorder, view, trial)
    assert text.getvalue() == f"[1/3] {CELL}: stopped by the time budget at epoch 1 (50.0%)\n"


def test_a_trial_that_raised_before_its_first_epoch_gives_its_reason(recorder: Recorder, tmp_path: Path):
    error_file = tmp_path / "error.txt"
    error_file.write_text("Traceback ...\nValueError: no such thing\n")
    view, text = view_of(recorder, GRID)
    trial = start(recorder)
    with view:
        trial.error_file = str(error_file)
        recorder.on_trial_error(0, [], trial)
        view.on_trial_error(0, [], trial)
    assert screen_of(text) == [f"[1/3] {CELL}: failed: bug: ValueError: no such thing"]


def test_a_trial_that_is_tried_again_says_why_and_is_counted(recorder: Recorder):
    view, text = view_of(recorder, GRID)
    trial = start(recorder)
    with view:
        recorder.on_trial_error(0, [], trial)
        view.on_trial_error(0, [], trial)
    assert screen_of(text) == [f"{CELL}: lost_worker: its worker's process died; tried again"]
    assert "(1 tried again: lost worker)" in "\n".join(picture_of(view, text))


def test_a_long_reason_of_failure_leaves_the_trial_its_name(recorder: Recorder):
    view, text = view_of(recorder)
    trial = start(recorder)
    trial.last_result = {"failure": "RuntimeError: " + "no room on the GPU " * 20}
    with view:
        end(recorder, view, trial)
    (line,) = screen_of(text)
    assert line.startswith("[1/6] resnet18 frozen=2…: failed: RuntimeError: no room on the GPU")
    assert len(line) == 80
    assert line.endswith("…")


def test_a_trial_taken_out_of_the_queue_before_its_start_says_nothing(recorder: Recorder):
    view, text = view_of(recorder, terminal=False)
    view.on_trial_complete(0, [], LooksLikeATrial(trial_id="never started", config={}))
    assert text.getvalue() == ""


def test_without_a_terminal_a_line_tells_it_all(recorder: Recorder):
    report(recorder, start(recorder), 0.5, 0.9)
    view, text = view_of(recorder, GRID, terminal=False)
    with view:
        view.on_step_end(0, [])
    assert re.fullmatch(
        rf"0 of 3 done · [\d.e+]+ epochs/s · about .+ left · 1 running · best val macro recall 90.0%: {CELL}\n",
        text.getvalue(),
    )


def test_lines_without_a_terminal_come_every_30_seconds(recorder: Recorder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    view, text = view_of(recorder, terminal=False)
    with view:
        for _ in range(124):  # seconds
            now += 1
            view.on_step_end(0, [])
    assert len(screen_of(text)) == 4


def test_a_dumb_terminal_gets_whole_lines_within_its_width_and_no_control_codes(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TERM", "dumb")
    trial = start(recorder)
    report(recorder, trial, 0.5, 0.9)
    view, text = view_of(recorder)
    with view:
        view.on_step_end(0, [])
        trial.last_result["epochs"][-1]["stop_reason"] = "patience"
        end(recorder, view, trial)
    assert "\x1b" not in text.getvalue()
    assert "\r" not in text.getvalue()
    state, *_, ended = text.getvalue().splitlines()
    assert state.startswith("0 of 6 done · ")
    assert ended == "[1/6] resnet18 frozen=2 lr 1.2e-3 batch 128…: recall 90.0% at epoch 2 of 2"
    assert max(map(len, text.getvalue().splitlines())) <= 80


def test_what_stays_of_a_search_is_the_end_of_each_trial(recorder: Recorder):
    view, text = view_of(recorder, GRID)
    with view:
        for number in range(3):
            trial = start(recorder, number, cell=f"resnet18 frozen_blocks={number + 2}")
            for epoch in range(1, 5):
                trial.last_result = epoch_result(epoch, 0.5, stop_reason="max_epochs" if epoch == 4 else None)
                recorder.on_trial_result(0, [], trial, trial.last_result)
                view.on_step_end(0, [])
            end(recorder, view, trial)
    assert screen_of(text) == [
        f"[{number + 1}/3] resnet18 frozen_blocks={number + 2}: recall 50.0% at epoch 1 of 4" for number in range(3)
    ]


def test_repeats_of_a_point_are_told_apart(recorder: Recorder):
    view, text = view_of(recorder, width=160, repeats=2)
    start(recorder, 0)
    start(recorder, 1)
    rows = picture_of(view, text)[-2:]
    assert [row.split(" repeat ")[1].split()[0] for row in rows] == ["0", "1"]


def lost(recorder: Recorder, view: ProgressView, trial: LooksLikeATrial) -> None:
    """Its worker is gone without a word: it is tried again when there is room."""
    recorder.on_trial_error(0, [], trial)
    view.on_trial_error(0, [], trial)


def test_a_trial_whose_worker_is_gone_does_not_run(recorder: Recorder):
    view, text = view_of(recorder, terminal=False)
    trials = [start(recorder, number) for number in range(3)]
    view.on_step_end(0, [])
    assert "· 3 running" in text.getvalue().splitlines()[-1]
    for trial in trials[:2]:
        lost(recorder, view, trial)
    view.on_step_end(0, [])
    line = text.getvalue().splitlines()[-1]
    assert line.startswith("0 of 6 done (2 tried again: lost worker)")
    assert "· 1 running" in line
    end(recorder, view, trials[2])
    assert text.getvalue().splitlines()[-1].startswith("[1/6] ")


def test_without_any_node_nothing_runs_and_no_time_is_foretold(recorder: Recorder):
    now = 0.0
    resources = Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=64, may_grow=True)
    recorder.slots = Slots(resources, room=lambda: Room(free=0, total=0), clock=lambda: now)
    view, text = view_of(recorder, terminal=False, max_concurrent=64)
    trial = start(recorder)
    report(recorder, trial, 0.5)
    view.on_step_end(0, [])
    assert " left · 1 running" in text.getvalue().splitlines()[-1]
    lost(recorder, view, trial)
    now = 1.0
    view.on_step_end(0, [])
    assert "no node has room for a trial now · 0 running" in text.getvalue().splitlines()[-1]


def test_the_time_left_counts_on_the_slots_that_there_are(recorder: Recorder):
    """6 trials of 4 epochs and 2.5 s, one of them done: 57.5 s on one slot, 20 s on three. 100 were asked for."""
    room, now = Room(free=0, total=1), 0.0
    resources = Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=100, may_grow=True)
    recorder.slots = Slots(resources, room=lambda: room, clock=lambda: now)
    view, text = view_of(recorder, terminal=False, max_concurrent=100, scheduler="none")
    report(recorder, start(recorder), 0.5)
    view.on_step_end(0, [])
    assert re.search(r"about 5\d s left", text.getvalue().splitlines()[-1])
    room, now = Room(free=2, total=3), 1.0
    view.on_step_end(0, [])
    assert re.search(r"about (19|20) s left", text.getvalue().splitlines()[-1])
