"""What a run's own time went into: slots that were there, whatever was asked for."""

from dataclasses import replace
from pathlib import Path

import pytest

from tune_lung.results.ledger import Ledger
from tune_lung.results.reader import plain_rows, read_run
from tune_lung.results.schema import TimePart
from tune_lung.strategy import Strategy
from tune_lung.tuning import run_profile
from tune_lung.tuning.cluster import Resources, Room
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.resume import earlier_attempts
from tune_lung.tuning.run_profile import RunProfile
from tune_lung.tuning.slots import Slots

from tests.tuned_run import TUNED, setup_of, write_tuned_run
from tests.tuning.conftest import LooksLikeATrial, epoch_result


class Clock:
    """Time that is moved by hand, of the slots and of the driver."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(run_profile, "time", clock)
    return clock


@pytest.fixture
def recorder(recorder: Recorder, clock: Clock) -> Recorder:
    """A search that asked for 11 trials at once and has 3 slots."""
    resources = Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=11, may_grow=True)
    recorder.slots = Slots(resources, room=lambda: Room(free=3 - len(recorder.slots.running), total=3), clock=clock.monotonic)
    recorder.slots.num_live()
    return recorder


def own_seconds(root: Path) -> dict[str, float]:
    """The run's own rows."""
    return {row["part"]: row["seconds"] for row in plain_rows(read_run(root).profile) if "trial_id" not in row}


def profile_of(recorder: Recorder, **more: dict) -> RunProfile:
    return RunProfile(recorder._ledger, recorder, before=more.get("before", {}), earlier=more.get("earlier", {}))


def test_idle_is_what_slots_that_were_there_did_not_use(
    recorder: Recorder, setup: SearchSetup, trial: LooksLikeATrial, clock: Clock
):
    profile = profile_of(recorder, before={TimePart.START: 5.0, TimePart.STORE: 2.0})
    recorder.on_trial_start(0, [], trial)
    parts = {TimePart.STEP: 8.0, TimePart.EVALUATION: 3.5, TimePart.IDLE: 0.25}  # the last is waiting, and no work
    recorder.on_trial_result(0, [], trial, epoch_result(1, 0.5, seconds_by_part=parts))
    clock.now = 10.0
    profile.write(idle_seconds=profile.idle_seconds(), evaluation_seconds=1.0)
    expected = {"start": 5.0, "store": 2.0, "idle": 3 * 10.0 - 11.5, "evaluation": 1.0}
    assert own_seconds(setup.run_root) == expected


def test_it_is_written_down_now_and_then_so_that_a_kill_costs_little(recorder: Recorder, setup: SearchSetup, clock: Clock):
    profile = profile_of(recorder)
    for clock.now in (9.0, 11.0, 20.0):
        profile.on_step_end(0, [])
    assert own_seconds(setup.run_root)["idle"] == 3 * 11.0


def test_what_earlier_attempts_took_is_added_up_and_their_work_fills_no_slot_of_this_one(tmp_path: Path):
    root = write_tuned_run(tmp_path / "run", still_running=1)
    setup = replace(setup_of(tmp_path), profile=True)
    strategy, resources = Strategy.for_space(TUNED, samples=8), Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=2)
    for attempt in (1, 2):
        earlier = earlier_attempts(read_run(root), TUNED, strategy, setup, is_time_left=True)
        clock = Clock()
        recorder = Recorder(Ledger.open(root), setup, resources, earlier=earlier, slots=Slots(resources, clock=clock.monotonic))
        profile = profile_of(recorder, before={TimePart.START: 1.0}, earlier=earlier.own_seconds)
        clock.now = 50.0
        profile.write(idle_seconds=profile.idle_seconds(), evaluation_seconds=3.0)
        assert own_seconds(root) == {"start": attempt * 1.0, "idle": attempt * 100.0, "evaluation": attempt * 3.0}
        recorder._ledger.write_profile(earlier.records[0].plan.trial_id, [{"epoch": 1, "part": "step", "seconds": 70.0}])
