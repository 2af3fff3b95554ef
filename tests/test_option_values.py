"""Every option of every command is read in one way, and what is impossible is refused before any work."""

import argparse
import os
import socket
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tune_lung.__main__ import COMMANDS, main
from tune_lung.errors import InputError
from tune_lung.option_values import Place, ReadOption
from tune_lung.search import steps as search_steps
from tune_lung.search.command_line import read_command_line, search_parser
from tune_lung.search.interpretation import notes_on_scheduler, space_of, strategy_of
from tune_lung.search.options import OPTION_BY_NAME
from tune_lung.tuning import cluster

FRONT_OF_TIME = "val_macro_recall:max,epoch_seconds_mean:min"
OWN_CHECKS = {"set", "name"}
"""Options whose texts are checked where it is known what they name."""


def actions_of(command: str) -> dict[str, argparse.Action]:
    """List a command's options and words, those of its subcommands as `scan directory`."""
    parser = search_parser(None) if command == "search" else import_module(COMMANDS[command].module)._parser(command)
    found = {action.dest: action for action in parser._actions}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {f"{name} {own.dest}": own for name, sub in action.choices.items() for own in sub._actions}
    return {name: action for name, action in found.items() if action.nargs != 0 and "==" not in name}


ALL = {f"{command} {name}": action for command in COMMANDS for name, action in actions_of(command).items()}
PLACES = [name for name, action in ALL.items() if getattr(action, "kind", None) is Place]


@pytest.mark.parametrize("name", ALL)
def test_every_value_is_read_by_its_kind_or_is_one_of_a_few(name: str) -> None:
    action, own_name = ALL[name], name.rpartition(" ")[2]
    assert isinstance(action, ReadOption) or action.choices or own_name in OWN_CHECKS
    if isinstance(action, ReadOption) and own_name in OPTION_BY_NAME:
        assert action.kind == OPTION_BY_NAME[own_name].kind  # the same in all commands


@pytest.mark.parametrize("name", PLACES)
def test_the_home_folder_is_written_out_in_every_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    action, options = ALL[name], argparse.Namespace()
    words: Any = ["~/a", "~"] if action.nargs == "+" else "~/a"
    action(argparse.ArgumentParser(), options, words, None)
    expected: Any = [Path("/home/me/a"), Path("/home/me")] if action.nargs == "+" else Path("/home/me/a")
    assert getattr(options, action.dest) == expected


def test_there_are_paths_in_every_command() -> None:
    assert {name.partition(" ")[0] for name in PLACES} == set(COMMANDS)


@pytest.mark.parametrize(("option", "name"), [("--weights", "weights"), ("--space", "space")])
def test_the_home_folder_is_written_out_where_a_name_may_stand_too(
    option: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert getattr(search_parser(None).parse_args([f"{option}=~/a.py"]), name) == "/home/me/a.py"
    assert getattr(search_parser(None).parse_args([option, "random"]), name) == "random"


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--cache-size", "5GB"], 5 * 10**9),
        (["--cache-size", "5g"], 5 * 10**9),
        (["--cache-size", "1.5 MB"], 1_500_000),
        (["--cache-size", "7B"], 7),
        (["--cache-size", "0"], 0),
        (["--cache-size", "0.4B"], 1),  # none is said by 0 alone
        (["--time-budget", "1.5h"], 5400.0),
        (["--hang-timeout", "90s"], 90.0),
        (["--hang-timeout", "3S"], 3.0),
        (["--limit", "5"], 5),
        (["--gpus-per-trial", "0.5"], 0.5),
        (["--seed", "18446744073709551615"], 2**64 - 1),
    ],
)
def test_a_value_has_its_unit_and_type(words: list[str], value: object) -> None:
    found = vars(search_parser(None).parse_args(words))[words[0].removeprefix("--").replace("-", "_")]
    assert (found, type(found)) == (value, type(value))


NOT_NUMBERS = ("", " ", "x", "5.5", "1e3", "0x10", "9" * 5000)
BAD = {
    "--cache-size": ("5", "-1", "-5GB", "nan", "inf", "", "GB", "5XB", "5 5GB", "9" * 400 + "GB", "10000000TB", "1e3GB"),
    "--time-budget": ("0s", "0.0h", "-5m", "5", "nan", "inf", "infs", "", "9" * 400 + "d", "1001d", "1e3s"),
    "--hang-timeout": ("0s", "2s", "2.9s", "-1s", "30", "", "nan", "inf", "99999d"),
    "--limit": ("0", "-1", *NOT_NUMBERS),
    "--max-concurrent": ("0", "-1", *NOT_NUMBERS),
    "--cpus-per-trial": ("0", "0.05", "-1", "nan", "inf", "1e9", "", "x"),
    "--gpus-per-trial": ("-1", "1.5", "0.00001", "nan", "inf", "", "x"),
    "--seed": NOT_NUMBERS,
    "--samples": NOT_NUMBERS,
    "--image-size": NOT_NUMBERS,
    **dict.fromkeys(("--data", "--cache", "--out", "--warm-start", "--resume"), ("", " ", "a\0b", "~no-such-user-here/a")),
    **dict.fromkeys(("--weights", "--space"), ("", " ", "~no-such-user-here/a")),
    **dict.fromkeys(("--address", "--objective", "--select-by"), ("", " ")),
}


