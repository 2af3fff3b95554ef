"""What an entry's files are proven by, and how often they are read for it."""

import errno
import os
from pathlib import Path

import pytest

from tune_lung.data import cache_content
from tune_lung.data.cache import Cache
from tune_lung.data.cache_content import proven_files
from tune_lung.data.cache_proof import write_listing

HOUR_NS = 3600 * 10**9


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """An entry of two files that were written an hour ago, as far as their own time says."""
    folder = tmp_path / "stores" / "aa"
    folder.mkdir(parents=True)
    for name in ("one", "two"):
        (folder / name).write_bytes(name.encode() * 1000)
    write_listing(folder, of=folder)
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fill with the name of each file that is read for its digest."""
    names: list[str] = []
    original = cache_content.sha256_of_file

    def counting(path: Path) -> str:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(cache_content, "sha256_of_file", counting)
    return names


def let_time_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = cache_content.time.time_ns()
    monkeypatch.setattr(cache_content.time, "time_ns", lambda: now_ns + HOUR_NS)


def test_a_file_is_read_once_and_again_after_a_change(entry: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    let_time_pass(monkeypatch)
    for _ in range(3):
        assert (files := proven_files(entry)) is not None
        assert files.are_unchanged()
    assert sorted(read) == ["one", "two"]
    (entry / "one").write_bytes(b"one" * 1000)  # the same again
    assert not files.are_unchanged()
    assert files.are_unchanged(["two"])
    assert proven_files(entry) is not None
    assert read[2:] == ["one"]


def test_a_file_so_young_that_it_may_change_under_the_same_time_is_read_each_time(
    entry: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written_ns = (entry / "one").stat().st_ctime_ns
    monkeypatch.setattr(cache_content.time, "time_ns", lambda: written_ns + 10**6)
    for _ in range(2):
        assert proven_files(entry) is not None
    assert read.count("one") == 2


@pytest.mark.parametrize("counts_seconds", [False, True], ids=["a fine clock", "a coarse clock"])
def test_the_age_from_which_times_are_trusted_follows_the_disks_clock(counts_seconds: bool) -> None:
    moment = 1_700_000_000 * 10**9 + (0 if counts_seconds else 1)
    assert cache_content._is_settled((1, 1, moment, moment), moment + 10**9) is not counts_seconds
    assert cache_content._is_settled((1, 1, moment, moment), moment + 3 * 10**9)
    assert not cache_content._is_settled((1, 1, moment, moment), moment + 10**7)


def test_a_time_of_change_that_somebody_set_to_come_is_no_reason_to_read_a_file_each_time() -> None:
    moment = 1_700_000_000 * 10**9 + 1
    assert cache_content._is_settled((1, 1, moment + HOUR_NS, moment), moment + 10**9)
    assert not cache_content._is_settled((1, 1, moment, moment + HOUR_NS), moment + 10**9)  # a clock that is ahead


def test_another_content_under_the_same_size_and_time_of_change_is_noticed(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_time_pass(monkeypatch)
    files = proven_files(entry)
    status = (entry / "one").stat()
    (entry / "one").write_bytes(b"eno" * 1000)
    os.utime(entry / "one", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files is not None
    assert not files.are_unchanged()
    assert proven_files(entry) is None


@pytest.mark.parametrize("name", ["one", ".digests.json"])
def test_what_is_not_there_or_no_plain_file_is_not_proven(entry: Path, name: str) -> None:
    content = (entry / name).read_bytes()
    (entry / name).unlink()
    assert proven_files(entry) is None
    os.mkfifo(entry / name)
    assert proven_files(entry) is None
    (entry / name).unlink()
    (entry.parent / "elsewhere").write_bytes(content)
    (entry / name).symlink_to(entry.parent / "elsewhere")
    assert proven_files(entry) is None


def test_what_else_lies_in_an_entry_is_no_matter(entry: Path) -> None:
    (entry / "notes.txt").touch()
    assert proven_files(entry) is not None


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE], ids=errno.errorcode.get)
def test_a_file_that_the_system_does_not_give_is_not_damaged_and_stays_for_those_who_can_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A node that cannot read a shared store would else put another in its place, under the trials of all others."""

    def build(folder: Path) -> None:
        (folder / "one").write_bytes(b"1")

    def refused(path: Path) -> str:
        raise OSError(number, os.strerror(number), str(path))

    key = "a" * 16
    with Cache.open(tmp_path / "cache") as cache:
        folder = cache.entry("stores", key, build=build, check=Path.iterdir)
        opened = proven_files(folder)
        before = folder.stat().st_ino
        with monkeypatch.context() as patch:
            patch.setattr(cache_content, "sha256_of_file", refused)
            patch.setattr(cache_content, "_digests", {})
            assert opened is not None
            with pytest.raises(OSError, match=os.strerror(number)):
                opened.are_unchanged()
            with pytest.raises(OSError, match=os.strerror(number)):
                cache.entry("stores", key, build=lambda _: pytest.fail("built"), check=Path.iterdir)
        assert cache.entry("stores", key, build=lambda _: pytest.fail("built"), check=Path.iterdir) == folder
        assert folder.stat().st_ino == before
