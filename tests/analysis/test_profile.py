"""Where the time of a run went: sums, means and the figure."""

from pathlib import Path

import pytest

from tune_lung.analysis.profile import epoch_seconds, profile_figure, run_seconds
from tune_lung.analysis.report import write_report
from tune_lung.results.ledger import Ledger
from tune_lung.results.reader import Run, read_run
from tune_lung.results.schema import TimePart

from tests.fabricated_run import write_fabricated_run

PARTS = {1: {"start": 3.0, "prefix": 5.0, "store": 0.5, "step": 4.0, "idle": 9.0}, 2: {"store": 0.7, "step": 6.0, "idle": 1.0}}
"""Seconds by epoch and part, of every trial."""


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of eleven trials whose time was taken, the slots idle for 20 s."""
    root = write_fabricated_run(tmp_path_factory.mktemp("runs") / "profiled")
    ledger = Ledger.open(root)
    for trial_id in read_run(root).trials["trial_id"]:
        rows = [
            {"epoch": epoch, "part": part, "seconds": seconds} for epoch, own in PARTS.items() for part, seconds in own.items()
        ]
        ledger.write_profile(trial_id, rows)
    ledger.write_run_profile([{"part": "store", "seconds": 2.0}, {"part": "idle", "seconds": 20.0}])
    return read_run(root)


def test_an_epochs_time_is_a_mean_without_what_is_done_once(profiled: Run):
    seconds = epoch_seconds(profiled)
    assert len(seconds) == 11
    assert list(seconds.columns) == [TimePart.STORE, TimePart.STEP, TimePart.IDLE]
    assert seconds.loc["cnn"].tolist() == pytest.approx([0.6, 5.0, 5.0])


def test_a_runs_waiting_is_that_of_its_slots(profiled: Run):
    seconds = run_seconds(profiled)
    assert seconds.to_dict() == pytest.approx(
        {"start": 33.0, "store": 11 * 1.2 + 2.0, "prefix": 55.0, "step": 110.0, "idle": 20.0}
    )


def test_a_run_cut_short_counts_what_its_trials_waited(profiled: Run):
    profile = profiled.profile
    cut = Run(**{**vars(profiled), "profile": profile[profile["trial_id"].notna()]})
    assert run_seconds(cut)["idle"] == pytest.approx(11 * 10.0)


def test_every_cell_and_the_run_is_a_bar_of_a_hundred_percent(profiled: Run):
    cells, whole = profile_figure(profiled).axes
    ends = {round(patch.get_y(), 3): patch.get_x() + patch.get_width() for patch in cells.patches}
    assert len(ends) == 11
    assert list(ends.values()) == pytest.approx([100.0] * 11)
    assert max(patch.get_x() + patch.get_width() for patch in whole.patches) == pytest.approx(100.0)
    assert "10.6 s" in {text.get_text() for text in cells.texts}


def test_the_report_draws_a_profile_where_there_is_one(profiled: Run, tmp_path: Path):
    assert [path.name for path in write_report([profiled.paths.root], out=tmp_path).figures] == ["figure4.png", "profile.png"]
