"""A film lies as its file says it is to be looked at."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tune_lung.data import reading
from tune_lung.data.reading import GreyReader, read_grey
from tune_lung.data.scan import scan

from tests.data.conftest import texture
from tests.data.stored_forms import png

UPRIGHT = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.T,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].T,
    8: lambda pixels: np.rot90(pixels),
}
"""How each EXIF orientation is turned, by the drawing in the standard (CIPA DC-008, table 6)."""
PICTURE = texture(3, 60).crop((0, 0, 60, 40))


def exif(orientation: int, *, padding: int = 0) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    if padding:
        data[0x010E] = "x" * padding
    return data


def without_child(_: str) -> None:
    raise AssertionError("a child for a plain image")


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp", "large.jpg", "large.png"])
def test_an_image_is_turned_as_its_exif_data_say(tmp_path, ending, orientation):
    padding = 20_000 if "large" in ending else 0
    options = {"quality": 95} if ending.endswith("jpg") else {"lossless": True} if ending == "webp" else {}
    PICTURE.save(tmp_path / f"plain.{ending}", **options)
    PICTURE.save(tmp_path / f"turned.{ending}", exif=exif(orientation, padding=padding), **options)
    expected = UPRIGHT[orientation](np.asarray(read_grey(tmp_path / f"plain.{ending}")))
    assert np.array_equal(np.asarray(read_grey(tmp_path / f"turned.{ending}")), expected)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_film_of_16_bits_is_turned(tmp_path, orientation):
    values = np.asarray(PICTURE).astype(np.int64) * 16
    (tmp_path / "film.png").write_bytes(png(values, chunks={b"eXIf": exif(orientation).tobytes()[6:]}))
    with GreyReader() as reader, reader.read(tmp_path / "film.png") as grey:
        assert np.array_equal(np.asarray(grey.image), UPRIGHT[orientation](values))


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_common_exif_data_need_no_child(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(reading, "Confined", without_child)
    PICTURE.save(tmp_path / f"image.{ending}", exif=exif(6, padding=10_000))
    assert read_grey(tmp_path / f"image.{ending}").size == (40, 60)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"II",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",
    ],
)
def test_exif_data_that_cannot_be_read_turn_nothing(tmp_path, data):
    path = tmp_path / "image.png"
    PICTURE.save(path)
    content = path.read_bytes()
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data
    path.write_bytes(content[:33] + chunk + struct.pack(">I", zlib.crc32(b"eXIf" + data)) + content[33:])
    assert np.array_equal(np.asarray(read_grey(path)), np.asarray(PICTURE))


def test_exif_data_that_name_a_megabyte_often_are_left_to_a_child(tmp_path):
    # Each of 60,000 entries names the same megabyte, and Pillow 12 reads them all; Pillow 13 sees through it.
    entries = b"".join(struct.pack("<HHII", 1 + number, 7, 2**20, 16) for number in range(60_000))
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", 60_000) + entries + bytes(2**20)
    stored = BytesIO()
    PICTURE.save(stored, "PNG")
    content = stored.getvalue()
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    (tmp_path / "image.png").write_bytes(content[:33] + chunk + content[33:])
    with GreyReader() as reader, reader.read(tmp_path / "image.png"):
        assert len(reader._children) == 1


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "A.JFIF"])
def test_a_jpeg_of_any_ending_is_one(tmp_path: Path, name: str) -> None:
    for class_name in "AB":
        (tmp_path / class_name).mkdir()
        PICTURE.save(tmp_path / class_name / name, "JPEG")
    assert [image.path.name for image in scan(tmp_path).images] == [name, name]
