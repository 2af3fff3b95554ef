"""Full disks, and folders that cannot be written: the run stops cleanly, and goes on when there is room."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tune_lung.results.reader import read_run

from tests.faults.search_process import SearchProcess, assert_as_if_nothing_had_happened, begin, keys_of, searched, wait_until

pytestmark = pytest.mark.faults

MB = 10**6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a disk of so many bytes; it can grow."""
    mounted: list[Path] = []

    def mount(num_bytes: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        kind = ["-o", f"remount,size={num_bytes}"] if folder in mounted else ["-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs"]
        done = subprocess.run(["mount", *kind, str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no right to mount a disk: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(mounted[0])], check=True)


def fill(disk: Path, *, but: int = 0) -> Path:
    """Take all the room on a disk but some bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    with ballast.open("rb+") as file:
        file.truncate(max(0, ballast.stat().st_size - but))
    return ballast


def one_line(printed: str) -> str:
    """The only error line of a command's output, which has no traceback."""
    assert "Traceback" not in printed, printed
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    return line


def test_no_room_to_begin_a_run(small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(MB)
    options = begin(disk)
    fill(disk, but=8192)
    assert "No space left on device" in one_line(searched(*options, "--max-epochs", "4", status=2))


def test_no_room_for_a_ledger_part(small_disk: Callable[[int], Path], undisturbed: Path) -> None:
    disk = small_disk(400 * MB)
    search = SearchProcess.start(*begin(disk), "--max-epochs", "4")
    wait_until(lambda: (disk / "run" / "run.json").exists())
    ballast = fill(disk)
    status, printed = search.end()
    assert status == 2, printed
    assert "Free some, and go on with --resume" in one_line(printed)
    before = keys_of(disk / "run")
    ballast.unlink()
    searched("--resume", str(disk / "run"))
    assert_as_if_nothing_had_happened(disk / "run", undisturbed)
    assert all(rows <= keys_of(disk / "run")[table] for table, rows in before.items())


def test_no_room_for_a_checkpoint(small_disk: Callable[[int], Path], undisturbed: Path) -> None:
    # Tables fit, and what is kept of one trial; the checkpoints of a second one, 0.05 MB and 0.1 MB, do not.
    disk = small_disk(300_000)
    options = begin(disk)
    printed = searched(*options, "--max-epochs", "4", status=2)
    assert "A worker found no room left" in one_line(printed) or "No room left for the run's tables" in one_line(printed)
    assert "To go on: --resume" in printed
    assert set(read_run(disk / "run").trials["failure_kind"].dropna()) == set()
    small_disk(60 * MB)  # the frozen part of a ResNet18 takes 45 MB, once
    searched("--resume", str(disk / "run"))
    assert_as_if_nothing_had_happened(disk / "run", undisturbed)


def test_no_room_for_the_pixel_store(small_disk: Callable[[int], Path], tmp_path: Path) -> None:
    disk = small_disk(60_000)
    printed = searched(*begin(tmp_path), "--cache", str(disk), "--max-epochs", "4", status=2)
    assert "No room left for the cache" in one_line(printed)
    assert not (tmp_path / "run").exists()


def test_no_room_for_prefix_features_trains_without(small_disk: Callable[[int], Path], tmp_path: Path, undisturbed: Path) -> None:
    cache = small_disk(400 * MB)
    searched(*begin(tmp_path / "first"), "--cache", str(cache), "--set", "model=cnn", "--max-epochs", "1")
    fill(cache, but=5 * MB)
    searched(*begin(tmp_path / "second"), "--cache", str(cache), "--max-epochs", "4")
    assert not read_run(tmp_path / "second" / "run").trials["prefix_cached"].any()
    assert_as_if_nothing_had_happened_but_features(tmp_path / "second" / "run", undisturbed)


def assert_as_if_nothing_had_happened_but_features(root: Path, undisturbed: Path) -> None:
    """The numbers are those of a run with prefix features."""
    columns = ["trial_id", "status", "epochs_run", "selection_score", "val_loss", "test_macro_recall"]
    run, other = (read_run(each).trials[columns] for each in (root, undisturbed))
    assert run.equals(other)


def test_no_room_for_the_figures(small_disk: Callable[[int], Path], undisturbed: Path) -> None:
    disk = small_disk(400 * MB)
    shutil.copytree(undisturbed, disk / "run", ignore=shutil.ignore_patterns("checkpoints"))
    fill(disk, but=4096)
    done = subprocess.run(
        [sys.executable, "-m", "tune_lung.report", str(disk / "run")], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "No space left on device" in one_line(done.stderr)
    assert not list((disk / "run" / "figures").glob("*.png"))


def test_a_read_only_run_is_refused_in_one_line(small_disk: Callable[[int], Path], undisturbed: Path) -> None:
    disk = small_disk(400 * MB)
    shutil.copytree(undisturbed, disk / "run", ignore=shutil.ignore_patterns("checkpoints"))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert "The run 'run' cannot be written: Read-only file system" in one_line(searched("--resume", str(disk / "run"), status=2))


@pytest.mark.parametrize("home", ["unset", "read-only"])
def test_a_search_needs_no_home(
    small_disk: Callable[[int], Path], tmp_path: Path, undisturbed: Path, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    if home == "read-only":
        for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):  # unset as well, they would lead to the home that the system knows
            monkeypatch.delenv(name, raising=False)
        disk = small_disk(MB)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        monkeypatch.setenv("HOME", str(disk))
    searched(*begin(tmp_path), "--max-epochs", "4")
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)
