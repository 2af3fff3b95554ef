import os
import subprocess
import sys
import threading
import time

import pytest

from tune_lung.data.cache import Cache, content_key, num_workers
from tune_lung.data.exclusion import NotReadError
from tune_lung.errors import InputError


def accept(_):
    """Every folder is whole."""


def write(size):
    return lambda directory: (directory / "content").write_bytes(bytes(size))


def read_digests(cache, root, files):
    """Digest files, and count those that were read."""
    read = []
    digests = cache.digests(root).of(files, progress=lambda done, _: read.append(done))
    return digests, len(read)


def test_an_entry_is_built_once(cache):
    built = []

    def build(directory):
        built.append(directory)
        (directory / "content").touch()

    first = cache.entry("stores", "aa", build=build, check=accept)
    assert cache.entry("stores", "aa", build=build, check=accept) == first
    assert (first / "content").exists()
    assert len(built) == 1
    assert built[0] != first


def test_an_entry_whose_building_fails_does_not_appear(cache):
    def build(directory):
        (directory / "half").touch()
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        cache.entry("stores", "aa", build=build, check=accept)
    assert list((cache.root / "stores").iterdir()) == []


def test_a_damaged_entry_is_built_again(cache):
    def check(directory):
        if not (directory / "content").exists():
            raise InputError("damaged")

    folder = cache.entry("stores", "aa", build=write(3), check=check)
    (folder / "content").unlink()
    assert cache.entry("stores", "aa", build=write(3), check=check) == folder
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == ["content"]


@pytest.mark.parametrize("damaged", [b"\0\1\0", b"\0\0", b"", b"\0\0\0\0"])
@pytest.mark.parametrize("file", ["content", ".digests.json"])
def test_an_entry_with_a_damaged_file_is_noticed_and_built_again(cache, damaged, file, caplog):
    folder = cache.entry("stores", "aa", build=write(3), check=lambda _: None)
    whole = (folder / "content").read_bytes()
    (folder / file).write_bytes(damaged)
    cache.entry("stores", "aa", build=write(3), check=lambda _: None)
    assert (folder / "content").read_bytes() == whole
    assert "An entry of the cache (stores) is damaged" in caplog.text


@pytest.mark.parametrize("next_key", ["aa", "bb"])
def test_what_a_killed_builder_left_is_removed(tmp_path, next_key):
    program = f"""
import os
from pathlib import Path
from tune_lung.data.cache import Cache
def build(folder):
    (folder / "decoded").mkdir()
    for name in ("decoded/pixels", "train.npy", ".store.json.0123abcd"):
        (folder / name).write_bytes(bytes(1000))
    os.kill(os.getpid(), 9)
Cache.open(Path({str(tmp_path)!r})).entry("stores", "aa", build=build, check=str)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    (leftover,) = (tmp_path / "stores").iterdir()
    assert leftover.name.startswith(".aa.")
    with Cache.open(tmp_path, size_bytes=500) as cache:
        cache.entry("stores", next_key, build=write(3), check=accept)
    assert not leftover.exists()


def test_two_builders_build_one_entry(cache):
    built = []

    def build(directory):
        built.append(1)
        time.sleep(0.2)
        (directory / "content").touch()

    other = Cache.open(cache.root)
    threads = [
        threading.Thread(target=lambda own=own: own.entry("stores", "aa", build=build, check=accept)) for own in (cache, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]


def test_an_entry_is_found_only_where_it_is_whole_and_is_waited_for_while_it_is_built(cache):
    assert cache.found("stores", "aa", check=accept) is None
    is_building = threading.Event()

    def build(directory):
        is_building.set()
        time.sleep(0.3)
        write(3)(directory)

    with Cache.open(cache.root) as other:
        builder = threading.Thread(target=lambda: other.entry("stores", "aa", build=build, check=accept))
        builder.start()
        assert is_building.wait(10)
        folder = cache.found("stores", "aa", check=accept)
        builder.join(10)
    assert folder is not None
    assert (folder / "content").read_bytes() == bytes(3)
    (folder / "content").write_bytes(b"\0\1\0")
    assert cache.found("stores", "aa", check=accept) is None


def test_a_found_entry_stays_until_its_finder_closes(tmp_path):
    with Cache.open(tmp_path, 10) as builder:
        folder = builder.entry("stores", "aa", build=write(8), check=accept)
    with Cache.open(tmp_path, 10) as finder, Cache.open(tmp_path, 10) as other:
        assert finder.found("stores", "aa", check=accept) == folder
        other.entry("stores", "bb", build=write(8), check=accept)
        assert folder.exists()
    with Cache.open(tmp_path, 10) as other:
        other.entry("stores", "cc", build=write(8), check=accept)
    assert not folder.exists()


def test_the_least_recently_used_entries_make_room(tmp_path):
    for moment, key in enumerate(("aa", "bb", "cc")):
        with Cache.open(tmp_path, size_bytes=2500) as cache:
            folder = cache.entry("stores", key, build=write(1000), check=accept)
        os.utime(folder, (moment, moment))
    with Cache.open(tmp_path, size_bytes=2500) as cache:
        cache.entry("stores", "dd", build=write(1000), check=accept)
        assert sorted(path.name for path in (tmp_path / "stores").iterdir()) == ["cc", "dd"]


def test_entries_in_use_stay_whatever_the_size(tmp_path):
    with Cache.open(tmp_path, size_bytes=1500) as user:
        folder = user.entry("stores", "aa", build=write(1000), check=accept)
        with Cache.open(tmp_path, size_bytes=1500) as other:
            other.entry("stores", "bb", build=write(1000), check=accept)
            assert folder.exists()
    with Cache.open(tmp_path, size_bytes=1500) as later:
        later.entry("stores", "cc", build=write(1000), check=accept)
        assert not folder.exists()


def test_an_entry_of_a_killed_process_can_be_removed(tmp_path):
    program = f"""
