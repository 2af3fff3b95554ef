"""Images that are replaced, cut, removed or closed while a store is built, and memory or a child that is lost meanwhile.

Nothing of that says what an image shows. So no image is left out for it, none is stored under another's digest, and nothing is
kept: the next start, when all is quiet, gives what an undisturbed one gives.
"""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tune_lung.config import RunConfig
from tune_lung.data import cache as cache_module
from tune_lung.data import decode, reading
from tune_lung.data import prepare as prepare_module
from tune_lung.data.__main__ import main
from tune_lung.data.cache import Cache
from tune_lung.data.exclusion import NotReadError
from tune_lung.data.prepare import PreparedData, prepare

from tests.data.conftest import texture

pytestmark = pytest.mark.faults

RUN = RunConfig(image_size=16)
NUM_OF_CLASS = 5


def write_images(root: Path) -> Path:
    """Write two classes of images that a thread decodes and of such as a child does, with masks."""
    for label, name in enumerate("AB"):
        for folder in ("images", "masks"):
            (root / name / folder).mkdir(parents=True)
        for number in range(NUM_OF_CLASS):
            for ending in ("png", "tif"):
                texture(1000 * label + 100 * (ending == "tif") + number).save(
                    root / name / "images" / f"{number}{ending}.{ending}"
                )
                Image.new("L", (48, 48), 255).save(root / name / "masks" / f"{number}{ending}.{ending}")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("undisturbed")
    return prepared(write_images(folder / "data"), Cache.open(folder / "cache"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache.open(tmp_path / "cache")


def prepared(root: Path, cache: Cache, between: Callable[[], object] = lambda: None) -> PreparedData:
    """Prepare a folder; something happens when all digests are taken and nothing is decoded yet."""

    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("Reading", total):
            between()

    return prepare(root, run=RUN, cache=cache, progress=progress)


def assert_nothing_was_kept(root: Path, cache: Cache, undisturbed: PreparedData) -> None:
    """The next start gives what one gives that was never disturbed."""
    assert not any((cache.root / "stores").glob("*"))
    again = prepared(root, cache)
    assert again.fingerprint == undisturbed.fingerprint
    pd.testing.assert_frame_equal(again.images, undisturbed.images)


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    shown = texture(77)
    shown.save(path.with_name("new.part"), "PNG" if path.suffix == ".png" else "TIFF")
    path.with_name("new.part").rename(path)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_a_page(path: Path) -> None:
    path.write_text("<html>Service unavailable</html>")


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["A/images/3png.png", "B/images/3tif.tif", "A/masks/2png.png", "B/masks/2tif.tif"])
@pytest.mark.parametrize("change", [remove, replace, cut, empty, become_a_folder, become_a_page, become_a_pipe])
def test_a_file_that_changes_while_it_is_read_ends_the_building(
    root: Path, cache: Cache, undisturbed: PreparedData, change: Callable[[Path], None], name: str
) -> None:
    whole = (root / name).read_bytes()
    with pytest.raises(NotReadError, match="A file of the data could not be read: ") as caught:
        prepared(root, cache, lambda: change(root / name))
    assert Path(name).stem not in str(caught.value)
    assert "\n" not in str(caught.value)
    if (root / name).is_dir():
        (root / name).rmdir()
    (root / name).unlink(missing_ok=True)
    (root / name).write_bytes(whole)
    assert_nothing_was_kept(root, cache, undisturbed)


@pytest.mark.parametrize("name", ["A/images/3png.png", "B/images/3tif.tif"])
def test_a_file_that_is_another_one_for_the_moment_of_decoding_ends_the_building(
    root: Path, cache: Cache, undisturbed: PreparedData, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole, opened = root / name, reading._opened_if_plain

    def open_then_put_back(path: Path) -> object:
        """Give way to a child, or decode, what is there now; then all is as it was before."""
        if path != whole:
            return opened(path)
        kept = path.with_suffix(".kept")
        path.rename(kept)
        replace(path)
        try:
            return opened(path)
        finally:
            if path.suffix == ".png":
                kept.replace(path)

    monkeypatch.setattr(reading, "_opened_if_plain", open_then_put_back)
    with pytest.raises(NotReadError, match="it changed meanwhile"):
        prepared(root, cache)
    monkeypatch.undo()
    if whole.with_suffix(".kept").exists():
        whole.with_suffix(".kept").replace(whole)
    assert_nothing_was_kept(root, cache, undisturbed)


def test_the_digest_is_of_the_bytes_that_were_decoded(root: Path) -> None:
    with reading.GreyReader() as reader:
        for path in sorted(root.rglob("*.*")):
            with reader.read(path) as grey:
                assert grey.sha256 == cache_module.sha256_of_file(path)


@pytest.mark.parametrize("name", ["A/images/3png.png", "B/images/3tif.tif"])
def test_what_a_file_holds_still_leaves_it_out_under_its_own_digest(root: Path, cache: Cache, name: str) -> None:
    cut(root / name)
    images = prepared(root, cache).images.set_index("path")
    assert images.loc[name, "excluded_reason"] in ("truncated", "damaged")
    assert images.loc[name, "sha256"] == cache_module.sha256_of_file(root / name)
    assert images["excluded_reason"].notna().sum() == 1


def fail_once(monkeypatch: pytest.MonkeyPatch, place: object, name: str, error: Callable[[], Exception]) -> None:
    """Let the third call of a function fail, whichever thread makes it."""
    real, calls, counting = getattr(place, name), [0], threading.Lock()

    def failing(*arguments: object, **options: object) -> object:
        with counting:
            calls[0] += 1
            fails = calls[0] == 3
        if fails:
            raise error()
        return real(*arguments, **options)

    monkeypatch.setattr(place, name, failing)


TROUBLES = {
    "memory, opening": (reading, "open_image", MemoryError),
    "memory, decoding": (reading, "to_grey", MemoryError),
    "memory, in Pillow": (decode.Image.Image, "crop", MemoryError),
    "memory, in a decoder": (decode.Image, "open", lambda: OSError("out of memory error when reading image file")),
    "memory, resizing": (prepare_module, "squash", MemoryError),
    "memory, a mask": (prepare_module, "squash_mask", MemoryError),
    "disk, opening": (decode, "open_regular_file", lambda: OSError(errno.EIO, "Input/output error")),
    "rights, opening": (decode, "open_regular_file", lambda: PermissionError(errno.EACCES, "Permission denied")),
    "too many files": (decode, "open_regular_file", lambda: OSError(errno.EMFILE, "Too many open files")),
    "no process": (reading.Confined, "_running", lambda: BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")),
    "disk, taking the digest": (cache_module, "sha256_of_file", lambda: OSError(errno.EIO, "Input/output error")),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_moments_trouble_leaves_no_image_out(
    root: Path, cache: Cache, undisturbed: PreparedData, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    place, name, error = TROUBLES[trouble]
    if name == "crop":
        monkeypatch.setattr(decode, "_PIXELS_AT_ONCE", 200)
    fail_once(monkeypatch, place, name, error)
    with pytest.raises(NotReadError, match="could not be read") as caught:
        prepared(root, cache)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert_nothing_was_kept(root, cache, undisturbed)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_that_is_killed_leaves_no_image_out(
    root: Path, cache: Cache, undisturbed: PreparedData, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    real = reading.Confined._running

    def killed(child: reading.Confined) -> subprocess.Popen[bytes]:
        process = real(child)
        process.send_signal(sent)
        process.wait()
        return process

    monkeypatch.setattr(reading.Confined, "_running", killed)
    with pytest.raises(NotReadError, match=rf"ended with status -{sent.value}"):
        prepared(root, cache)
    monkeypatch.undo()
    assert_nothing_was_kept(root, cache, undisturbed)


def test_a_limit_of_the_users_on_memory_leaves_no_image_out(tmp_path: Path) -> None:
    """A child that may take less than its image needs is no proof against the image."""
    path = tmp_path / "large.tif"
    Image.fromarray(np.zeros((6000, 6000), np.uint8)).save(path)
    program = f"""
import resource
from pathlib import Path
from tune_lung.data import reading
real = reading.Confined._running
def limited(child):
    process = real(child)
    pages = int(Path(f"/proc/{{process.pid}}/statm").read_text().split()[0])
    allowed = pages * resource.getpagesize() + 60_000_000
    resource.prlimit(process.pid, resource.RLIMIT_AS, (allowed, allowed))
    return process
with reading.GreyReader() as reader:
    with reader.read(Path({str(path)!r})) as grey:
        print(grey.image.size)
    reading.Confined._running = limited
    try:
        with reader.read(Path({str(path)!r})):
            print("read")
    except Exception as error:
        print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.splitlines()[0] == "(6000, 6000)", done.stderr
    assert "NotReadError A file of the data could not be read: " in done.stdout
    assert "less memory or time than is allowed" in done.stdout


def test_a_folder_that_the_system_hides_for_a_moment_is_no_empty_one(
    root: Path, cache: Cache, undisturbed: PreparedData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.scandir

    def closed(path: Path) -> object:
        if Path(path) in (root / "B" / "images" / "deeper", root / "A" / "masks"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    (root / "B" / "images" / "deeper").mkdir()
    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(NotReadError, match="the system does not let 2 files or folders be looked at"):
        prepared(root, cache)
    assert main(["scan", str(root)]) == 0
    assert capsys.readouterr().out.split("unreadable: 2")[1].split()[:2] == ["A/masks", "B/images/deeper"]
    monkeypatch.undo()
    assert_nothing_was_kept(root, cache, undisturbed)


def test_a_table_that_changes_while_it_is_read_gives_no_sources(root: Path, cache: Cache, undisturbed: PreparedData) -> None:
    table = root / "A.metadata.xlsx"
    table.write_bytes(b"no table yet")
    with pytest.raises(NotReadError, match="it changed meanwhile"):
        prepared(root, cache, lambda: table.write_bytes(b"no table either"))
    assert_nothing_was_kept(root, cache, undisturbed)


def test_scan_names_what_cannot_be_read_and_goes_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = decode.open_regular_file

    def closed(path: Path, *, most_bytes: int) -> object:
        if path in (root / "A/images/3png.png", root / "B/masks/1png.png"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, most_bytes=most_bytes)

    monkeypatch.setattr(decode, "open_regular_file", closed)
    assert main(["scan", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("  unreadable: 2")
    assert lines[place + 1 : place + 3] == ["    A/images/3png.png", "    B/masks/1png.png (mask)"]


@pytest.mark.parametrize("name", ["A/images/3png.png", "B/images/3tif.tif"])
def test_a_wrong_digest_that_was_remembered_is_found_out_and_forgotten(
    root: Path, cache: Cache, undisturbed: PreparedData, name: str
) -> None:
    """On a file system whose times do not tell that a file has changed, say."""
    now = time.time() - 60
    for path in root.rglob("*.*"):
        os.utime(path, (now, now))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "_SETTLED_NS", 0)
        cache.digests(root).of({name: root / name})
        memory = cache.digests(root)
        stamp = memory._remembered()[1][name][0]
        cache_module.write_json_with_digest(memory.path, {"files": {name: [stamp, "0" * 64]}})
    with pytest.raises(NotReadError, match="it changed meanwhile"):
        prepared(root, cache)
    assert_nothing_was_kept(root, cache, undisturbed)


def test_an_old_memory_of_what_could_not_be_read_is_no_digest(root: Path, cache: Cache) -> None:
    whole = prepared(root, cache)
    memory = cache.digests(root)
    files = {name: [stamp, None] for name, (stamp, _) in memory._remembered()[1].items()}
    cache_module.write_json_with_digest(memory.path, {"files": files})
    assert prepared(root, cache).store == whole.store
