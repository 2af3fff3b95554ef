"""Nothing that the cache did not make is removed, written over or followed, wherever it lies."""

import json
import os
import shutil
import stat
import threading
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tune_lung.data import cache as cache_module
from tune_lung.data.__main__ import main
from tune_lung.data.cache import Cache, content_key
from tune_lung.data.phantoms import ensure_phantoms
from tune_lung.data.prepare import prepare
from tune_lung.errors import InputError

from tests.data.conftest import texture

WHOLE, DAMAGED, MISSING = (content_key([name]) for name in ("whole", "damaged", "missing"))
MARKER = ".tune_lung-cache"
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - hundreds of roots, and a disk is slow


def accept(_):
    """Every folder is whole."""


def write(folder):
    """Build an entry with a file in a folder."""
    (folder / "decoded").mkdir()
    for name in ("decoded/pixels", "train.npy"):
        (folder / name).write_bytes(bytes(1000))


def killed(folder):
    """Begin to build an entry."""
    write(folder)
    raise KeyboardInterrupt


@contextmanager
def killing():
    """Let nobody tidy up, as after a kill."""
    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        yield


def filled(root):
    """Fill a cache with a whole entry, a damaged one, what a killed builder left, its lock, and remembered digests."""
    with Cache.open(root) as cache:
        for key in (WHOLE, DAMAGED):
            cache.entry("stores", key, build=write, check=accept)
        (root / "stores" / DAMAGED / "train.npy").unlink()
        with killing():
            cache.entry("stores", MISSING, build=killed, check=accept)
        (root / "locks" / f"stores-{MISSING}.use-1-0123abcd").touch()
        (root.parent / "unsettled").touch()
        cache.digests(Path("root")).of({"image": root.parent / "unsettled"})
    return root


# What is planted, and where

THINGS = ("file", "empty file", "folder", "empty folder", "link to a file", "link to a folder", "link to nothing", "pipe")
IN_AN_ENTRY = ("notes.txt", "train.npy", "decoded", "decoded/pixels", "decoded/notes.txt", ".digests.json", "mine/deep/notes.txt")
PLACES = (
    *(MARKER, "data/COVID", "notes.txt", "stores", "features", "phantoms", "probes", "locks", "digests"),
    *("data/decoded", "tune_lung-0123abcd", "tune_lung-0123abcd/stores", "probe-0123abcd"),
    *(f"stores/{name}" for name in ("notes.txt", "COVID", "0" * 32, f"{'0' * 32}-2", f".{'0' * 32}.0123abcd", "cafe")),
    *(f"stores/{key}" for key in (WHOLE, DAMAGED, MISSING, f"{DAMAGED}-2", f"{MISSING}-2")),
    *(f"features/{name}" for name in ("COVID", "0" * 32, MISSING, f".{MISSING}.0123abcd")),
    *(f"stores/{key}/{name}" for key in (WHOLE, DAMAGED, "{unfinished}", "{unfinished}/entry") for name in IN_AN_ENTRY),
    *(f"stores/{name}" for name in ("{unfinished}", f".{MISSING}.0123abcd", f".{DAMAGED}.0123abcd/train.npy")),
    *("locks/notes.txt", "locks/{lock}", f"locks/stores-{MISSING}.build", f"locks/stores-{WHOLE}.use-1-0123abcd"),
    *(f"locks/stores-{'0' * 32}.build", f"locks/features-{MISSING}.build"),
    *("digests/notes.txt", "digests/{memory}", "digests/0123456789abcdef.json", "digests/.0123456789abcdef.json.0123abcd"),
)
OWN_FILES = {
    *(f"{folder}/{name}" for folder in (WHOLE, DAMAGED, "entry") for name in ("train.npy", "decoded/pixels")),
    "entry/.digests.json",
}
OWN_FOLDERS = {"stores", "features", "phantoms", "probes", "locks", "digests", "entry", "decoded"}
plants = st.lists(
    st.tuples(st.sampled_from(PLACES), st.sampled_from(THINGS)), min_size=1, max_size=6, unique_by=lambda plant: plant[0]
)


@pytest.fixture(scope="module", autouse=True)
def _fast_disk():
    """Wait for no disk: no power is cut here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A filled cache to copy."""
    return filled(tmp_path_factory.mktemp("template") / "root")


