"""Working folders: private, gone with their process, and what is left of a killed one removed later, and nothing else."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tune_lung import scratch
from tune_lung.scratch import PREFIX, ScratchFolder, remove_leftovers

_MAKE = """
import os, subprocess, sys, time
from pathlib import Path
from tune_lung.scratch import ScratchFolder
folder = ScratchFolder(parent=Path(sys.argv[1]))
(folder.path / "deep").mkdir()
(folder.path / "deep" / "file").write_text("of a killed process")
if sys.argv[2] == "child":
    with open(folder.path / "log", "w") as log:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=log)
    print(folder.path.parent, child.pid, flush=True)
else:
    print(folder.path.parent, os.getpid(), flush=True)
time.sleep(60)
"""


@contextmanager
def made_by_another(parent: Path, *, child: bool = False) -> Iterator[tuple[Path, Callable[[], None], int]]:
    """Let another process make a folder and write there; give its path, how to kill the process, and who has a file open."""
    process = subprocess.Popen(
        [sys.executable, "-c", _MAKE, str(parent), "child" if child else "alone"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    root, pid = process.stdout.readline().split()

    def kill() -> None:
        process.send_signal(signal.SIGKILL)
        process.wait(30)

    try:
        yield Path(root), kill, int(pid)
    finally:
        kill()
        process.stdout.close()
        if child:
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What a killed process left."""
    with made_by_another(tmp_path) as (root, kill, _):
        kill()
        return root


def test_a_folder_is_private_and_goes_with_all_that_was_written(tmp_path: Path) -> None:
    with ScratchFolder(parent=tmp_path) as folder:
        (root,) = tmp_path.iterdir()
        assert root.name.startswith(PREFIX)
        assert root.stat().st_mode & 0o777 == 0o700
        folder.path.chmod(0o777)  # as Ray does: nobody else gets there all the same
        (folder.path / "deep").mkdir()
        (folder.path / "deep" / "file").write_text("")
    assert list(tmp_path.iterdir()) == []