import os
from pathlib import Path
from tune_lung.data.cache import Cache
Cache.open(Path({str(tmp_path)!r})).entry("stores", "aa", build=lambda d: (d / "c").write_bytes(bytes(1000)), check=str)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    assert (tmp_path / "stores" / "aa").exists()
    with Cache.open(tmp_path, size_bytes=500) as cache:
        cache.make_room()
    assert not (tmp_path / "stores" / "aa").exists()


def test_size_zero_keeps_nothing_beyond_the_run(tmp_path):
    with Cache.open(tmp_path, size_bytes=0) as cache:
        folder = cache.entry("stores", "aa", build=write(1000), check=accept)
        assert (folder / "content").exists()
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_is_the_users_else_a_temporary_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert Cache.open().root == tmp_path / "own" / "tune_lung"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert Cache.open().root == tmp_path / f"tune_lung-cache-{os.getuid()}"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written: .*Give another with --cache"):
        Cache.open(tmp_path / "file" / "cache")
    with pytest.raises(InputError, match="--cache-size must be at least 0"):
        Cache.open(tmp_path, size_bytes=-1)


def test_digests_are_remembered_until_a_file_changes(cache, tmp_path):
    files = {name: tmp_path / name for name in ("one", "two")}
    for path in files.values():
        path.write_text("before")
    time.sleep(2.1)  # younger files are not trusted
    first, num_read = read_digests(cache, tmp_path, files)
    assert num_read == 2
    assert read_digests(cache, tmp_path, files) == (first, 0)
    status = files["one"].stat()
    files["one"].write_text("after!")  # as long as before
    os.utime(files["one"], ns=(status.st_atime_ns, status.st_mtime_ns))
    second, num_read = read_digests(cache, tmp_path, files)
    assert num_read == 1
    assert second["one"] != first["one"]
    assert second["two"] == first["two"]


def test_digests_of_files_changed_a_moment_ago_are_not_trusted(cache, tmp_path):
    (tmp_path / "one").write_text("before")
    assert [read_digests(cache, tmp_path, {"one": tmp_path / "one"})[1] for _ in range(2)] == [1, 1]


def test_a_missing_file_has_no_digest_to_remember(cache, tmp_path):
    with pytest.raises(NotReadError, match="No such file or directory"):
        cache.digests(tmp_path).of({"gone": tmp_path / "gone"})


def test_damaged_memories_are_forgotten(cache, tmp_path):
    digests = cache.digests(tmp_path)
    digests.path.parent.mkdir()
    digests.path.write_text("{half")
    (tmp_path / "one").write_text("x")
    assert len(digests.of({"one": tmp_path / "one"})["one"]) == 64


def test_content_keys_do_not_depend_on_order():
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})


def test_where_no_system_says_which_cpus_are_ours_all_are_counted(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert num_workers() == 5
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert num_workers() == 1
