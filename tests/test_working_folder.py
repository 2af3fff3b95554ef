import os
import sys
from pathlib import Path

import pytest

from tune_lung.working_folder import away_from_it, leave_it_off_the_path, neutral_folder

CHECKOUT = Path(__file__).resolve().parents[1]
PYTHONS_OWN = ["/somewhere/python311.zip", str(Path(os.__file__).parent), "/somewhere/site-packages"]


@pytest.fixture
def path_after(tmp_path, monkeypatch):
    """Say what is left of the entries that a start in a stranger's folder puts before Python's own."""
    theirs = tmp_path / "theirs"
    (theirs / "lib").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(theirs)

    def leave(*entries: str, variable: str | None = None) -> list[str]:
        monkeypatch.setattr(
            sys, "path", [*(entry.format(theirs=theirs, mine=tmp_path / "mine") for entry in entries), *PYTHONS_OWN]
        )
        monkeypatch.setenv("PYTHONSAFEPATH", "")
        monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "")
        monkeypatch.delenv("PYTHONPATH", raising=False)
        if variable is not None:
            monkeypatch.setenv("PYTHONPATH", variable.format(theirs=theirs, mine=tmp_path / "mine"))
        leave_it_off_the_path()
        assert sys.path[-len(PYTHONS_OWN) :] == PYTHONS_OWN
        assert os.environ["PYTHONSAFEPATH"] == "1"
        return [entry.replace(str(tmp_path), "") for entry in sys.path[: -len(PYTHONS_OWN)]]

    return leave


@pytest.mark.parametrize("entry", ["{theirs}", "", ".", "{theirs}/../theirs"])
def test_the_working_folder_is_taken_off_the_path(path_after, entry):
    assert path_after(entry) == []


def test_what_else_the_user_put_there_stays(path_after):
    assert path_after("{theirs}", "{mine}", variable="{mine}") == ["/mine"]


# Python has made them absolute by the time that we see them.
@pytest.mark.parametrize(
    ("variable", "entries", "left"),
    [
        (":{mine}", ["{theirs}", "{mine}"], ["/mine"]),
        ("{mine}:", ["{mine}", "{theirs}"], ["/mine"]),
        (".", ["{theirs}"], []),
        ("lib:{mine}", ["{theirs}/lib", "{mine}"], ["/mine"]),
        ("../mine", ["{mine}"], ["/mine"]),
        ("{theirs}/lib", ["{theirs}/lib"], ["/theirs/lib"]),
    ],
)
def test_what_the_environment_says_of_it_is_taken_off_for_every_process_to_come(path_after, variable, entries, left, tmp_path):
    assert path_after(*entries, variable=variable) == left
    assert os.environ["PYTHONPATH"].replace(str(tmp_path), "").split(":") == (left or [""])


def test_it_is_known_by_another_name(path_after, tmp_path):
    (tmp_path / "link").symlink_to("theirs")
    assert path_after(str(tmp_path / "link")) == []


def test_a_working_folder_that_was_removed_is_no_harm(path_after, tmp_path):
    (tmp_path / "theirs" / "lib").rmdir()
    (tmp_path / "theirs").rmdir()
    assert path_after("{mine}") == ["/mine"]


def test_in_the_folder_of_all_packages_they_are_still_found(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *PYTHONS_OWN, str(tmp_path)])
    leave_it_off_the_path()
    assert sys.path == [*PYTHONS_OWN, str(tmp_path)]


def test_the_checkout_stays_on_the_path(monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    monkeypatch.setenv("PYTHONPATH", f":{CHECKOUT}")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setattr(sys, "path", ["", str(CHECKOUT), *PYTHONS_OWN])
    leave_it_off_the_path()
    assert sys.path == ["", str(CHECKOUT), *PYTHONS_OWN]
    assert os.environ["PYTHONPATH"] == f":{CHECKOUT}"
    assert "PYTHONSAFEPATH" not in os.environ
    with neutral_folder() as folder:
        assert Path(folder) == CHECKOUT


def test_a_neutral_folder_is_empty_ones_own_and_gone_afterwards(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with neutral_folder() as name:
        folder = Path(name)
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def fail_elsewhere() -> None:
    before = Path.cwd()
    with away_from_it():
        assert Path.cwd() != before
        raise OSError("there")


def test_one_comes_back_from_elsewhere_after_an_error_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="there"):
        fail_elsewhere()
    assert Path.cwd() == tmp_path
