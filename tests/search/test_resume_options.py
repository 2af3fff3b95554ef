"""What a resume takes from a run, from the user's memory of it, and from the command line: a run gives no orders."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tune_lung.errors import InputError
from tune_lung.results.layout import RunPaths
from tune_lung.results.ledger import Ledger, read_manifest
from tune_lung.search.__main__ import main
from tune_lung.search.command_line import read_command_line
from tune_lung.search.options import OPTIONS, Kept, SearchOptions, options_kept
from tune_lung.search.remembered import _memory_of, remember, remembered
from tune_lung.search.resume_options import ResumedSearch, resumed_search, settings_of

from tests.mutations import as_text, mutated
from tests.tuned_run import write_tuned_run

SPACE_FILE = "import pathlib; pathlib.Path({proof!r}).touch()\nraise SystemExit(0)\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tuned_run(tmp_path_factory.mktemp("written") / "run", samples=2, still_running=2)


@pytest.fixture
def root(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, and a user who remembers nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Path(shutil.copytree(written, tmp_path / "runs" / "run"))


def forge(root: Path, *removed: str, **said: Any) -> dict[str, Any]:
    """Let a run's manifest say something else."""
    manifest = {name: value for name, value in read_manifest(RunPaths(root)).items() if name not in removed}
    Ledger(root).write_manifest(manifest | said)
    return manifest | said


def resumed(root: Path, *options: str) -> ResumedSearch:
    return resumed_search(root, read_command_line(["--resume", str(root), *options]))


def options_of(root: Path, *options: str) -> dict[str, Any]:
    return vars(resumed(root, *options).options)


ORDERS = [
    *("--cache", "stolen", "--cache-size", "1KB", "--data", "data", "--weights", "weights.pth", "--follow-links"),
    *("--address", "evil:6379", "--tracker", "wandb", "--cpus-per-trial", "64", "--gpus-per-trial", "8"),
    *("--max-concurrent", "999", "--hang-timeout", "999d", "--profile", "--no-report", "--out", "elsewhere", "--name", "x"),
    *("--warm-start", "other", "--dry-run", "--list-spaces", "--resume", "other"),
]


