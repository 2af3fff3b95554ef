"""Output that cannot be written ends no work: a reader that has gone, a stream that is closed or full, foreign letters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORK = """
from tune_lung.process import begin_command
begin_command()
import sys, time
from pathlib import Path
from rich.live import Live
from rich.progress import Progress
from tune_lung.errors import InputError, exit_status
from tune_lung.interrupts import end_process
from tune_lung.screen import Screen, say

def work():
    screen = Screen()
    for number in range(3000):
        say(screen, f"line {number} \\u00fc\\u2026\\u4e2d" + "x" * 100)
    with Progress(console=screen) as bars:
        bars.advance(bars.add_task("bars", total=2))
    with Live("live", console=screen, auto_refresh=False) as live:
        live.update("again", refresh=True)
    print("printed \\u00fc")
    print("complained \\u00fc", file=sys.stderr)
    Path(sys.argv[1]).write_text("all")
    raise InputError("told \\u00fc")

end_process(exit_status(work))
"""
"""Writes far more than a pipe holds, in each of the ways of a search, then a file, then an error."""


def worked(tmp_path: Path, redirection: str, **environment: str) -> int:
    """Let a shell start the work with its streams redirected; return the work's status."""
    script, done = tmp_path / "work.py", tmp_path / "done"
    script.write_text(WORK)
    command = f'{{ "{sys.executable}" "{script}" "{done}"; echo $? > "{tmp_path}/status"; }} {redirection}'
    own = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment}
    subprocess.run(["/bin/bash", "-c", command], timeout=120, check=False, capture_output=True, env=own)
    assert done.read_text() == "all"
    return int((tmp_path / "status").read_text())


@pytest.mark.parametrize(
    "redirection",
    [
        "| head -3",
        "2>&1 | head -3",
        "| true",
        ">&-",
        "2>&-",
        ">&- 2>&-",
        "<&- >&- 2>&-",
        "> /dev/full",
        "> /dev/full 2>&1",
        "> /dev/null",
    ],
)
def test_streams_that_take_nothing_end_no_work_and_change_no_status(tmp_path: Path, redirection: str) -> None:
    assert worked(tmp_path, redirection) == 2


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "cp1252"},
    ],
    ids=str,
)
def test_an_encoding_without_our_letters_ends_no_work(tmp_path: Path, environment: dict[str, str]) -> None:
    assert worked(tmp_path, "", **environment) == 2


def test_what_a_library_prints_never_lands_in_a_file_of_ours(tmp_path: Path) -> None:
    """With stdout closed, the next file that is opened would be it."""
    script, file = tmp_path / "work.py", tmp_path / "file"
    script.write_text(
        "from tune_lung.process import begin_command\nbegin_command()\nimport os\n"
        f"with open({str(file)!r}, 'w') as file:\n    os.write(1, b'printed by a library')\n"
    )
    own = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run(["/bin/bash", "-c", f'"{sys.executable}" "{script}" >&-'], timeout=60, check=True, env=own)
    assert file.read_text() == ""


@pytest.mark.parametrize("command", [["search", "--list-spaces"], ["data", "--help"], ["runs", "list", "."], ["--help"]])
@pytest.mark.parametrize("redirection", [">&-", "> /dev/full", "| true"])
def test_each_command_ends_as_if_it_had_been_read(tmp_path: Path, command: list[str], redirection: str) -> None:
    words = " ".join(command)
    shell = f'{{ "{sys.executable}" -m tune_lung {words}; echo $? > status; }} {redirection}'
    own = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        ["/bin/bash", "-c", shell], timeout=60, check=False, capture_output=True, text=True, env=own, cwd=tmp_path
    )
    assert "Traceback" not in done.stderr
    if command[-1] != "--help":
        assert (tmp_path / "status").read_text() == "0\n"
        assert done.stderr == ""
