"""A run is opened by one search, with all that it goes on from; what ends a search is written by its owner alone."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from optuna.trial import TrialState
from rich.console import Console

from tune_lung.data.prepare import PreparedData
from tune_lung.errors import InputError, SupersededError
from tune_lung.files import read_json_with_digest
from tune_lung.results import ownership
from tune_lung.results.layout import RunPaths
from tune_lung.results.ledger import Ledger
from tune_lung.results.ownership import Ownership
from tune_lung.results.reader import read_run
from tune_lung.results.schema import FailureKind, TrialStatus
from tune_lung.search import request as search_request
from tune_lung.search import supervision as search_supervision
from tune_lung.search.command_line import read_command_line
from tune_lung.search.request import SearchRequest
from tune_lung.search.resume_options import resumed_search
from tune_lung.search.steps import _known_trials
from tune_lung.search.supervision import Supervised, _write_end, opened_ledger, supervise
from tune_lung.tuning.cluster_watch import ClusterWatch
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.proposals.studies import KnownTrial
from tune_lung.tuning.recorder import SearchHaltedError
from tune_lung.tuning.search_plan import SearchPlan
from tune_lung.tuning.trial_record import TrialRecord

from tests.tuned_run import setup_of, write_tuned_run
from tests.tuning.conftest import RESOURCES


class FrozenClock(datetime):
    """One second for ever."""

    @classmethod
    def now(cls, tz: object = None) -> datetime:
        assert tz is UTC
        return datetime(2026, 3, 1, 10, 0, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _frozen_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_request, "datetime", FrozenClock)


def request_of(folder: Path, *options: str) -> SearchRequest:
    return SearchRequest.new(read_command_line(["--out", str(folder), *options]))


@pytest.fixture
def setup(tmp_path: Path) -> SearchSetup:
    return setup_of(tmp_path)


@pytest.fixture
def prepared(setup: SearchSetup) -> PreparedData:
    images = pd.DataFrame({"path": ["a/1.png", "b/2.png"], "split": ["train", "test"]})
    return PreparedData(store=setup.store, fingerprint=setup.data_fingerprint, classes=("a", "b"), images=images, synthetic=True)


def test_two_searches_without_names_in_one_second_are_two_runs(
    tmp_path: Path, setup: SearchSetup, prepared: PreparedData
) -> None:
    first, second = (request_of(tmp_path, "--seed", seed) for seed in "12")
    assert first.root == second.root
    with opened_ledger(first, setup, prepared, []) as (one, _, _), opened_ledger(second, setup, prepared, []) as (other, _, _):
        assert one.paths.root == tmp_path / "freeze_grid-20260301-100000"
        assert other.paths.root == tmp_path / "freeze_grid-20260301-100000-2"
    for ledger, seed in ((one, 1), (other, 2)):
        run = read_run(ledger.paths.root)
        assert (run.name, run.manifest["seed"], len(run.images)) == (ledger.paths.root.name, setup.run.seed, 2)
        assert f"{seed}" in run.manifest["command"]


def test_of_two_searches_with_one_name_the_second_is_refused_and_the_run_is_the_firsts(
    tmp_path: Path, setup: SearchSetup, prepared: PreparedData
) -> None:
    first, second = (request_of(tmp_path, "--name", "run", "--seed", seed) for seed in "12")
    with opened_ledger(first, setup, prepared, []) as (ledger, own, _):
        with pytest.raises(InputError, match="The run folder 'run' exists already"), opened_ledger(second, setup, prepared, []):
            pass
        own.check()
        assert "1" in ledger.read_manifest()["command"]
    with pytest.raises(InputError, match="exists already"):
        request_of(tmp_path, "--name", "run")


def test_what_a_run_was_taught_is_in_it_when_it_appears(
    tmp_path: Path, setup: SearchSetup, prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(tmp_path, "--name", "run")
    cell = request.space.cells()[0]
    known = KnownTrial(cell=cell, values={}, state=TrialState.COMPLETE, objective_values=(0.5,), scores={1: 0.5})
    rename, taught = ownership.rename_to_new, []

    def look_and_rename(folder: Path, place: Path) -> None:
        taught.append(read_json_with_digest(RunPaths(folder).lessons)["trials"][0]["cell"])
        assert len(read_run(folder, only=("images",)).images) == 2
        rename(folder, place)

    monkeypatch.setattr(ownership, "rename_to_new", look_and_rename)
    with opened_ledger(request, setup, prepared, [known]):
        assert taught == [cell.name]


def test_a_new_search_is_not_taught_by_what_happens_to_lie_in_its_place(
    tmp_path: Path, setup: SearchSetup, prepared: PreparedData
) -> None:
    """Another search of that name may have begun since the name was found free."""
    request = request_of(tmp_path, "--name", "run")
    cell = request.space.cells()[0]
    known = KnownTrial(cell=cell, values={}, state=TrialState.COMPLETE, objective_values=(0.5,), scores={1: 0.5})
    with opened_ledger(request_of(tmp_path, "--name", "run"), setup, prepared, [known]):
        pass
    assert _known_trials(request, setup, Console()) == []


def test_lessons_that_are_gone_are_told_of(
    tmp_path: Path, setup: SearchSetup, prepared: PreparedData, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = read_run(write_tuned_run(tmp_path / "teacher"))
    request = replace(request_of(tmp_path, "--name", "run", "--set", "padding=same"), teacher=teacher)
    with opened_ledger(request, setup, prepared, []) as (ledger, own, _):
        pass
    going_on = SearchRequest.to_go_on(
        resumed_search(ledger.paths.root, read_command_line(["--resume", str(ledger.paths.root)])), own
    )
    assert _known_trials(going_on, setup, Console()) == []
    assert capsys.readouterr().out == ""
    ledger.paths.lessons.unlink()
    assert _known_trials(going_on, setup, Console()) == []
    assert "warm_start.json is missing: going on without what the earlier run taught" in capsys.readouterr().out


def test_the_end_is_written_by_the_runs_owner_alone(tmp_path: Path, setup: SearchSetup, prepared: PreparedData) -> None:
    with opened_ledger(request_of(tmp_path, "--name", "run"), setup, prepared, []) as (ledger, _, _):
        ledger.paths.owner(2).write_text("{}")
        with pytest.raises(SupersededError, match="attempt 2"):
            _write_end(ledger, "completed")
    assert read_run(ledger.paths.root).manifest["status"] == "running"


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_out_that_is_no_folder_is_refused_before_anything_is_decoded(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--out .*: 'file' is no folder\. Give the folder that runs go to\."):
        request_of(tmp_path / out)


def going_on(root: Path, own: Ownership, *options: str) -> SearchRequest:
    return SearchRequest.to_go_on(resumed_search(root, read_command_line(["--resume", str(root), *options])), own)


@pytest.fixture
def root(tmp_path: Path, setup: SearchSetup, prepared: PreparedData) -> Path:
    """A run that has begun, on CPUs with one thread a trial."""
    with opened_ledger(request_of(tmp_path, "--name", "run", "--set", "padding=same"), setup, prepared, []) as (ledger, _, _):
        return ledger.paths.root


@pytest.mark.parametrize(
    ("cpus", "gpus", "difference", "as_before"),
    [
        (2, 0, "threads of a trial: 1 there and 2 here", "--cpus-per-trial 1"),
        (1, 1, "device: CPUs there and GPUs here", "--gpus-per-trial 0"),
        (
            3.5,
            0.5,
            "device: CPUs there and GPUs here; threads of a trial: 1 there and 3 here",
            "--gpus-per-trial 0 --cpus-per-trial 1",
        ),
    ],
)
def test_a_run_goes_on_with_the_threads_and_the_kind_of_device_that_gave_its_numbers(
    root: Path, setup: SearchSetup, prepared: PreparedData, cpus: float, gpus: float, difference: str, as_before: str
) -> None:
    assert read_run(root).manifest["numerics"] == {"device": "cpu", "threads": 1, "precision": "fp32"}
    other = replace(setup, cpus_per_trial=cpus, gpus_per_trial=gpus)
    before = (root / "run.json").read_bytes()
    told = f"'run' would be computed otherwise ({difference}), and numbers would differ. Go on with {as_before}, or allow it with"
    with (
        Ownership.claim(root, at_least=2) as own,
        pytest.raises(InputError, match=re.escape(f"{told} --allow-other-numbers")),
        opened_ledger(going_on(root, own), other, prepared, []),
    ):
        pass
    assert (root / "run.json").read_bytes() == before


@pytest.mark.parametrize("changes", [{"cpus_per_trial": 1.9}, {"cpus_per_trial": 0.5}, {}])
def test_what_gives_the_same_numbers_goes_on_and_nothing_is_said(
    root: Path, setup: SearchSetup, prepared: PreparedData, changes: dict[str, float]
) -> None:
    with Ownership.claim(root, at_least=2) as own, opened_ledger(going_on(root, own), replace(setup, **changes), prepared, []):
        pass
    assert read_run(root).notes_of_numbers == []


def test_other_numbers_that_were_allowed_stand_in_the_manifest_and_the_next_attempt_goes_on_with_them(
    root: Path, setup: SearchSetup, prepared: PreparedData
) -> None:
    two = replace(setup, cpus_per_trial=2)
    with Ownership.claim(root, at_least=2) as own, opened_ledger(going_on(root, own, "--allow-other-numbers"), two, prepared, []):
        manifest = read_run(root).manifest
    assert (manifest["numerics"]["threads"], manifest["allow_other_numbers"]) == (2, True)
    assert manifest["earlier_attempts"][0]["numerics"]["threads"] == 1
    with Ownership.claim(root, at_least=3) as own, opened_ledger(going_on(root, own), two, prepared, []):
        pass
    run = read_run(root)
    assert "allow_other_numbers" not in run.manifest
    assert [attempt.get("allow_other_numbers") for attempt in run.manifest["earlier_attempts"]] == [None, True]
    assert run.notes_of_numbers == [
        "Not all trials were computed alike (--allow-other-numbers): on CPUs with 1 thread a trial in fp32 from attempt 1 on; on"
        " CPUs with 2 threads a trial in fp32 from attempt 2 on."
    ]
    with (
        Ownership.claim(root, at_least=4) as own,
        pytest.raises(InputError, match="threads of a trial: 2 there and 1 here"),
        opened_ledger(going_on(root, own), setup, prepared, []),
    ):
        pass


def test_a_run_of_before_goes_on_without_the_comparison(root: Path, setup: SearchSetup, prepared: PreparedData) -> None:
    manifest = read_run(root).manifest
    Ledger(root).write_manifest({name: value for name, value in manifest.items() if name != "numerics"})
    two = replace(setup, cpus_per_trial=2)
    with Ownership.claim(root, at_least=2) as own, opened_ledger(going_on(root, own), two, prepared, []):
        pass
    run = read_run(root)
    assert run.manifest["numerics"]["threads"] == 2
    assert "numerics" not in run.manifest["earlier_attempts"][0]
    assert run.notes_of_numbers == []


def test_a_new_run_has_no_other_numbers_to_allow(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--allow-other-numbers goes with --resume alone"):
        request_of(tmp_path, "--allow-other-numbers")


def supervised_of(request: SearchRequest, setup: SearchSetup) -> Supervised:
    assert request.ownership is not None
    return Supervised(
        request=request,
        plan=SearchPlan(
            space=request.space,
            strategy=request.strategy,
            setup=replace(setup, run_root=request.root),
            resources=RESOURCES,
        ),
        ledger=Ledger.open(request.root),
        ownership=request.ownership,
        known=[],
        found=None,
        seconds_before=(0.0, 0.0),
    )


@pytest.mark.parametrize(
    ("end", "status", "written"), [(KeyboardInterrupt(), 130, "interrupted"), (SearchHaltedError("Mend it."), 1, "failed")]
)
def test_what_is_a_status_of_the_command_is_an_exception_of_a_guest(
    root: Path, setup: SearchSetup, monkeypatch: pytest.MonkeyPatch, end: BaseException, status: int, written: str
) -> None:
    def searched(*_: object) -> None:
        raise end

    monkeypatch.setattr(search_supervision, "_run", searched)
    with Ownership.claim(root, at_least=2) as own:
        supervised = supervised_of(going_on(root, own), setup)
        assert supervise(supervised, Console(), ClusterWatch(None)) == status
        guest = replace(supervised, request=replace(supervised.request, is_guest=True))
        with pytest.raises(type(end)):
            supervise(guest, Console(), ClusterWatch(None))
    assert read_run(root).manifest["status"] == written


def test_a_guest_whose_ray_has_died_is_told_so_and_its_run_was_interrupted(
    root: Path, setup: SearchSetup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = ClusterWatch(None, is_guest=True)

    def die(*_: object) -> None:
        watch._lose("Ray's node process (raylet)")
        raise RuntimeError("What Ray makes of it.")

    monkeypatch.setattr(search_supervision, "_run", die)
    with Ownership.claim(root, at_least=2) as own, pytest.raises(InputError, match=r"^Ray's node process \(raylet\) has died: "):
        supervise(supervised_of(replace(going_on(root, own), is_guest=True), setup), Console(width=1000), watch)
    assert read_run(root).manifest["status"] == "interrupted"
    assert "To go on: --resume" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failed", "told"),
    [
        (["damaged_cache", "lost_worker", "bug"], "2 trials failed for a cause that may be mended. To try again: --resume"),
        (["unfit_node"], "1 trial failed for a cause that may be mended. To try again: --resume"),
        (["bug", "diverged"], None),
    ],
)
def test_the_end_names_what_failed_for_a_cause_that_may_be_mended(
    root: Path,
    setup: SearchSetup,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failed: list[str],
    told: str | None,
) -> None:
    plan = setup.plan_trial("cnn", {"model": "cnn", "padding": "same"})
    done = TrialRecord(plan=plan, resources=RESOURCES, status=TrialStatus.COMPLETED)
    records = [replace(done, status=TrialStatus.FAILED, failure_kind=FailureKind(kind)) for kind in failed]
    monkeypatch.setattr(search_supervision, "_run", lambda *_: [done, *records])
    with Ownership.claim(root, at_least=2) as own:
        supervised = supervised_of(going_on(root, own), setup)
        assert supervise(supervised, Console(width=1000), ClusterWatch(None)) is None
    printed = capsys.readouterr().out
    assert (told is None) == ("may be mended" not in printed)
    assert told is None or told in printed


def test_a_run_says_how_its_images_became_pixels_and_one_of_an_earlier_version_does_when_it_goes_on(
    root: Path, setup: SearchSetup, prepared: PreparedData
) -> None:
    whites = {"declared": [{"declared": [4095, 65535], "white": 4095}], "used": None}
    pixels = {"train_mean": 0.25, "train_deviation": 0.125, "whites": whites, "mask_whites": whites}
    assert "pixels" not in read_run(root).manifest["data"]
    told = replace(prepared, pixels=pixels)
    with Ownership.claim(root, at_least=2) as own, opened_ledger(going_on(root, own), setup, told, []):
        assert read_run(root).manifest["data"]["pixels"] == pixels
    with opened_ledger(request_of(root.parent, "--name", "new"), setup, told, []) as (ledger, _, _):
        assert read_run(ledger.paths.root).manifest["data"]["pixels"] == pixels