def make(path, thing, outside):
    if thing == "file":
        path.write_text("mine")
    elif thing == "empty file":
        path.touch()
    elif thing == "folder":
        (path / "stores" / WHOLE).mkdir(parents=True)
        (path / "stores" / WHOLE / "train.npy").write_text("mine")
        (path / ".digests.json").write_text('{"entry": "mine"}')
    elif thing == "empty folder":
        path.mkdir()
    elif thing == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(outside / {"link to a file": "notes.txt", "link to a folder": "folder"}.get(thing, "nothing"))


def is_no_folder(path):
    return os.path.lexists(path) and not stat.S_ISDIR(path.lstat().st_mode)


def plant(root, wanted, outside):
    """Put foreign things into a root, in the place of our own where there are some; return where they lie."""
    unfinished = next((path.name for path in (root / "stores").glob(f".{MISSING}.*")), f".{MISSING}.4567abcd")
    memory = next((path.name for path in (root / "digests").glob("*.json")), "0123456789abcdee.json")
    lock = f"stores-{MISSING}.use-1-0123abcd"
    names = {"unfinished": unfinished, "memory": memory, "lock": lock}
    planted = {}
    for place, thing in sorted(wanted):
        path = root / place.format(**names)
        if any(is_no_folder(parent) or parent in planted for parent in path.parents):
            continue  # it would lie in a planted folder, or behind a planted link
        # What has the name and kind of one of ours cannot be told from it where ours is damaged, or as empty.
        if thing.endswith("file") and any(map(path.match, OWN_FILES)):
            continue
        if thing == "empty file" and (path.parent.name == "locks" or path.name == MARKER):
            continue
        if thing == "empty folder" and path.name in OWN_FOLDERS:
            continue
        if path.is_dir() and not path.is_symlink():
            if any(path in other.parents for other in planted):
                continue
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path, thing, outside)
        planted[path] = seen(path)
    return planted


