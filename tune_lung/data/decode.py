"""Decode radiographs of any stored form to 8-bit grey, and squash them to a square.

Pillow only: torchvision's decoder ends the process on some damaged files. Only a full decode proves that a file is an image.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from tune_lung.config import Protocol
from tune_lung.confined import Answer
from tune_lung.data.exclusion import ExclusionReason
from tune_lung.files import DamagedFileError, open_regular_file

PIXEL_LIMIT = 64_000_000
"""Pixels of the largest image that is decoded; the largest X-ray detectors have about 20 million."""
SIDE_LIMIT = 65_535
"""Pixels of its longest side, as in a JPEG file: to resize a line of 64 million pixels takes gigabytes."""
MOST_IMAGE_BYTES = 2**29
"""Size of the largest image file that is read: 64 million pixels of four values of 16 bits, and some more."""
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # no EPS or PDF: decoding those starts other programs
_PIXELS_AT_ONCE = 2**20


class BadImageError(Exception):
    """A file that cannot be used as an image. Its text is the reason, never the file's name."""

    def __init__(self, reason: ExclusionReason) -> None:
        """Take the reason."""
        super().__init__(reason.value)
        self.reason = reason


@contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Silence Pillow's warnings of sizes and palettes while files are read; what matters is counted by reason.

    For the main thread, around the threads that read: warning filters are the whole process's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def bad_images() -> Iterator[None]:
    """Turn whatever a damaged file raises, from struct.error to KeyError, into a BadImageError."""
    try:
        yield
    except BadImageError:
        raise
    except Exception as error:
        raise BadImageError(_reason(error)) from error


def open_image_file(path: Path) -> BinaryIO:
    """Open a file that may be an image.

    Raises:
        BadImageError: It is no file, has no bytes, or too many, or cannot be read.
    """
    with bad_images():
        try:
            file = open_regular_file(path, most_bytes=MOST_IMAGE_BYTES)
        except DamagedFileError:
            reason = ExclusionReason.TOO_LARGE if path.is_file() else ExclusionReason.NOT_A_FILE
            raise BadImageError(reason) from None
        if os.fstat(file.fileno()).st_size == 0:
            file.close()
            raise BadImageError(ExclusionReason.EMPTY)
        return file


def open_image(file: BinaryIO, formats: tuple[str, ...] = _FORMATS) -> Image.Image:
    """Read an image's header; its pixels are not decoded yet.

    Raises:
        BadImageError: It is no image, or one of too many pixels.
    """
    with bad_images():
        image = Image.open(file, formats=formats)
    if image.width * image.height > PIXEL_LIMIT or max(image.size) > SIDE_LIMIT:
        raise BadImageError(ExclusionReason.TOO_LARGE)
    return image


