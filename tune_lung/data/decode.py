"""Decode radiographs of any stored form to 8-bit grey, and squash them to a square.

Pillow only: torchvision's decoder ends the process on some damaged files. Only a full decode proves that a file is an image.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from tune_lung.config import Protocol
from tune_lung.data.exclusion import ExclusionReason

PIXEL_LIMIT = 64_000_000
"""Pixels of the largest image that is decoded; the largest X-ray detectors have about 20 million."""
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # no EPS or PDF: decoding those starts other programs


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


def read_grey(path: Path) -> Image.Image:
    """Decode a whole file to 8-bit grey.

    Transparent pixels count as black; 16-bit values are scaled, not cut off.

    Args:
        path: The file.

    Returns:
        An image of mode L, in its own size.

    Raises:
        BadImageError: The file cannot be used; the error carries the reason.
    """
    try:
        with _opened(path) as image:
            image.load()
            return _grey(image)
    except BadImageError:
        raise
    except Exception as error:  # a damaged file can raise anything, from struct.error to KeyError
        raise BadImageError(_reason(error)) from error


def _opened(path: Path) -> Image.Image:
    if path.stat().st_size == 0:
        raise BadImageError(ExclusionReason.EMPTY)
    image = Image.open(path, formats=_FORMATS)
    if image.width * image.height > PIXEL_LIMIT:
        image.close()
        raise BadImageError(ExclusionReason.TOO_LARGE)
    return image


def stored_mode(path: Path) -> str:
    """Tell how an image that `read_grey` accepts is stored, in Pillow's words: L, RGB, P, I;16, ..."""
    with Image.open(path, formats=_FORMATS) as image:
        return image.mode


def _reason(error: Exception) -> ExclusionReason:
    if isinstance(error, UnidentifiedImageError):
        return ExclusionReason.NOT_AN_IMAGE
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning | MemoryError):
        return ExclusionReason.TOO_LARGE
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