def test_it_goes_with_its_process_where_nobody_closes_it(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tune_lung.scratch import *; folder = ScratchFolder(parent=Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_a_forked_child_removes_nothing(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from tune_lung.scratch import ScratchFolder
folder = ScratchFolder(parent=Path(sys.argv[1]))
child = os.fork()
if child == 0:
    sys.exit()
os.waitpid(child, 0)
sys.exit(not folder.path.exists())
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_when_another_folder_is_made(left: Path, tmp_path: Path) -> None:
    assert (left / "w" / "deep" / "file").exists()
    with ScratchFolder(parent=tmp_path):
        assert not left.exists()


def test_a_folder_of_a_living_process_stays(tmp_path: Path) -> None:
    with made_by_another(tmp_path) as (root, _, _), ScratchFolder(parent=tmp_path) as own:
        remove_leftovers(tmp_path)
        assert (root / "w" / "deep" / "file").exists()
        assert own.path.exists()


def test_a_leftover_stays_while_a_child_of_the_killed_process_works_in_it(tmp_path: Path) -> None:
    with made_by_another(tmp_path, child=True) as (root, kill, child):
        kill()
        remove_leftovers(tmp_path)
        assert (root / "w" / "log").exists()
        os.kill(child, signal.SIGSTOP)
        remove_leftovers(tmp_path)
        assert (root / "w" / "log").exists()
    deadline = iter(range(1000))
    while root.exists() and next(deadline, None) is not None:
        remove_leftovers(tmp_path)
    assert not root.exists()


def _without_marker(root: Path) -> None:
    (root / ".tune_lung").unlink()


def _a_copy(root: Path) -> None:
    shutil.copytree(root, root.with_name(f"{PREFIX}copy"))
    shutil.rmtree(root)
    root.with_name(f"{PREFIX}copy").rename(root.with_name(f"{root.name}x"))


def _open_to_others(root: Path) -> None:
    root.chmod(0o755)


def _marker_is_a_link(root: Path) -> None:
    (root / ".tune_lung").rename(root.parent / "marker")
    (root / ".tune_lung").symlink_to(root.parent / "marker")


def _marker_is_a_pipe(root: Path) -> None:
    (root / ".tune_lung").unlink()
    os.mkfifo(root / ".tune_lung")


def _lock_is_a_link(root: Path) -> None:
    (root / ".lock").unlink()
    (root.parent / "precious").write_text("a user's own")
    (root / ".lock").symlink_to(root.parent / "precious")


@pytest.mark.parametrize(
    "change", [_without_marker, _a_copy, _open_to_others, _marker_is_a_link, _marker_is_a_pipe, _lock_is_a_link]
)
def test_what_is_not_known_as_ours_stays_as_it_is(left: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    change(left)
    before = sorted(tmp_path.rglob("*"))
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path / "precious").exists() or (tmp_path / "precious").read_text() == "a user's own"


def test_a_folder_of_another_user_stays(left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: left.stat().st_uid + 1)
    remove_leftovers(tmp_path)
    assert (left / "w" / "deep" / "file").exists()


def test_foreign_files_folders_and_links_stay(left: Path, tmp_path: Path) -> None:
    """Beside a leftover, in it beside ours, and where links in it lead; all with our prefix where that is possible."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("a user's own")
    (left / "w" / "out").symlink_to(elsewhere)
    (left / "w" / "deep" / "out").symlink_to(elsewhere / "file")
    (left / "own.txt").write_text("a user's own")
    (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
    (tmp_path / f"{PREFIX}link-to-ours").symlink_to(left)
    (tmp_path / f"{PREFIX}file").write_text("a user's own")
    (tmp_path / "tl-folder" / "w").mkdir(parents=True)
    (tmp_path / "tl-folder" / "w" / "session_latest").write_text("a user's own")
    remove_leftovers(tmp_path)
    assert [path.name for path in left.iterdir()] == ["own.txt"]
    assert (elsewhere / "file").read_text() == "a user's own"
    names = {"elsewhere", left.name, f"{PREFIX}link", f"{PREFIX}link-to-ours", f"{PREFIX}file", "tl-folder"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "tl-folder" / "w" / "session_latest").exists()


def test_a_work_folder_that_became_a_link_is_not_followed(left: Path, tmp_path: Path) -> None:
    (left / "w").rename(tmp_path / "moved")
    (left / "w").symlink_to(tmp_path / "moved")
    remove_leftovers(tmp_path)
    assert (tmp_path / "moved" / "deep" / "file").exists()


def test_a_parent_that_is_not_there_has_no_leftovers(tmp_path: Path) -> None:
    remove_leftovers(tmp_path / "nowhere")


@pytest.fixture
def _without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A system that does not show what other processes use, as macOS."""
    monkeypatch.setattr(scratch, "_PROCESSES", tmp_path / "proc")


def _age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (then, then), follow_symlinks=False)


@pytest.mark.usefixtures("_without_proc")
def test_where_nobody_shows_who_uses_a_leftover_it_stays_until_ten_minutes_after_its_last_change(
    left: Path, tmp_path: Path
) -> None:
    remove_leftovers(tmp_path)
    assert (left / "w" / "deep" / "file").exists()
    _age(left / "w", 3600)
    os.utime(left / "w" / "deep" / "file", (time.time() - 500,) * 2)
    remove_leftovers(tmp_path)
    assert (left / "w" / "deep" / "file").exists()
    _age(left / "w", 700)
    remove_leftovers(tmp_path)
    assert not left.exists()


@pytest.mark.usefixtures("_without_proc")
def test_what_was_half_removed_goes_where_nobody_shows_who_uses_it(left: Path, tmp_path: Path) -> None:
    shutil.rmtree(left / "w")
    remove_leftovers(tmp_path)
    assert not left.exists()