def seen(path):
    """All that a path is: its kind, content or target, mode, and what is in it."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return str(path.readlink())
    if stat.S_ISDIR(status.st_mode):
        return status.st_mode, {child.name: seen(child) for child in path.iterdir()}
    return status.st_mode, status.st_mtime_ns, path.read_bytes() if stat.S_ISREG(status.st_mode) else None


def assert_is_there(path, before):
    """What was there is there as it was; ours may lie beside it in a folder."""
    assert os.path.lexists(path), f"{path} is gone"
    now = seen(path)
    if not (isinstance(before, tuple) and isinstance(before[1], dict)):
        assert now == before, path
        return
    assert now[0] == before[0], path
    for name, content in before[1].items():
        assert_is_there(path / name, content)


def use(root, size_bytes):
    """Do with a cache whatever may remove or write something; return whether it was opened."""
    try:
        cache = Cache.open(root, size_bytes)
    except InputError:
        return False
    with cache:
        for kind, key in (("stores", MISSING), ("stores", DAMAGED), ("features", MISSING), ("stores", WHOLE)):
            with suppress(InputError):
                folder = cache.entry(kind, key, build=write, check=accept)
                assert (folder / "train.npy").read_bytes() == bytes(1000)
                assert not folder.is_symlink()
                assert cache.has(kind, key, check=accept)
                assert cache.found(kind, key, check=accept) == folder
        with suppress(InputError):
            cache.digests(Path("root")).of({"image": root.parent / "outside" / "notes.txt"})
        with suppress(InputError), cache.workplace() as folder:
            (folder / "predictions").touch()
        cache.make_room()
    with suppress(InputError), Cache.open(root, 1) as later:
        later.make_room()
    return True


@contextmanager
def places(template=None):
    with TemporaryDirectory(dir=MEMORY) as name:
        outside = Path(name).resolve() / "outside"
        (outside / "folder" / "stores" / WHOLE).mkdir(parents=True)
        for path in (
            outside / "notes.txt",
            outside / "folder" / "train.npy",
            outside / "folder" / "stores" / WHOLE / "train.npy",
        ):
            path.write_text("somebody's")
        (outside / "folder" / f"stores-{MISSING}.use-1-0123abcd").touch()
        root = outside.parent / "root"
        if template is None:
            root.mkdir()
        else:
            shutil.copytree(template, root)
        yield root, outside


@settings(max_examples=100)
@given(wanted=plants, is_marked=st.booleans(), size_bytes=st.sampled_from([1, 2500, 10**9]))
@example(wanted=[("data/COVID", "folder")], is_marked=False, size_bytes=1)
@example(wanted=[("data/COVID", "folder")], is_marked=True, size_bytes=1)
@example(wanted=[(f"stores/{WHOLE}/notes.txt", "file")], is_marked=True, size_bytes=1)
@example(wanted=[(f"stores/{DAMAGED}/notes.txt", "file")], is_marked=True, size_bytes=1)
@example(wanted=[("stores/{unfinished}/notes.txt", "file")], is_marked=True, size_bytes=1)
@example(wanted=[(f"stores/{MISSING}", "link to a folder")], is_marked=True, size_bytes=1)
@example(wanted=[("locks", "link to a folder")], is_marked=True, size_bytes=1)
@example(wanted=[(f"locks/stores-{MISSING}.build", "link to a file")], is_marked=True, size_bytes=1)
@example(wanted=[(f"locks/stores-{WHOLE}.use-1-0123abcd", "file")], is_marked=True, size_bytes=1)
@example(wanted=[("locks/{lock}", "link to a file")], is_marked=True, size_bytes=1)
@example(wanted=[("stores", "link to a folder")], is_marked=True, size_bytes=1)
@example(wanted=[(f"stores/{WHOLE}/decoded", "link to a folder")], is_marked=True, size_bytes=1)
@example(wanted=[(f"stores/{WHOLE}/.digests.json", "link to a file")], is_marked=True, size_bytes=1)
@example(wanted=[(MARKER, "link to nothing")], is_marked=False, size_bytes=1)
@example(wanted=[(MARKER, "file")], is_marked=False, size_bytes=1)
@example(wanted=[(MARKER, "pipe")], is_marked=False, size_bytes=1)
@example(wanted=[("digests/{memory}", "file")], is_marked=True, size_bytes=1)
def test_nothing_foreign_in_a_root_is_touched(template, wanted, is_marked, size_bytes):
    with places(template) as (root, outside):
        if not is_marked:
            (root / MARKER).unlink(missing_ok=True)
        planted = plant(root, wanted, outside)
        before, elsewhere = seen(root), seen(outside)
        if not use(root, size_bytes):
            assert seen(root) == before
        assert seen(outside) == elsewhere
        for path, content in planted.items():
            assert_is_there(path, content)


@settings(max_examples=40)
@given(wanted=plants)
@example([(f"stores/{WHOLE}/notes.txt", "file")])
def test_nothing_foreign_in_a_temporary_root_is_touched(wanted):
    with places() as (root, outside):
        (root / "mine").write_text("mine")
        cache = Cache.open(root, 0)
        for key in (WHOLE, DAMAGED):
            cache.entry("stores", key, build=write, check=accept)
        (cache.root / "stores" / DAMAGED / "train.npy").unlink()
        planted, elsewhere = plant(cache.root, wanted, outside), seen(outside)
        with suppress(InputError):
            cache.entry("stores", DAMAGED, build=write, check=accept)
        cache.close()
        assert seen(outside) == elsewhere
        for path, content in planted.items():
            assert_is_there(path, content)
        assert (root / "mine").read_text() == "mine"
        if not planted:
            assert [path.name for path in root.iterdir()] == ["mine"]


# The command


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for label, name in enumerate(("A", "B")):
        (root / name / "images").mkdir(parents=True)
        for number in range(5):
            texture(10 * label + number, 24).save(root / name / "images" / f"{name}-{number}.png")
    return root


def run(root, *arguments):
    return main(["prepare", str(root), "--image-size", "16", *map(str, arguments)])


def test_a_folder_with_something_of_the_users_is_refused_in_one_line(images, tmp_path, capsys):
    shared = tmp_path / "SHARED"
    (shared / "data" / "COVID").mkdir(parents=True)
    (shared / "data" / "COVID" / "scan.png").write_bytes(bytes(3_000_000))
    before = seen(shared)
    assert run(images, "--cache", shared, "--cache-size", "1MB") == 2
    assert capsys.readouterr().err == (
        f"error: --cache {shared} holds data, which tune_lung did not make."
        " Give an empty folder, or one that has been its cache before.\n"
    )
    assert seen(shared) == before


def test_what_the_user_puts_into_a_cache_later_stays(images, tmp_path):
    shared = tmp_path / "SHARED"
    assert run(images, "--cache", shared) == 0
    (shared / "data" / "COVID").mkdir(parents=True)
    (shared / "data" / "COVID" / "scan.png").write_bytes(bytes(3_000_000))
    before = seen(shared / "data")
    assert run(images, "--cache", shared, "--cache-size", "1KB", "--seed", 1) == 0
    assert seen(shared / "data") == before
    assert len(list((shared / "stores").iterdir())) == 1  # of two of ours, the older one had to go


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=plants, is_marked=st.booleans(), size=st.sampled_from(["0", "1KB", "1GB"]))
@example(wanted=[("data/COVID", "folder")], is_marked=False, size="1KB")
def test_the_command_touches_nothing_foreign(template, images, wanted, is_marked, size, capsys):
    with places(template) as (root, outside):
        if not is_marked:
            (root / MARKER).unlink(missing_ok=True)
        planted = plant(root, wanted, outside)
        before, elsewhere, data = seen(root), seen(outside), seen(images)
        status = run(images, "--cache", root, "--cache-size", size)
        assert len(capsys.readouterr().err.splitlines()) == (1 if status else 0)
        if size == "0":
            assert (status, seen(root)) == (0, before)
        assert (seen(outside), seen(images)) == (elsewhere, data)
        for path, content in planted.items():
            assert_is_there(path, content)


def test_size_zero_leaves_nothing_in_a_folder_of_the_users_nor_the_folders_made_for_it(images, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("mine")
    before = seen(tmp_path)
    for root in (tmp_path / "data", tmp_path / "new" / "cache"):
        assert run(images, "--cache", root, "--cache-size", 0) == 0
    assert seen(tmp_path) == before


# Whose a root is


def test_a_root_from_before_the_marker_is_adopted_as_long_as_all_in_it_is_ours(tmp_path):
    filled(tmp_path)
    (tmp_path / MARKER).unlink()
    entry = tmp_path / "stores" / WHOLE
    listing = json.loads((entry / ".digests.json").read_text())
    from tune_lung.files import write_json_with_digest

    write_json_with_digest(entry / ".digests.json", listing["files"])  # as it was written then
    built = []
    with Cache.open(tmp_path) as cache:
        cache.entry("stores", WHOLE, build=built.append, check=accept)
    assert not built
    assert (tmp_path / MARKER).exists()
    with Cache.open(tmp_path, 1) as cache:
        cache.make_room()
    assert not list((tmp_path / "stores").iterdir())


def test_the_users_own_root_is_adopted_whatever_lies_there(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "tune_lung" / "stores" / WHOLE).mkdir(parents=True)
    for path in (tmp_path / "tune_lung" / "notes.txt", tmp_path / "tune_lung" / "stores" / WHOLE / "train.npy"):
        path.write_text("mine")
    before = seen(tmp_path)
    for given_root in (None, tmp_path / "tune_lung"):
        with Cache.open(given_root, 1) as cache:
            cache.entry("stores", WHOLE, build=write, check=accept)
    assert_is_there(tmp_path, before)


def test_processes_that_open_a_new_root_together_all_get_it(tmp_path):
    barrier, refused = threading.Barrier(8), []

    def open_and_use(number):
        barrier.wait()
        try:
            with Cache.open(tmp_path / "new") as cache:
                cache.entry("stores", content_key([number]), build=write, check=accept)
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=open_and_use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == []


def test_a_root_may_hold_the_temporary_ones_of_other_processes(tmp_path):
    with Cache.open(tmp_path, 0) as other, Cache.open(tmp_path, 1) as cache:
        folder = other.entry("stores", WHOLE, build=write, check=accept)
        cache.make_room()
        assert folder.exists()


def test_a_root_may_be_a_link_of_the_users(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    with Cache.open(tmp_path / "link") as cache:
        assert cache.entry("stores", WHOLE, build=write, check=accept).parents[1] == tmp_path / "disk"
    assert (tmp_path / "link").readlink() == Path("disk")


@pytest.mark.parametrize("planted", ["link", "open to all", "file"])
def test_a_temporary_root_that_another_user_may_have_planted_is_refused(tmp_path, monkeypatch, planted):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = tmp_path / f"tune_lung-cache-{os.getuid()}"
    (tmp_path / "mine").mkdir()
    if planted == "link":
        root.symlink_to("mine")
    elif planted == "file":
        root.touch()
    else:
        root.mkdir()
        root.chmod(0o777)
    with pytest.raises(InputError, match=r"is not this user's alone\. Give your own with --cache"):
        Cache.open()
    assert not list((tmp_path / "mine").iterdir())


def test_opening_reads_no_content_of_entries(tmp_path, monkeypatch):
    filled(tmp_path)
    (tmp_path / MARKER).unlink()
    monkeypatch.setattr(cache_module, "sha256_of_file", lambda path: pytest.fail(f"read {path}"))
    with Cache.open(tmp_path, 1) as cache:
        cache.make_room()
    assert not list((tmp_path / "stores").iterdir())


# What lies in an entry


def test_a_foreign_file_in_a_whole_entry_does_not_matter_and_in_a_damaged_one_the_entry_is_built_beside(tmp_path, caplog):
    with Cache.open(tmp_path) as cache:
        folder = cache.entry("stores", WHOLE, build=write, check=accept)
        (folder / "notes.txt").write_text("mine")
        assert cache.entry("stores", WHOLE, build=write, check=accept) == folder
        assert caplog.messages == []
        (folder / "train.npy").unlink()
        for _ in range(2):
            assert cache.entry("stores", WHOLE, build=write, check=accept) == folder.with_name(f"{WHOLE}-2")
    assert caplog.messages == [
        f"An entry of the cache (stores) is damaged, or of another version, and not all in its place stores/{WHOLE} is"
        " tune_lung's: that stays, and it is built beside."
    ]
    with Cache.open(tmp_path, 1) as cache:
        cache.make_room()
    assert [path.name for path in (tmp_path / "stores").iterdir()] == [WHOLE]
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "decoded" / "pixels").exists()  # an entry goes as a whole or not at all


def test_a_copy_of_an_entry_is_the_users(tmp_path):
    with Cache.open(tmp_path) as cache:
        folder = cache.entry("stores", WHOLE, build=write, check=accept)
    copies = [tmp_path / "stores" / f"{WHOLE}-2", tmp_path / "stores" / MISSING, tmp_path / "phantoms" / WHOLE]
    for copy in copies:
        shutil.copytree(folder, copy)
    with Cache.open(tmp_path, 1) as cache:
        cache.make_room()
    assert not folder.exists()
    assert all(copy.exists() for copy in copies)


@pytest.mark.parametrize(
    "place", [f"stores/{WHOLE}/train.npy", f"stores/{WHOLE}/decoded", f"stores/{WHOLE}", "stores", "locks", "digests", MARKER]
)
@pytest.mark.parametrize("is_open", [False, True])
def test_what_the_user_moved_elsewhere_and_linked_stays_there(tmp_path, place, is_open):
    root, disk = tmp_path / "root", tmp_path / "disk"
    with Cache.open(root, 1) as cache:
        cache.entry("stores", WHOLE, build=write, check=accept)
        cache.digests(root).of({"image": root})
        (root / "locks" / f"stores-{WHOLE}.use-1-0123abcd").touch()
    with Cache.open(root, 10**9) if is_open else nullcontext() as cache:
        disk.mkdir()
        moved = (root / place).rename(disk / Path(place).name)
        (root / place).symlink_to(moved)
        before = seen(disk)
        if cache is None:
            use(root, 1)
        else:
            cache.size_bytes = 1
            for key in (WHOLE, MISSING):
                with suppress(InputError):
                    cache.entry("stores", key, build=write, check=accept)
            with suppress(InputError):
                cache.digests(root).of({"image": root, "marker": root / MARKER})
            cache.make_room()
    assert seen(disk) == before
    assert (root / place).readlink() == moved


def test_what_is_not_ours_does_not_count(tmp_path):
    with Cache.open(tmp_path, 5000) as cache:
        cache.entry("stores", WHOLE, build=write, check=accept)
    for place in (tmp_path / "data", tmp_path / "stores" / MISSING):
        place.mkdir()
        (place / "scan.png").write_bytes(bytes(10_000))
    with Cache.open(tmp_path, 5000) as cache:
        cache.make_room()
    assert (tmp_path / "stores" / WHOLE).exists()


def build_store(root, images):
    from tune_lung.config import RunConfig

    with Cache.open(root) as cache:
        prepare(images, run=RunConfig(image_size=16), cache=cache)


@pytest.mark.parametrize(
    "build", [build_store, lambda root, _: ensure_phantoms(Cache.open(root), seed=0, num_images=16)], ids=["store", "phantoms"]
)
def test_what_a_real_builder_leaves_when_it_is_killed_is_known_as_ours(tmp_path, images, build):
    def die(*_, **__):
        raise KeyboardInterrupt

    with killing(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "write_listing", die)
        build(tmp_path / "cache", images)
    assert list((tmp_path / "cache").glob("*/.*.*/entry/*"))
    with Cache.open(tmp_path / "cache", 1) as cache:
        cache.make_room()
    assert not list((tmp_path / "cache").glob("*/.*"))
