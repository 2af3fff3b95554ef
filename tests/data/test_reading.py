"""What a hostile image costs is bounded, and an honest one costs what it did."""

import os
import struct
import time
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tune_lung.confined import ConfinedError
from tune_lung.data import decode, reading
from tune_lung.data.decode import BadImageError
from tune_lung.data.exclusion import NotReadError
from tune_lung.data.reading import GreyReader, read_grey

from tests.data.conftest import texture

pytestmark = pytest.mark.timeout(60)


def jpeg(side: int, **options) -> bytes:
    stored = BytesIO()
    texture(1, side).save(stored, "JPEG", **options)
    return stored.getvalue()


def jpeg_of_scans(number: int) -> bytes:
    """A progressive JPEG whose last scan comes so often."""
    content = jpeg(1500, progressive=True, quality=30)
    last = content.rfind(b"\xff\xda")
    return content[:-2] + content[last:-2] * number + content[-2:]


def jpeg_of_segments(number: int, segment: bytes) -> bytes:
    content = jpeg(16)
    return content[:2] + segment * number + content[2:]


def png_of_chunks(number: int) -> bytes:
    stored = BytesIO()
    texture(1).save(stored, "PNG")
    content = stored.getvalue()
    chunk = struct.pack(">I4s", 0, b"abCd") + struct.pack(">I", zlib.crc32(b"abCd"))
    return content[:33] + chunk * number + content[33:]


HOSTILE = {
    "scans.jpg": lambda: jpeg_of_scans(30_000),
    "exif.jpg": lambda: jpeg_of_segments(400_000, b"\xff\xe1\0\x0eExif\0\0MM\0*\0\0"),
    "letters.pgm": lambda: b"P2 4000 4000 255 " + b"0 " * 16_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_image_that_decodes_for_minutes_is_too_costly(tmp_path, monkeypatch, name):
    monkeypatch.setattr(reading, "CPU_SECONDS", 1)
    (tmp_path / name).write_bytes(HOSTILE[name]())
    with pytest.raises(BadImageError, match="too_costly"):
        read_grey(tmp_path / name)


@pytest.mark.parametrize("content", [lambda: jpeg_of_segments(3000, b"\xff\xe5\0\2"), lambda: png_of_chunks(3000)])
def test_an_image_of_many_parts_is_left_to_a_child(tmp_path, content):
    (tmp_path / "image").write_bytes(content())
    with GreyReader() as reader, reader.read(tmp_path / "image") as grey:
        assert grey.stored_mode == "L"
        assert len(reader._children) == 1


def png_of_zeros(width: int, height: int, *, channels: int = 1) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 4: 6}[channels], 0, 0, 0)
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(width * channels + 1) * 1000) for _ in range(height // 1000)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_a_line_of_millions_of_pixels_is_too_large(tmp_path):
    # To resize it to 128 pixels, Pillow first makes 128 lines of it.
    (tmp_path / "line.png").write_bytes(png_of_zeros(1, 40_000_000))
    with pytest.raises(BadImageError, match="too_large"):
        read_grey(tmp_path / "line.png")


def test_a_file_that_says_it_has_terabytes_is_too_large(tmp_path):
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(BadImageError, match="too_large"):
        read_grey(tmp_path / "sparse.png")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_and_a_device_are_no_images(tmp_path, kind):
    path = tmp_path / "image.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(BadImageError, match="not_a_file"):
        read_grey(path)


def no_child(_: str) -> None:
    raise AssertionError("a child for a plain image")


def test_common_files_need_no_child(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "Confined", no_child)
    stored = {
        "a.png": {},
        "b.jpg": {},
        "c.jpg": {"progressive": True},
        "d.jpg": {"exif": Image.Exif(), "icc_profile": b"x" * 3000},
    }
    with GreyReader() as reader:
        for name, options in stored.items():
            texture(1, 1500).save(tmp_path / name, **options)
            with reader.read(tmp_path / name) as grey:
                assert grey.image.size == (1500, 1500)


@pytest.mark.parametrize("ending", ["bmp", "gif", "tif", "webp", "pgm", "large.png", "large.jpg"])
def test_a_child_gives_the_same_pixels(tmp_path, ending):
    path = tmp_path / f"image.{ending}"
    texture(1, 3000 if "large" in ending else 48).save(path)
    content = path.read_bytes()
    here = decode.to_grey(decode.open_image(BytesIO(content)), content).image
    with GreyReader() as reader, reader.read(path) as grey:
        assert len(reader._children) == 1
        assert np.array_equal(np.asarray(grey.image), np.asarray(here))


def test_one_child_decodes_many_images(tmp_path):
    for number in range(20):
        texture(number).save(tmp_path / f"{number}.bmp")
    with GreyReader() as reader:
        for path in tmp_path.iterdir():
            with reader.read(path):
                pass
        assert len(reader._children) == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B", "I"])
def test_an_image_becomes_grey_in_bands_as_it_does_at_once(monkeypatch, mode):
    image = texture(3, 61)
    if mode.startswith("I"):
        deep = np.asarray(image).astype(np.uint16) * 257
        image = Image.fromarray(deep.astype(np.int32) if mode == "I" else deep.astype(">u2" if mode == "I;16B" else "<u2"))
    else:
        image = image.convert("RGB").convert(mode) if mode != "P" else image.convert("RGB").quantize(17)
    if mode in ("LA", "RGBA"):
        image.putalpha(texture(4, 61))
    assert image.mode == mode
    at_once = np.asarray(decode.to_grey(image.copy(), b"").image)
    monkeypatch.setattr(decode, "_PIXELS_AT_ONCE", 200)
    assert np.array_equal(np.asarray(decode.to_grey(image.copy(), b"").image), at_once)


def test_an_image_waits_while_others_take_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MEMORY_AT_ONCE", 1000)
    texture(1).save(tmp_path / "image.png")
    with GreyReader() as reader, reader.read(tmp_path / "image.png"):
        assert reader._room._free == 0
    assert reader._room._free == 1000


def test_who_leaves_ends_what_is_being_decoded(tmp_path):
    path = tmp_path / "scans.jpg"
    path.write_bytes(jpeg_of_scans(30_000))

    def leave(reader: GreyReader) -> None:
        with reader:
            time.sleep(1)

    reader = GreyReader()
    ended: list[BaseException] = []
    thread = reading.threading.Thread(target=lambda: ended.append(failure_of(reader, path)))
    thread.start()
    started = time.monotonic()
    leave(reader)
    thread.join()
    assert time.monotonic() - started < 5
    assert isinstance(ended[0], NotReadError | ConfinedError)


def failure_of(reader: GreyReader, path: Path) -> BaseException | None:
    try:
        with reader.read(path):
            return None
    except Exception as error:
        return error
