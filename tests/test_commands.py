import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import tune_lung
from tune_lung.__main__ import COMMANDS, main

from tests.console_script import write_console_script


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_help_under_the_name_that_it_was_called_by(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: tune-lung {name} ")
    assert "python -m" not in printed
    with pytest.raises(SystemExit, match="0"):
        import_module(COMMANDS[name].module).main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m tune_lung.{name} ")


def test_the_help_names_every_command_and_what_it_does(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed and command.text in printed for name, command in COMMANDS.items())


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"tune_lung {tune_lung.__version__}\n"


def test_a_wrong_word_is_answered_with_the_nearest_one(capsys):
    assert main(["serch", "--space", "freeze_grid"]) == 2
    assert capsys.readouterr().err == (
        "error: There is no command 'serch'. Did you mean 'search'? Allowed: data, report, runs, search.\n"
    )


def test_without_a_word_one_is_asked_for(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "COMMAND" in capsys.readouterr().err


def test_a_commands_exit_status_is_passed_on(tmp_path, capsys):
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert main(["runs", "list", str(tmp_path / "none")]) == 2
    assert "There is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["script", "module"])
def test_both_ways_to_start_it_lead_to_the_same(way, tmp_path):
    start = [write_console_script(tmp_path)] if way == "script" else [sys.executable, "-m", "tune_lung"]
    done = subprocess.run([*start, "runs", "list", tmp_path], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == f"There is no run in {tmp_path}.\n"
    wrong = subprocess.run([*start, "runs", "lst"], capture_output=True, text=True, timeout=120, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith(f"usage: {'tune-lung' if way == 'script' else 'python -m tune_lung'} runs ")


def test_nothing_is_loaded_for_a_command_that_was_not_asked_for():
    code = "import sys; from tune_lung.__main__ import main; main(['serch']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert not {command.module for command in COMMANDS.values()} & set(done.stdout.split())


def test_the_package_adds_one_name_to_the_users_commands():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert list(project["scripts"]) == ["tune-lung"]