@pytest.mark.parametrize("where", ["now", "first"])
def test_nothing_that_only_the_user_may_say_is_taken_from_a_manifest(root: Path, where: str) -> None:
    if where == "now":
        forge(root, "settings", command=ORDERS)
    else:
        before = forge(root, "settings", command=ORDERS)
        attempt = {name: before[name] for name in ("command", "attempt", "versions", "git_commit", "started_utc")}
        forge(root, earlier_attempts=[{**attempt, "ended_utc": None, "status": "interrupted"}])
    options, defaults = options_of(root), vars(SearchOptions())
    user_only = [option.name for option in OPTIONS if not option.may_a_manifest_say_it and option.name != "resume"]
    assert {name: options[name] for name in user_only} == {name: defaults[name] for name in user_only}


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["-h"],
        ["--no-such-option"],
        ["--limit"],
        ["--limit", "many"],
        ["--limit", "-1"],
        ["--seed", "x", "positional", "--"],
        [1, None, {"--data": "x"}, ["--help"]],
        ["--limit", "9" * 30],
        ["\ud800", "\x00"],
    ],
)
def test_a_forged_command_neither_ends_the_program_nor_prints(
    root: Path, command: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    forge(root, "settings", command=command)
    assert options_of(root)["limit"] is None
    assert capsys.readouterr() == ("", "")


def test_a_forged_space_file_is_not_opened(root: Path, tmp_path: Path) -> None:
    proof, space = tmp_path / "proof", tmp_path / "space.py"
    space.write_text(SPACE_FILE.format(proof=str(proof)))
    forge(root, "settings", command=["--space", str(space), "--set", "batch_size=8"])
    for options in ((), ("--set", "learning_rate_schedule=constant"), ("--patience", "20"), ("--precision", "fp32")):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            try:
                resumed(root, *options)
            except InputError as error:
                assert "--resume: " in str(error)  # noqa: PT017 - either is right
    assert not proof.exists()


@pytest.mark.parametrize(
    ("command", "settings_then"),
    [
        (["--limit", "80"], (80, False)),
        (["--limit=80", "--strict-data"], (80, True)),
        (["--lim", "80", "--strict"], (80, True)),
        (["--limit", "60", "--limit", "80"], (80, False)),
        (["--list-spaces", "3", "--space", "limit"], (None, False)),
    ],
)
def test_an_older_manifests_settings_are_read_from_its_first_command(root: Path, command: list[str], settings_then) -> None:
    manifest = forge(root, "settings", "run_id", command=command)
    assert tuple(settings_of(manifest).values()) == (*settings_then, "leaders")
    then = [*(["--limit", str(settings_then[0])] if settings_then[0] else [])]
    assert options_of(root, *then)["limit"] == settings_then[0]
    with pytest.raises(InputError, match=r"--limit is (80|None) in 'run' and 7 here"):
        resumed(root, "--limit", "7")


def said_by_the_user(tmp_path: Path, *more: str) -> list[str]:
    for name in ("images", "cache"):
        (tmp_path / name).mkdir(exist_ok=True)
    places = ["--data", str(tmp_path / "images"), "--cache", str(tmp_path / "cache"), "--weights", "random"]
    return [*places, "--max-concurrent", "1", "--tracker", "tensorboard", "--follow-links", "--cpus-per-trial", "2", *more]


def test_what_the_user_said_is_remembered_and_what_is_said_now_counts_more(root: Path, tmp_path: Path) -> None:
    begun = read_command_line(said_by_the_user(tmp_path, "--space", "everything", "--seed", "9")).options
    remember(root, read_manifest(RunPaths(root)), begun)
    options = options_of(root)
    assert {option.name: options[option.name] for option in options_kept(Kept.MEMORY)} == {
        option.name: getattr(begun, option.name) for option in options_kept(Kept.MEMORY)
    }
    assert options["space"] != "everything"
    now = options_of(root, "--max-concurrent", "2", "--tracker", "mlflow", "--tracker", "tensorboard")
    assert (now["max_concurrent"], now["tracker"], now["cpus_per_trial"]) == (2, ("tensorboard", "mlflow"), 2.0)


def test_paths_are_remembered_in_full(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    begun = read_command_line(["--data", "images", "--weights", "weights"]).options
    remember(root, read_manifest(RunPaths(root)), begun)
    monkeypatch.chdir(root)
    assert (options_of(root)["data"], options_of(root)["weights"]) == (tmp_path / "images", str(tmp_path / "weights"))


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": "0" * 32},
        {"started_utc": "2020-01-01T00:00:00+00:00"},
        {"seed": 4},
        {
            "data": {
                "fingerprint": "e" * 64,
                "synthetic": True,
                "classes": ["a", "b"],
                "counts": dict.fromkeys(["train", "validation", "test"], 4),
            }
        },
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_run_in_the_place_of_ones_own_is_given_nothing(root: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    remember(root, read_manifest(RunPaths(root)), read_command_line(said_by_the_user(tmp_path)).options)
    assert options_of(root)["cache"] == tmp_path / "cache"
    forge(root, **changes)
    assert (options_of(root)["cache"], options_of(root)["data"], options_of(root)["tracker"]) == (None, None, ())


def test_a_copy_in_another_place_is_given_nothing(root: Path, tmp_path: Path) -> None:
    remember(root, read_manifest(RunPaths(root)), read_command_line(said_by_the_user(tmp_path)).options)
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    assert options_of(copy)["data"] is None


def test_a_memory_lasts_through_the_attempts_of_a_run(root: Path, tmp_path: Path) -> None:
    manifest = read_manifest(RunPaths(root))
    remember(root, manifest, read_command_line(said_by_the_user(tmp_path)).options)
    attempt = {
        name: manifest[name] for name in ("command", "attempt", "versions", "git_commit", "started_utc", "ended_utc", "status")
    }
    forge(root, earlier_attempts=[attempt], attempt=2, started_utc="2030-01-01T00:00:00+00:00")
    assert options_of(root)["data"] == tmp_path / "images"


MEMORY = {
    "run": "0",
    "options": {"data": "/d", "cache_size": "1GB", "tracker": ["mlflow"], "max_concurrent": 2, "follow_links": True},
}


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(memory=mutated(MEMORY) | st.just(["--space", "evil.py", "--cache", "/x"]))
def test_a_memory_of_any_shape_is_read_or_passed_over(written: Path, memory: Any) -> None:
    manifest = read_manifest(RunPaths(written))
    remember(written, manifest, SearchOptions())
    path = _memory_of(written)
    own = json.loads(path.read_text())["run"]
    if isinstance(memory, dict) and memory.get("run") == "0":
        memory = {**memory, "run": own}
    path.write_text(as_text(memory))
    try:
        found = remembered(written, manifest)
        kinds = {"data": Path, "cache_size": int, "tracker": tuple, "max_concurrent": int, "follow_links": bool}
        assert all(isinstance(value, kinds.get(name, object)) for name, value in found.items())
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"data": {"synthetic": False}}, r"where the images of 'run' lie is not known here\. Give them with --data\."),
        ({"weights": "file"}, r"where the weights of 'run' lie \(w\.pth\) is not known here\. Give them with --weights\."),
    ],
)
def test_where_nobody_has_said_where_images_and_weights_lie_the_option_is_named(root: Path, said: dict, message: str) -> None:
    manifest = read_manifest(RunPaths(root))
    if "data" in said:
        forge(root, data=manifest["data"] | said["data"], command=["--data", "somewhere"])
    else:
        forge(root, weights={"resnet18": {"kind": "file", "name": "w.pth", "sha256": "0"}}, command=["--weights", "w.pth"])
    with pytest.raises(InputError, match=message):
        resumed(root)
    assert options_of(root, "--data", "/images", "--weights", "/w.pth")["weights"] == "/w.pth"