def to_grey(image: Image.Image) -> Image.Image:
    """Decode a whole image to 8-bit grey, and let go of what it was decoded from.

    Transparent pixels count as black; 16-bit values are scaled, not cut off.

    Args:
        image: From `open_image`.

    Returns:
        An image of mode L, in its own size.

    Raises:
        BadImageError: It cannot be decoded.
    """
    with bad_images(), image:
        image.load()
        num_rows = max(1, _PIXELS_AT_ONCE // image.width)
        if image.height <= num_rows:
            return _grey(image)
        grey = Image.new("L", image.size)
        for top in range(0, image.height, num_rows):  # what comes between takes four times the memory
            box = (0, top, image.width, min(image.height, top + num_rows))
            grey.paste(_grey(image.crop(box)), box)
        return grey


def _reason(error: Exception) -> ExclusionReason:
    if isinstance(error, UnidentifiedImageError):
        return ExclusionReason.NOT_AN_IMAGE
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ExclusionReason.TOO_LARGE
    if isinstance(error, MemoryError):
        return ExclusionReason.TOO_COSTLY
    if isinstance(error, OSError) and error.errno is not None:
        return ExclusionReason.UNREADABLE
    return ExclusionReason.TRUNCATED if "truncated" in str(error).lower() else ExclusionReason.DAMAGED


def _grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray(_eight_bit(np.asarray(image)))
    if image.mode == "F":
        raise BadImageError(ExclusionReason.UNSUPPORTED_PIXELS)
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("L")
    return image.copy() if image.mode == "L" else image.convert("RGB").convert("L")


def _eight_bit(values_HW: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """Scale 16-bit values to 8 bits; `convert("L")` would cut everything over 255 to white."""
    if values_HW.min() < 0 or values_HW.max() > 65535:
        raise BadImageError(ExclusionReason.UNSUPPORTED_PIXELS)
    return ((values_HW.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


_waiting: list[Callable[[], Image.Image]] = []
"""In a confined child: gives the image that is to be decoded next."""


def answer(question: Mapping[str, Any]) -> Answer:
    """Answer as a confined child: look at the image `path`, or without one decode what was looked at.

    Returns:
        At first `width`, `height`, `format`, `mode` and the file's `bytes`, so that memory can be allowed for; then `mode`, and
        the grey pixels. Of an image that cannot be used, the `reason`.
    """
    warnings.simplefilter("ignore")
    try:
        if "path" not in question:
            image = _waiting.pop()()
            return {"mode": image.mode}, to_grey(image).tobytes()
        _waiting.clear()
        return _looked_at(open_image_file(Path(question["path"]))), b""
    except BadImageError as error:
        return {"reason": error.reason}, b""


def _looked_at(file: BinaryIO) -> Mapping[str, Any]:
    num_bytes, size = os.fstat(file.fileno()).st_size, _size_of_webp(file.read(30))
    file.seek(0)
    if size is not None:  # Pillow would begin to decode it
        _waiting.append(lambda: open_image(file))
        return {"width": size[0], "height": size[1], "format": "WEBP", "mode": "RGBA", "bytes": num_bytes}
    image = open_image(file)
    _waiting.append(lambda: image)
    return {"width": image.width, "height": image.height, "format": image.format, "mode": image.mode, "bytes": num_bytes}


def _size_of_webp(start: bytes) -> tuple[int, int] | None:
    """Read the size that a WebP file claims; None for any other, and for one whose decoder will refuse it."""
    if len(start) < 30 or not (start.startswith(b"RIFF") and start[8:12] == b"WEBP"):
        return None
    if start[12:16] == b"VP8X":
        return 1 + int.from_bytes(start[24:27], "little"), 1 + int.from_bytes(start[27:30], "little")
    if start[12:16] == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(start[26:28], "little") & 0x3FFF, int.from_bytes(start[28:30], "little") & 0x3FFF


def squash(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Resize an image to a square, whatever its proportions: bilinear, averaging over the pixels that fall together.

    Args:
        image: Mode L.
        size: Side of the square in pixels.

    Returns:
        The pixels, (size, size).
    """
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def squash_mask(
    mask: Image.Image, *, image_width: int, image_height: int, size: int, protocol: Protocol
) -> npt.NDArray[np.uint8]:
    """Bring a lung mask onto its squashed image.

    Args:
        mask: Mode L; 255 is lung.
        image_width: Width of the mask's image as stored, in pixels.
        image_height: Height of the mask's image as stored, in pixels.
        size: Side of the square in pixels.
        protocol: `strict` resizes the mask to the image. `published` pads a smaller mask with black to the image's size
            first (256 to 299 pixels: 21 left and above, 22 right and below), as the paper's program did.

    Returns:
        The mask, (size, size), 0 to 255.
    """
    if protocol == "published" and mask.width <= image_width and mask.height <= image_height:
        padded = Image.new("L", (image_width, image_height))
        padded.paste(mask, ((image_width - mask.width) // 2, (image_height - mask.height) // 2))
        mask = padded
    return squash(mask, size)
