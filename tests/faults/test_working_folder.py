"""Commands that are started in a stranger's folder import, load and read nothing of it, nor do Ray's workers."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tune_lung.data.phantoms import write_phantoms

from tests.console_script import write_console_script
from tests.fabricated_run import write_fabricated_run
from tests.faults.hostile_folder import HostileFolder, loaded_by_python_itself

pytestmark = pytest.mark.faults

SEARCH = ("--set", "model=cnn", "--set", "padding=same", "--set", "batch_size=16", "--image-size", "32", "--limit", "80")


def run_there(folder: HostileFolder, command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder, in which no byte may change, and of which nothing may be imported or read."""
    before = folder.content()
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(command, cwd=folder.path, capture_output=True, text=True, check=False, timeout=170, env=own)
    assert folder.imported() == [], done.stderr
    assert folder.content() == before
    assert "working folder" not in done.stdout + done.stderr  # matplotlib tells of settings that it does not know
    return done


def test_a_search_and_its_workers_import_nothing_of_it(tmp_path: Path) -> None:
    folder, script = HostileFolder.make(tmp_path), write_console_script(tmp_path)
    done = run_there(
        folder,
        [script, "search", *SEARCH, "--max-epochs", "1", "--out", tmp_path / "runs", "--name", "run"],
        LD_DEBUG="libs",  # the system's loader tells what it loads, of every process
        LD_DEBUG_OUTPUT=str(tmp_path / "loader"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[1/1] cnn: recall " in done.stdout, done.stdout
    lines = [line for log in tmp_path.glob("loader.*") for line in log.read_text().splitlines()]
    libraries = [line.partition("calling init: ")[2] for line in lines if "calling init: " in line]
    assert libraries
    assert {library for library in libraries if not library.startswith("/")} == set()
    assert (tmp_path / "runs" / "run" / "figures" / "figure4.png").exists()


COMMANDS = {
    "search": ["--list-spaces"],
    "data": ["scan", "{data}"],
    "report": ["{run}", "--out", "{out}"],
    "runs": ["list", "{run}/.."],
    "runs export": ["export-optuna", "{run}", "{out}/study.db"],
    "runs import": ["import", "{out}"],
}


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """What the commands look at, outside of the folder."""
    write_phantoms(tmp_path / "data", seed=0, num_images=16)
    write_fabricated_run(tmp_path / "runs" / "run")
    (tmp_path / "out").mkdir()
    return {"data": tmp_path / "data", "run": tmp_path / "runs" / "run", "out": tmp_path / "out"}


def arguments_of(command: str, places: dict[str, Path]) -> list[str]:
    return [argument.format(**places) for argument in COMMANDS[command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_imports_anything_of_it(command: str, tmp_path: Path, places: dict[str, Path]) -> None:
    folder, name = HostileFolder.make(tmp_path), command.partition(" ")[0]
    done = run_there(folder, [write_console_script(tmp_path), name, *arguments_of(command, places)])
    assert done.returncode == (2 if command == "runs import" else 0), done.stderr  # there is nothing to import
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "module", ["tune_lung.search", "tune_lung.data", "tune_lung.report", "tune_lung.runs", "tune_lung report"]
)
def test_python_imports_nothing_of_it_but_what_it_needs_to_begin(module: str, tmp_path: Path, places: dict[str, Path]) -> None:
    folder = HostileFolder.make(tmp_path, but=loaded_by_python_itself(tmp_path) | {"tune_lung"})
    command = re.split("[. ]", module)[1]
    done = run_there(folder, [sys.executable, "-m", *module.split(), *arguments_of(command, places)])
    assert done.returncode == 0, done.stderr
