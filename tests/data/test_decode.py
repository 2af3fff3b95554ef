import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from tune_lung.data.decode import BadImageError, squash, squash_mask
from tune_lung.data.exclusion import ExclusionReason
from tune_lung.data.reading import GreyReader, read_grey

from tests.data.conftest import texture


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that claims to be so large."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0")
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (body, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture(scope="module")
def reader():
    with GreyReader() as reader:
        yield reader


def reason(path) -> ExclusionReason:
    with pytest.raises(BadImageError) as caught:
        read_grey(path)
    assert path.stem not in str(caught.value)
    return caught.value.reason


def test_read_grey_scales_16_bits_instead_of_cutting_them_off(tmp_path):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.asarray(read_grey(tmp_path / "deep.png")).ravel().tolist() == list(range(256))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK"])
def test_read_grey_gives_the_same_grey_from_every_form(tmp_path, mode):
    grey = texture(1)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    grey.convert("RGB").convert(mode).save(path)
    assert np.array_equal(np.asarray(read_grey(path)), np.asarray(grey))


def test_read_grey_reads_a_palette_by_its_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).convert("P")
    image.putpalette([200, 200, 200, 10, 10, 10, 90, 90, 90, 255, 255, 255])
    image.save(tmp_path / "palette.png")
    assert np.asarray(read_grey(tmp_path / "palette.png")).tolist() == [[200, 10], [90, 255]]


def test_read_grey_takes_transparent_pixels_for_black(tmp_path):
    image = Image.new("RGBA", (2, 1), (200, 200, 200, 255))
    image.putpixel((1, 0), (200, 200, 200, 0))
    image.save(tmp_path / "transparent.png")
    assert np.asarray(read_grey(tmp_path / "transparent.png")).tolist() == [[200, 0]]


def test_read_grey_reads_one_bit(tmp_path):
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bits.png")
    assert np.asarray(read_grey(tmp_path / "bits.png")).tolist() == [[0, 255]]


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_read_grey_refuses_half_an_image(tmp_path, ending):
    whole, half = tmp_path / f"whole.{ending}", tmp_path / f"secret.{ending}"
    texture(1, size=200).save(whole)
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert reason(half) is ExclusionReason.TRUNCATED


def test_read_grey_refuses_an_empty_file(tmp_path):
    (tmp_path / "secret.png").touch()
    assert reason(tmp_path / "secret.png") is ExclusionReason.EMPTY


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html>Not found</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_read_grey_refuses_what_is_no_image(tmp_path, content):
    (tmp_path / "secret.png").write_bytes(content)
    assert reason(tmp_path / "secret.png") is ExclusionReason.NOT_AN_IMAGE


def test_read_grey_refuses_any_flipped_bytes_or_reads_on(tmp_path, reader):
    whole = tmp_path / "whole.png"
    texture(1, size=100).save(whole)
    content = whole.read_bytes()
    modes = set()
    for place in range(0, len(content), 37):
        (tmp_path / "flipped.png").write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        with suppress(BadImageError), reader.read(tmp_path / "flipped.png") as grey:
            modes.add(grey.image.mode)
    assert modes <= {"L"}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_001, 12_000, 60_000])
def test_read_grey_refuses_more_pixels_than_a_radiograph_has(tmp_path, side):
    (tmp_path / "secret.png").write_bytes(png_header(side, side))
    assert reason(tmp_path / "secret.png") is ExclusionReason.TOO_LARGE


def test_read_grey_refuses_floats(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "secret.tif")
    assert reason(tmp_path / "secret.tif") is ExclusionReason.UNSUPPORTED_PIXELS


def test_squash_averages_and_ignores_proportions():
    stripes = np.tile(np.array([0, 255], np.uint8), (32, 64))
    squashed = squash(Image.fromarray(stripes), 16)
    assert squashed.shape == (16, 16)
    assert np.abs(squashed[:, 2:-2].astype(int) - 127).max() <= 2


def test_published_masks_are_padded_by_21_and_22_pixels():
    mask = Image.new("L", (256, 256), 255)
    padded = squash_mask(mask, image_width=299, image_height=299, size=299, protocol="published")
    inside = np.argwhere(padded == 255)
    assert inside.min(axis=0).tolist() == [21, 21]
    assert inside.max(axis=0).tolist() == [299 - 22 - 1, 299 - 22 - 1]


def test_strict_masks_cover_the_whole_image():
    mask = Image.new("L", (256, 256), 255)
    assert squash_mask(mask, image_width=299, image_height=299, size=64, protocol="strict").min() == 255
