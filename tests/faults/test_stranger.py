"""A stranger's run, data, study, weights and working directory, each forged in many ways, through every command.

No byte outside our own folders changes, nothing of theirs is executed, no cluster is joined: `World.assert_unharmed` looks.
"""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tune_lung.data.phantoms import write_phantoms

from tests.faults.forgeries import FORGED_DATA, FORGED_RUNS, FORGED_STUDIES, FORGED_WEIGHTS, forge_orders
from tests.faults.search_process import SAMPLED_SPACE, environment_of, searched
from tests.faults.world import World, commands_for_a_run, forge_manifest
from tests.faults.world import world as world  # a fixture

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("forge", FORGED_RUNS)
def test_a_forged_run_gives_no_orders(world: World, undisturbed: Path, forge: Callable[[Path, World], None]) -> None:
    run = world.theirs / "runs" / "run"
    shutil.copytree(undisturbed, run)
    forge_manifest(shutil.copytree(undisturbed, world.theirs / "runs" / "sound"), name="sound")
    (world.theirs / "evil.pt").write_bytes(world.payload)
    (world.own / "sampled.py").write_text(SAMPLED_SPACE)
    forge(run, world)
    for command in commands_for_a_run(run, world):
        printed = world.run(*command)
        if command[:2] == ("runs", "list"):
            assert "sound" in printed  # one bad run hides no other
        world.assert_unharmed()


def test_a_run_with_forged_orders_goes_on_as_its_own_search(world: World, undisturbed: Path) -> None:
    """To its end, with a real Ray: only what defines the search is taken from it."""
    run = world.theirs / "runs" / "run"
    shutil.copytree(undisturbed, run)
    forge_orders(run, world)
    environment = {
        "XDG_CACHE_HOME": str(world.own / "cache"),
        "XDG_STATE_HOME": str(world.own / "state"),
        "HOME": str(world.home),
    }
    before = set(path.name for path in world.precious.rglob("*"))
    searched("--resume", str(run), "--max-epochs", "5", "--no-report", **environment)
    assert set(path.name for path in world.precious.rglob("*")) == before
    assert pd.read_parquet(run / "trials")["epochs_run"].max() == 5


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantoms(folder, seed=0, num_images=80)
    return folder


@pytest.mark.parametrize("forge", FORGED_DATA)
def test_a_forged_data_folder_does_no_harm(world: World, phantoms: Path, forge: Callable[[Path, World], None]) -> None:
    data = world.theirs / "data"
    shutil.copytree(phantoms, data)
    forge(data, world)
    before = sorted(data.rglob("*"))
    size = ("--image-size", "32")
    world.run("data", "scan", data)
    world.run("data", "audit", data, *size)
    world.run("data", "prepare", data, *size)
    world.run("search", "--data", data, *size, "--weights", "random", "--out", world.own / "runs")
    world.run("search", "--data", data, *size, "--weights", "random", "--out", world.own / "runs", "--dry-run")
    assert sorted(data.rglob("*")) == before


def study_of(world: World, undisturbed: Path) -> Path:
    """A run of ours as an Optuna file, which a stranger goes on with."""
    run, study = world.own / "run", world.theirs / "study.db"
    shutil.copytree(undisturbed, run)
    world.run("runs", "export-optuna", run, study)
    return study


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", FORGED_STUDIES)
def test_a_forged_study_does_no_harm(world: World, undisturbed: Path, kind: str) -> None:
    study = study_of(world, undisturbed)
    FORGED_STUDIES[kind](study, world)
    world.run("runs", "import", study, "--out", world.own / "imported")
    world.run("runs", "import", study, "--out", world.own / "imported")
    world.run("runs", "list", world.own)
    if (world.own / "imported").is_dir():
        world.run("runs", "list", world.own / "imported")
        for run in (world.own / "imported").iterdir():
            world.run("report", run)


@pytest.mark.parametrize("name", [*FORGED_WEIGHTS, "resnet18-pipe.pth", "resnet18-device.pth"])
def test_forged_weights_do_no_harm(world: World, name: str) -> None:
    path = world.theirs / name
    if name in FORGED_WEIGHTS:
        path.write_bytes(FORGED_WEIGHTS[name](world))
    elif "pipe" in name:
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    for weights in (path, world.theirs):
        options = ("--set", "model=resnet18", "--image-size", "32", "--limit", "80", "--out", world.own / "runs")
        printed = world.run("search", "--space", "freeze_grid", "--weights", weights, *options)
        assert "Ray would start" not in printed
    assert not (world.own / "runs").exists()


MODULES = (
    "rich",
    "numpy",
    "torch",
    "ray",
    "optuna",
    "pandas",
    "PIL",
    "tune_lung",
    "sitecustomize",
    "usercustomize",
    "six",
    "json",
)
"""Modules whose like a stranger puts into the folder that somebody works in."""


@pytest.mark.parametrize("command", ["search", "data", "report", "runs"])
def test_a_forged_working_directory_is_not_imported_from(world: World, undisturbed: Path, command: str) -> None:
    theirs = world.theirs / "folder"
    theirs.mkdir()
    for name in MODULES:
        (theirs / f"{name}.py").write_text(world.code)
    (theirs / "matplotlibrc").write_text("backend: module://rich\n")
    shutil.copytree(undisturbed, theirs / "run")
    arguments = {
        "search": ["--set", "model=cnn", "--set", "padding=same", "--image-size", "32", "--limit", "80", "--max-epochs", "1"],
        "data": ["phantoms", "drawn", "--images", "40"],
        "report": ["run"],
        "runs": ["list", "."],
    }[command]
    script = Path(sys.executable).with_name("tune-lung")
    environment = {name: value for name, value in (os.environ | environment_of(None)).items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(script), command, *arguments], cwd=theirs, env=environment, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_proofs_would_be_seen(world: World) -> None:
    """The payloads work: it is the readers that do not let them."""
    pickle.loads(world.payload)  # noqa: S301 - our own
    exec(world.code)  # noqa: S102 - our own
    assert {path.name for path in world.proof.iterdir()} == {"unpickled", "ran"}
    for path in world.proof.iterdir():
        path.unlink()