@pytest.mark.parametrize("kind", ["imagenet", "random"])
def test_weights_that_are_nobodys_file_are_taken_from_the_manifest(root: Path, kind: str) -> None:
    forge(root, weights={"resnet18": {"kind": kind, "name": "w", "sha256": None}})
    assert options_of(root)["weights"] == kind


def space_of(*arms: Any, **said: Any) -> dict[str, Any]:
    return {"name": "s", "protocol": "strict", "study": "cell", "first_points": [], "arms": list(arms), **said}


def strategy_of(**said: Any) -> dict[str, Any]:
    return {
        "sampler": "tpe",
        "scheduler": "asha",
        "samples": 2,
        "repeats": 1,
        "grace_epochs": 3,
        "reduction_factor": 2,
        "objectives": [{"column": "selection_score", "direction": "max"}],
        "time_budget_seconds": None,
        "sampler_options": {},
        **said,
    }


CNN = {"model": "cnn", "learning_rate": {"log_uniform": {"low": 1e-4, "high": 1e-2}}}
HUGE_GRID = {f"{name}": {"grid": list(range(2, 1002))} for name in ("batch_size", "max_epochs", "patience")}
HOSTILE = {
    "10^9 cells": {"space": space_of(CNN | HUGE_GRID)},
    "10^5 arms": {"space": space_of(*[CNN] * 100_000)},
    "10^5 choices": {"space": space_of(CNN | {"batch_size": {"choice": list(range(2, 100_002))}})},
    "10^5 first points": {"space": space_of(CNN, first_points=[{"learning_rate": 0.001}] * 100_001)},
    "a range of 10^18 numbers": {"space": space_of(CNN | {"batch_size": {"int_range": {"low": 2, "high": 10**18, "step": 1}}})},
    "2^31 points of a grid": {
        "space": space_of({"model": "cnn", "batch_size": {"int_range": {"low": 2, "high": 2**31 - 1, "step": 1}}}),
        "strategy": strategy_of(sampler="exhaustive", samples=None, scheduler="none"),
    },
    "huge int": {"space": space_of(CNN | {"batch_size": 2**62})},
    "deep": {"space": space_of(CNN | {"channels": json.loads("[" * 50 + "]" * 50)})},
    "deep kernel": {"space": space_of({"model": "cnn", "channels": [8], "kernel_sizes": [10**6 + 1]})},
    "wide network": {"space": space_of({"model": "cnn", "channels": [2**31 - 1] * 2, "kernel_sizes": [3, 3]})},
    "many stages": {"space": space_of({"model": "cnn", "channels": [8] * 500, "kernel_sizes": [1] * 500, "padding": "same"})},
    "a text for a number": {"space": space_of(CNN | {"batch_size": "16"})},
    "a number for a text": {"space": space_of(CNN | {"optimizer": 3})},
    "an axis of no kind": {"space": space_of(CNN | {"batch_size": {"exec": ["x"]}})},
    "an axis of two kinds": {"space": space_of(CNN | {"batch_size": {"grid": [2], "choice": [3, 4]}})},
    "an axis without values": {"space": space_of(CNN | {"batch_size": {"grid": []}})},
    "a field of no trial": {"space": space_of(CNN | {"__class__": "x", "self": 1})},
    "arms that are a text": {"space": space_of(arms="cnn")},
    "arms that are numbers": {"space": space_of(1, 2)},
    "no arm": {"space": space_of()},
    "an unknown model": {"space": space_of({"model": "x" * 10**6})},
    "weights that are a path": {"space": space_of({"model": "resnet18", "weights": "../../w.pth"})},
    "a name that is a list": {"space": space_of(CNN, name=["s"])},
    "an unknown protocol": {"space": space_of(CNN, protocol="other")},
    "an unknown sampler": {"strategy": strategy_of(sampler="cmaes")},
    "a sampler that is code": {"strategy": strategy_of(sampler={"module": "os", "call": "system"})},
    "10^9 samples": {"strategy": strategy_of(samples=10**9)},
    "10^30 samples": {"strategy": strategy_of(samples=2**62)},
    "no samples": {"strategy": strategy_of(samples=None)},
    "negative samples": {"strategy": strategy_of(samples=-1)},
    "true samples": {"strategy": strategy_of(samples=True)},
    "samples in words": {"strategy": strategy_of(samples="2")},
    "10^6 repeats": {"strategy": strategy_of(repeats=10**6, scheduler="none")},
    "a negative budget": {"strategy": strategy_of(time_budget_seconds=-1.0)},
    "a budget in words": {"strategy": strategy_of(time_budget_seconds="8h")},
    "no objective": {"strategy": strategy_of(objectives=[])},
    "the sealed test": {"strategy": strategy_of(objectives=[{"column": "test_macro_recall", "direction": "max"}])},
    "an objective that is none": {"strategy": strategy_of(objectives=[{"column": "cell", "direction": "max"}])},
    "no direction": {"strategy": strategy_of(objectives=[{"column": "selection_score", "direction": "up"}])},
    "a strategy of nothing": {"strategy": {}},
    "an image of 0 pixels": {"image_size": 0},
    "an image of 2^30 pixels": {"image_size": 2**30},
    "no image size": {"image_size": None},
    "the sealed test selects": {"select_by": "test_macro_recall"},
    "a split that is too large": {"seed": 2**62, "strategy": strategy_of(reduction_factor=1)},
    "imported": {"imported_from": "Optuna study 'x'"},
    "10^9 attempts": {"attempt": 10**9},
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_search_that_nobody_could_run_is_one_line_within_a_second(
    root: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    forge(root, **HOSTILE[kind])
    started = time.process_time()
    assert main(["--resume", str(root)]) == 2
    assert time.process_time() - started < 1.5  # of the processor's time: 0.4 s on an idle machine for the largest
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 1500


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**6, "cannot be read"),
        ('{"schema_version": 2, "name": ' + "[" * 70 + "]" * 70 + "}", "cannot be read"),
        ('{"schema_version": 2, "more": ' + "[{}]," * 10**6 + "1}", "cannot be read"),
        ('{"schema_version": 2, "seed": ' + "9" * 5000 + "}", "cannot be read"),
        ('{"schema_version": 2, "seed": 1e999}', "cannot be read"),
        ('{"schema_version": "2"}', "says what no run says"),
        ('{"schema_version": true}', "says what no run says"),
        ('{"schema_version": 99}', "was written by a newer tune_lung"),
    ],
)
def test_a_manifest_that_is_none_is_one_line(root: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "run.json").write_text(text)
    (root / ".run.json.copy").write_text(text)
    assert main(["--resume", str(root)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_manifest_nested_too_deep_is_passed_over_for_its_good_copy(root: Path) -> None:
    (root / "run.json").write_text('{"schema_version": 2, "name": ' + "[" * 900 + "]" * 900 + "}")
    assert resumed(root).manifest["name"] == "run"


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=st.data(), part=st.sampled_from(["space", "strategy", "all"]))
def test_a_manifest_of_any_shape_goes_on_or_is_refused_in_one_line(written: Path, tmp_path_factory, data, part: str) -> None:
    manifest = read_manifest(RunPaths(written))
    drawn = data.draw(mutated(manifest if part == "all" else manifest[part]))
    root = tmp_path_factory.getbasetemp() / "mutated"
    root.mkdir(exist_ok=True)
    (root / "run.json").write_text(as_text(drawn if part == "all" else {**manifest, part: drawn}))
    try:
        found = resumed(root)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either is right
        return
    assert found.strategy.num_trials(found.space) <= 100_000
    assert not [
        option.name
        for option in options_kept(Kept.MEMORY)
        if getattr(found.options, option.name) not in (None, (), False, 20 * 10**9, 1800.0, "random", "imagenet")
    ]


NUMERICS = {"device": "cpu", "threads": 1, "precision": "fp32"}


@pytest.mark.parametrize(
    ("numerics", "options", "told"),
    [
        (NUMERICS, ["--cpus-per-trial", "2"], "threads of a trial: 1 there and 2 here"),
        (NUMERICS | {"threads": 4}, [], "threads of a trial: 4 there and 1 here"),
        (NUMERICS | {"device": "cuda"}, ["--gpus-per-trial", "0"], "device: GPUs there and CPUs here"),
        (NUMERICS, ["--gpus-per-trial", "0.5"], "device: CPUs there and GPUs here"),
    ],
)
def test_options_that_give_other_numbers_are_refused_before_any_work(
    root: Path, numerics: dict[str, Any], options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    forge(root, numerics=numerics)
    # Whoever goes further ends with a word on the GPUs or the images, which are not there.
    nowhere = ["--data", str(root.parent / "nowhere"), "--weights", "random"]
    assert main(["--resume", str(root), *nowhere, *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert told in said
    assert "--allow-other-numbers" in said
    assert main(["--resume", str(root), *nowhere, *options, "--allow-other-numbers"]) == 2
    assert re.search("nowhere|more than this machine has", capsys.readouterr().err)


@pytest.mark.parametrize("numerics", [[], {"device": "tpu"}, NUMERICS | {"threads": 0}, NUMERICS | {"precision": "fp8"}])
def test_numerics_that_no_search_writes_are_no_manifest(root: Path, numerics: Any, capsys: pytest.CaptureFixture[str]) -> None:
    forge(root, numerics=numerics)
    assert main(["--resume", str(root)]) == 2
    assert "run.json" in capsys.readouterr().err
