import errno
import hashlib
import os
import re
from pathlib import Path

import pytest

from tune_lung.files import (
    DamagedFileError,
    read_json_with_digest,
    read_regular_file,
    rename_to_new,
    sha256_of_file,
    whole_file,
    write_json_with_digest,
    write_text_whole,
)


def test_whole_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "table.parquet"
    with whole_file(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"


def test_a_writer_is_looked_at_before_and_when_all_but_the_renaming_is_done(tmp_path):
    target, looks = tmp_path / "new" / "table.parquet", []

    def check_writer() -> str:
        looks.append(sorted(path.name for path in tmp_path.rglob("*")))
        return "abcd0123"

    write_text_whole(target, "new", check_writer=check_writer)
    before, after = looks
    assert before == []
    assert re.fullmatch(r"\.table\.parquet\.abcd0123[0-9a-f]{8}", after[0])


def test_who_may_write_no_more_in_the_end_leaves_what_is_there(tmp_path):
    target = tmp_path / "table.parquet"
    target.write_bytes(b"old")
    has_lost = iter([False, True])

    def check_writer() -> str:
        if next(has_lost):
            raise RuntimeError("superseded")
        return ""

    with pytest.raises(RuntimeError, match="superseded"):
        write_text_whole(target, "new", check_writer=check_writer)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("has_exclusive_rename", [True, False])
def test_a_folder_takes_a_name_that_nothing_has(tmp_path, monkeypatch, has_exclusive_rename):
    if not has_exclusive_rename:
        monkeypatch.setattr("tune_lung.files._rename_exclusively", lambda *_: errno.EINVAL)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "y").write_text("y")
    (tmp_path / "file").write_text("z")
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    for name in ("empty", "full", "file", "link"):
        with pytest.raises(FileExistsError):
            rename_to_new(folder, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(FileNotFoundError):
        rename_to_new(folder, tmp_path / "no" / "where")
    rename_to_new(folder, tmp_path / "new")
    assert (tmp_path / "new" / "x").read_text() == "x"
    assert not folder.exists()


@pytest.mark.parametrize("library", [None, OSError("no shared library"), object()])
def test_a_c_library_without_the_call_is_told_from_one_with_it(tmp_path, monkeypatch, library):
    """As an older one, musl's, or that of a Python linked as one program; the call itself has no other stand-in."""
    if library is not None:

        def load(*_, **__):
            if isinstance(library, Exception):
                raise library
            return library

        monkeypatch.setattr("ctypes.CDLL", load)
    (tmp_path / "folder").mkdir()
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError):
        rename_to_new(tmp_path / "folder", tmp_path / "taken")
    rename_to_new(tmp_path / "folder", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "taken"]


def fail_halfway(target):
    with whole_file(target) as temporary:
        temporary.write_bytes(b"half")
        raise OSError("disk full")


def test_whole_file_leaves_the_old_content_when_the_block_raises(tmp_path):
    target = tmp_path / "table.parquet"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"):
        fail_halfway(target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_whole_file_uses_a_hidden_name_beside_its_target(tmp_path):
    # pandas.read_parquet on a folder passes over names that start with a dot, and fails on any other stray file.
    with whole_file(tmp_path / "table.parquet") as temporary:
        assert temporary.name.startswith(".")
        assert temporary.parent == tmp_path
        temporary.touch()


def test_whole_file_makes_the_folders_above_it(tmp_path):
    write_text_whole(tmp_path / "run" / "figures" / "index.html", "ü")
    assert (tmp_path / "run" / "figures" / "index.html").read_text(encoding="utf-8") == "ü"


def test_two_writers_of_one_file_use_different_temporary_names(tmp_path):
    target = tmp_path / "run.json"
    with whole_file(target) as one, whole_file(target) as other:
        assert one != other
        one.touch()
        other.touch()


def test_whole_file_says_when_its_block_wrote_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"\.table\.parquet"), whole_file(tmp_path / "table.parquet"):
        pass


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1], ids=lambda size: f"{size}_bytes")
def test_sha256_of_file_reads_every_byte_across_chunks(tmp_path, size):
    content = bytes(index % 251 for index in range(1000)) * (size // 1000 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(content[:size]).hexdigest()


@pytest.mark.parametrize("damage", [lambda content: content[:-4], lambda _: b"", lambda content: content.replace(b"0.5", b"0.7")])
def test_json_with_a_digest_that_was_damaged_is_noticed(tmp_path, damage):
    path = tmp_path / "warm_start.json"
    write_json_with_digest(path, {"trials": [{"score": 0.5}]})
    assert read_json_with_digest(path) == {"trials": [{"score": 0.5}]}
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedFileError, match=r"warm_start\.json (is no JSON|does not match its digest)"):
        read_json_with_digest(path)


def test_json_without_a_digest_is_read_as_it_is(tmp_path):
    (tmp_path / "run.json").write_text('{"name": "old"}')
    assert read_json_with_digest(tmp_path / "run.json") == {"name": "old"}


def test_a_regular_file_is_read_up_to_its_bound(tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(b"12345")
    assert read_regular_file(path, most_bytes=5) == b"12345"
    with pytest.raises(DamagedFileError, match=r"run\.json is larger than 4 bytes"):
        read_regular_file(path, most_bytes=4)


@pytest.mark.timeout(10)  # a pipe that is opened in the common way hangs
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_and_a_device_are_refused_without_being_read(tmp_path, kind):
    path = tmp_path / "run.json"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(Path("/dev/zero"))
    with pytest.raises(DamagedFileError, match="no regular file"):
        read_json_with_digest(path)


def test_json_that_is_nested_too_deep_is_damaged(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("[" * 100_000)
    with pytest.raises(DamagedFileError, match="no JSON file"):
        read_json_with_digest(path)