@pytest.mark.parametrize(("option", "text"), [(option, text) for option, texts in BAD.items() for text in texts])
def test_what_no_search_can_have_is_refused_as_it_is_read(option: str, text: str) -> None:
    with pytest.raises(InputError, match=f"^{option} ") as refused:
        search_parser(None).parse_args([f"{option}={text}"])
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "--hang-timeout", "0s"], "error: --hang-timeout must be at least 3 s, not 0s.\n"),
        (["search", "--time-budget", "0s"], "error: --time-budget must be above 0 s, not 0s.\n"),
        (["search", "--cache-size", "5"], "error: --cache-size 5: write a number and a unit, such as 5GB or 500MB, or 0.\n"),
        (
            ["data", "prepare", ".", "--cache-size", "5"],
            "error: --cache-size 5: write a number and a unit, such as 5GB or 500MB, or 0.\n",
        ),
        (["data", "prepare", ".", "--cache-size", "nan"], "error: --cache-size nan: write a number and a unit"),
        (["data", "audit", ".", "--limit", "0"], "error: --limit must be at least 1, not 0.\n"),
        (["data", "audit", ".", "--seed", "x"], "error: --seed must be a whole number, not x.\n"),
        (["data", "phantoms", "new", "--images", "0"], "error: --images must be at least 1, not 0.\n"),
        (["data", "scan", ""], "error: DIR '': write the path of a file or folder.\n"),
        (["report", "a", ""], "error: RUN '': write the path of a file or folder.\n"),
        (["report", "a", "--out", ""], "error: --out '': write the path of a file or folder.\n"),
        (["runs", "list", ""], "error: DIR '': write the path of a file or folder.\n"),
        (["runs", "import", "a", "--study", ""], "error: --study '': write something, or leave the option out.\n"),
        (["search", "--set", "batch_size=8", "--set", "batch_size=16"], "error: --set batch_size is given twice"),
        (["search", "--address", "ray://head:10001"], "error: --address ray://head:10001: write the HOST:PORT"),
        (["search", "--address", "local"], "error: --address local: write the HOST:PORT"),
        (["search", "--address", "nonsense"], "error: No Ray cluster answers at --address nonsense: Invalid address format"),
        (["search", "--cpus-per-trial", "5000"], "error: --cpus-per-trial 5000 is more than this machine has ("),
        (["search", "--gpus-per-trial", "500"], "error: --gpus-per-trial 500 is more than this machine has ("),
    ],
)
def test_a_refused_value_is_one_line_and_status_2_and_nothing_is_decoded(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("Images are decoded.")

    monkeypatch.setattr(search_steps, "_prepare", decode)
    monkeypatch.setattr("tune_lung.data.__main__.scan", decode)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_audit_is_refused_before_its_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tune_lung.data.__main__.scan", lambda *_, **__: pytest.fail("Images are read."))
    assert main(["data", "audit", str(tmp_path), "--image-size", "4"]) == 2
    assert capsys.readouterr().err == "error: image_size must be 16 to 1024 pixels, not 4.\n"


def strategy_said_by(*words: str) -> list[str]:
    given = read_command_line(words)
    space = space_of(given)
    return notes_on_scheduler(given.options, space, strategy_of(given.options, space))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--space", "freeze_tuned", "--max-epochs", "1", "--objective", FRONT_OF_TIME),
            r"--objective epoch_seconds_mean: trials of cell 'cnn' run one epoch, and the first is left out",
        ),
        (("--max-epochs", "1", "--objective", FRONT_OF_TIME), "--objective epoch_seconds_mean: trials of cell"),
        (
            ("--space", "freeze_tuned", "--max-epochs", "3", "--grace-epochs", "3"),
            r"--grace-epochs 3: trials run 3 epochs at most \(--max-epochs\), so asha would compare none",
        ),
        (("--space", "freeze_tuned", "--max-epochs", "2", "--scheduler", "median"), "--grace-epochs 3: trials run 2 epochs"),
        (("--max-epochs", "5", "--scheduler", "asha", "--grace-epochs", "9"), "--grace-epochs 9: trials run 5 epochs"),
    ],
)
def test_a_wish_that_cannot_come_true_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        strategy_said_by(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--space", "freeze_tuned"), []),
        ((), []),
        (
            ("--space", "freeze_tuned", "--max-epochs", "2", "--objective", FRONT_OF_TIME),
            ["Scheduler none: with several objectives, no trial is stopped early"],
        ),
        (
            ("--space", "freeze_tuned", "--repeats", "2"),
            ["Scheduler none: with the seeds of a point (--repeats), no trial is stopped early"],
        ),
        (
            ("--space", "freeze_tuned", "--max-epochs", "2"),
            ["Scheduler asha stops no trial: trials are compared after 3 epochs (--grace-epochs), and none runs longer than 2"],
        ),
        (("--grace-epochs", "2"), ["--grace-epochs changes nothing with --scheduler none"]),
        (
            ("--space", "freeze_tuned", "--scheduler", "median", "--reduction-factor", "3"),
            ["--reduction-factor changes nothing with --scheduler median"],
        ),
    ],
)
def test_what_is_chosen_otherwise_than_expected_is_said(words: tuple[str, ...], said: list[str]) -> None:
    assert strategy_said_by(*words) == said


@pytest.fixture
def silent_address() -> Any:
    """The address of something that takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_dead_address_is_told_within_a_minute(silent_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster._SECONDS_TO_ANSWER <= 30.0  # it is asked once before the images are decoded and once after
    monkeypatch.setattr(cluster, "_SECONDS_TO_ANSWER", 2.0)
    started = time.monotonic()
    with pytest.raises(InputError, match=f"No Ray cluster answers at --address {silent_address} within 2 s"):
        cluster.require_cluster(silent_address)
    assert time.monotonic() - started < 15


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_for_runs_that_cannot_be_written_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert main(["search", "--out", str(tmp_path / "runs")]) == 2
    assert "cannot be written. Give another folder for runs." in capsys.readouterr().err
