"""Decode radiographs of any stored form to grey, upright, and squash them to a square.

Images of 8 bits become mode L. Those of more keep their numbers, as mode F, with their `Depth`: what is white in them is settled
for the whole data set.

Pillow only: torchvision's decoder ends the process on some damaged files. Only a full decode proves that a file is an image.
"""

import errno
import hashlib
import os
import struct
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from tune_lung.config import Protocol
from tune_lung.confined import Answer
from tune_lung.data.depth import Depth, white_of_depth
from tune_lung.data.exclusion import ExclusionReason, NotReadError
from tune_lung.files import DamagedFileError, open_regular_file

PIXEL_LIMIT = 64_000_000
"""Pixels of the largest image that is decoded; the largest X-ray detectors have about 20 million."""
SIDE_LIMIT = 65_535
"""Pixels of its longest side, as in a JPEG file: to resize a line of 64 million pixels takes gigabytes."""
MOST_IMAGE_BYTES = 2**29
"""Size of the largest image file that is read: 64 million pixels of four values of 16 bits, and some more."""
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # no EPS or PDF: decoding those starts other programs
_PIXELS_AT_ONCE = 2**20
_ERRORS_OF_CONTENT = (errno.EINVAL, errno.EOVERFLOW)
"""What a file of impossible places in it makes the system say."""
_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT, _MAX_SAMPLE, _SMAX_SAMPLE = 262, 258, 339, 281, 341
"""Tags of TIFF."""
_WHITE_IS_ZERO = 0
_UNSIGNED = 1
_ALL_16_BITS = 65535
_LARGEST_NUMBERS = (2**15 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1)
"""That a file of 16 or 32 bits, with a sign or without, can hold."""
_PNG_START = b"\x89PNG\r\n\x1a\n"


class BadImageError(Exception):
    """A file that cannot be used as an image. Its text is the reason, never the file's name."""

    def __init__(self, reason: ExclusionReason, *, sha256: str | None = None) -> None:
        """Take the reason, and the digest of the bytes that were found so; None where they are too many, or no file's."""
        super().__init__(reason.value)
        self.reason = reason
        self.sha256 = sha256


@dataclass(frozen=True, kw_only=True)
class Grey:
    """A decoded image."""

    image: Image.Image
    """In its own size, upright: mode L, or F with the numbers that are stored."""
    depth: Depth | None
    """Of an image of mode F; None for one of 8 bits."""


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
    """Turn whatever a damaged file raises, from struct.error to KeyError, into a BadImageError.

    Raises:
        BadImageError: The content is to blame.
        NotReadError: The system could not read the file.
        MemoryError: There is too little.
    """
    try:
        yield
    except (BadImageError, NotReadError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, *_ERRORS_OF_CONTENT):
            raise NotReadError(os.strerror(error.errno)) from error
        if isinstance(error, OSError) and "out of memory" in str(error):  # so says a decoder of Pillow's
            raise MemoryError from error
        raise BadImageError(_reason(error)) from error


def open_image_file(path: Path) -> BinaryIO:
    """Open a file that may be an image.

    Raises:
        BadImageError: It is no file, has no bytes, or too many.
        NotReadError: It cannot be read.
    """
    with bad_images():
        try:
            file = open_regular_file(path, most_bytes=MOST_IMAGE_BYTES)
        except DamagedFileError:
            reason = ExclusionReason.TOO_LARGE if path.is_file() else ExclusionReason.NOT_A_FILE
            raise BadImageError(reason) from None
        if os.fstat(file.fileno()).st_size == 0:
            file.close()
            raise BadImageError(ExclusionReason.EMPTY, sha256=hashlib.sha256().hexdigest())
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


def to_grey(image: Image.Image, content: bytes) -> Grey:
    """Decode a whole image to grey, and let go of what it was decoded from.

    Transparent pixels count as black. It is turned as its EXIF orientation says.

    Args:
        image: From `open_image`.
        content: The bytes that it was opened from.

    Returns:
        The image, and its depth.

    Raises:
        BadImageError: It cannot be decoded.
    """
    with bad_images(), image:
        stored = _Stored.of(image, content)
        image.load()
        grey, depth = stored.numbers(image) if stored.has_numbers else (_grey_of_8_bits(image), None)
        # A TIFF file is turned already.
        grey.info = {} if image.format == "TIFF" else {key: image.info[key] for key in _ORIENTING if key in image.info}
    _turn_upright(grey)
    return Grey(image=grey, depth=depth)


def _bands(image: Image.Image) -> Iterator[tuple[Image.Image, tuple[int, int, int, int]]]:
    """Cut an image into bands, each with its place: what comes between an image and its grey takes four times the memory."""
    num_rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, num_rows):
        box = (0, top, image.width, min(image.height, top + num_rows))
        yield (image if box == (0, 0, *image.size) else image.crop(box)), box


def _grey_of_8_bits(image: Image.Image) -> Image.Image:
    grey = Image.new("L", image.size)
    for band, box in _bands(image):
        grey.paste(_grey(band), box)
    return grey


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """How an image stores its numbers, where they have more than 8 bits."""

    has_numbers: bool
    """Whether they have."""
    declared: tuple[int, ...]
    is_inverted: bool
    is_unsigned: bool
    """Of 32 bits; Pillow takes all for signed."""
    lower: Image.Image | None
    """The lower bytes of colours, of which Pillow gives the upper ones; None for grey alone."""
    is_grey_and_alpha: bool
    """Whether `lower` is grey and transparency, with both bytes of each."""

    @classmethod
    def of(cls, image: Image.Image, content: bytes) -> Self:
        """Read it from an image that is not decoded yet."""
        is_tiff, lower = image.format == "TIFF", _lower_bytes(image, content)
        return cls(
            has_numbers=lower is not None or image.mode.startswith("I"),
            declared=_declared_whites(image, content),
            is_inverted=is_tiff and _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO,
            is_unsigned=is_tiff and _tag(image, _SAMPLE_FORMAT) in (None, _UNSIGNED),
            lower=lower,
            is_grey_and_alpha=_raw_mode(image) == _GREY_AND_ALPHA,
        )

    def numbers(self, image: Image.Image) -> tuple[Image.Image, Depth]:
        """Give the numbers of the image, decoded by now, as mode F, and their depth."""
        grey, maxima = Image.new("F", image.size), np.zeros(2, np.int64)
        for band, box in _bands(image):
            if self.lower is None:
                values_HW, largest = _numbers(band, is_unsigned=self.is_unsigned)
            else:
                values_HW, largest = _numbers_of_colours(band, self.lower.crop(box), is_grey=self.is_grey_and_alpha)
            grey.paste(Image.fromarray(values_HW), box)
            maxima = np.maximum(maxima, largest)
        maximum, film_maximum = maxima.tolist()
        return grey, Depth(maximum=maximum, film_maximum=film_maximum, declared=self.declared, is_inverted=self.is_inverted)


_ORIENTING = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
"""Where Pillow looks for an orientation."""


def _turn_upright(grey: Image.Image) -> None:
    """Turn an image as the EXIF data that it was given say; data that cannot be read say nothing."""
    if not grey.info:
        return
    try:
        ImageOps.exif_transpose(grey, in_place=True)
    except MemoryError:
        raise
    except Exception:  # noqa: S110 - from struct.error to SyntaxError
        pass
    grey.info = {}


def _declared_whites(image: Any, content: bytes) -> tuple[int, ...]:
    """Tell what may be white by what an image of more than 8 bits, not decoded yet, says of its depth."""
    if image.format == "PNG":
        bits = _significant_bits(content)
        return (2**bits - 1, _ALL_16_BITS) if bits is not None and 0 < bits < 16 else ()
    if image.format == "TIFF":
        stored = _tag(image, _BITS)
        if stored is not None and 8 < stored < 16:
            return (2**stored - 1,)
        said = _tag(image, _SMAX_SAMPLE) or _tag(image, _MAX_SAMPLE) or 0
        return white_of_depth(said) if said not in (_ALL_16_BITS, 2**32 - 1) else ()  # that is what it is by default
    if image.format == "PPM" and image.tile and image.tile[0].codec_name != "raw":
        most = image.tile[0].args[-1]
        return (_ALL_16_BITS,) if most != _ALL_16_BITS else ()  # Pillow scales by what the file declares
    return ()


def _tag(image: Any, number: int) -> int | None:
    """Read the first number of a TIFF file's tag; None where it has none."""
    value = image.tag_v2.get(number)
    first = value[0] if isinstance(value, tuple) and value else value
    return int(first) if isinstance(first, int | float) and first == first // 1 else None


def _significant_bits(content: bytes) -> int | None:
    """Read from a PNG file how many bits of its numbers the writer had (sBIT, first channel); None where it does not say."""
    position = len(_PNG_START)
    while position + 9 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"sBIT":
            return content[position + 8]
        if kind in (b"IDAT", b"IEND"):
            break
        position += 12 + length
    return None


def _reason(error: Exception) -> ExclusionReason:
    if isinstance(error, UnidentifiedImageError):
        return ExclusionReason.NOT_AN_IMAGE
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ExclusionReason.TOO_LARGE
    return ExclusionReason.TRUNCATED if "truncated" in str(error).lower() else ExclusionReason.DAMAGED


def _grey(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadImageError(ExclusionReason.UNSUPPORTED_PIXELS)
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("L")
    return image if image.mode == "L" else image.convert("RGB").convert("L")


def _largest_numbers(values: npt.NDArray[np.integer]) -> tuple[int, int]:
    """Give the largest number, and the largest but those that a file can at most hold."""
    largest = int(values.max())
    if largest not in _LARGEST_NUMBERS:
        return largest, largest
    return largest, int(values.max(initial=0, where=values < largest))


def _numbers(image: Image.Image, *, is_unsigned: bool) -> tuple[npt.NDArray[np.float32], tuple[int, int]]:
    """Give the numbers of a grey image of more than 8 bits, and the largest; `convert("L")` would cut all over 255 to white."""
    values_HW: npt.NDArray[np.integer] = np.asarray(image)
    if values_HW.dtype == np.int32 and is_unsigned:
        values_HW = values_HW.view(np.uint32)
    if values_HW.min() < 0:
        raise BadImageError(ExclusionReason.UNSUPPORTED_PIXELS)
    return values_HW.astype(np.float32), _largest_numbers(values_HW)


_GREY_AND_ALPHA = "LA;16B"
_WEIGHTS_OF_COLOURS = np.array([19595, 38470, 7471], np.uint32)
"""Pillow's, of 65536."""
_OTHER_BYTES: Mapping[str, str] = {
    _GREY_AND_ALPHA: "RGBA",
    **{f"{colours};16{one}": f"{colours};16{other}" for colours in ("RGB", "RGBA") for one, other in ("BL", "LB")},
    **{f"{colours};16N": f"{colours};16{'B' if sys.byteorder == 'little' else 'L'}" for colours in ("RGB", "RGBA")},
}
"""How Pillow is told to read the lower byte of each number, of which it reads the upper one. Of grey with transparency it can
read all four bytes of a pixel."""


def has_numbers_of_16_bits(image: Image.Image) -> bool:
    """Whether an image, not decoded yet, has colours or transparency in numbers that Pillow would cut to their upper bytes."""
    return _raw_mode(image) in _OTHER_BYTES


def _raw_mode(image: Image.Image) -> str | None:
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else ()
    arguments = tiles[0].args if tiles else None
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else None


def _lower_bytes(image: Image.Image, content: bytes) -> Image.Image | None:
    """Decode the lower bytes of an image's numbers, where Pillow gives the upper ones alone; None for any other image."""
    other = _OTHER_BYTES.get(_raw_mode(image) or "")
    if other is None:
        return None
    lower: Any = open_image(BytesIO(content), (str(image.format),))
    lower.tile = [tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other) for tile in lower.tile]
    lower.load()
    opened: Image.Image = lower
    return opened


def _numbers_of_colours(
    upper: Image.Image, lower: Image.Image, *, is_grey: bool
) -> tuple[npt.NDArray[np.float32], tuple[int, int]]:
    """Put the bytes of 16-bit numbers together to grey, by Pillow's weights, and give the largest numbers of all.

    Transparent pixels count as black.

    Args:
        upper: The upper bytes, RGB or RGBA.
        lower: The lower bytes.
        is_grey: Whether `lower` is grey and transparency with both bytes of each.
    """
    of_lower = np.asarray(lower).astype(np.uint32)
    if is_grey:
        grey_HW, alpha_HW = of_lower[..., 0] << 8 | of_lower[..., 1], of_lower[..., 2] << 8 | of_lower[..., 3]
        largest = _largest_numbers(grey_HW)
    else:
        both = np.asarray(upper).astype(np.uint32) << 8 | of_lower
        largest = _largest_numbers(both[..., :3])
        grey_HW = (both[..., :3] @ _WEIGHTS_OF_COLOURS + 2**15) >> 16
        alpha_HW = both[..., 3] if both.shape[-1] == 4 else np.full_like(grey_HW, _ALL_16_BITS)
    return (grey_HW * (alpha_HW / np.float32(_ALL_16_BITS))).astype(np.float32), largest


_waiting: list[BinaryIO] = []
"""In a confined child: the file that is to be decoded next."""


def answer(question: Mapping[str, Any]) -> Answer:
    """Answer as a confined child: look at the image `path`, or without one decode what was looked at.

    Returns:
        At first `width`, `height`, `format`, `mode`, `has_numbers_of_16_bits` and the file's `bytes`, so that memory can be
        allowed for; then `mode`, `size` and `depth`, the `sha256` of the bytes that were decoded, and the pixels. Of an image
        that cannot be used, the `reason`, and the `sha256` of what was found so; of one that could not be read, the `trouble`.
    """
    warnings.simplefilter("ignore")
    try:
        return _looked_at(Path(question["path"])) if "path" in question else _decoded(_waiting.pop())
    except BadImageError as error:
        return {"reason": error.reason, "sha256": error.sha256}, b""
    except NotReadError as error:
        return {"trouble": error.cause}, b""


def _looked_at(path: Path) -> Answer:
    _waiting.clear()
    file = open_image_file(path)
    num_bytes = os.fstat(file.fileno()).st_size
    with bad_images():
        size = _size_of_webp(file.read(30))
        file.seek(0)
    _waiting.append(file)
    if size is not None:  # Pillow would begin to decode it
        return {
            "width": size[0],
            "height": size[1],
            "format": "WEBP",
            "mode": "RGBA",
            "bytes": num_bytes,
            "has_numbers_of_16_bits": False,
        }, b""
    try:
        image = open_image(file)
    except BadImageError as error:
        with bad_images():
            file.seek(0)
            raise BadImageError(
                error.reason, sha256=hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()
            ) from error
    return {
        "width": image.width,
        "height": image.height,
        "format": image.format,
        "mode": image.mode,
        "bytes": num_bytes,
        "has_numbers_of_16_bits": has_numbers_of_16_bits(image),
    }, b""


def _decoded(file: BinaryIO) -> Answer:
    with file, bad_images():
        file.seek(0)
        content = file.read(os.fstat(file.fileno()).st_size)
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        image = open_image(BytesIO(content))
        mode = image.mode
        grey = to_grey(image, content)
    except BadImageError as error:
        raise BadImageError(error.reason, sha256=sha256) from error
    del content, image
    depth = None if grey.depth is None else asdict(grey.depth)
    return {"mode": mode, "size": grey.image.size, "depth": depth, "sha256": sha256}, grey.image.tobytes()


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


def squash(image: Image.Image, size: int) -> npt.NDArray[np.uint8 | np.float32]:
    """Resize an image to a square, whatever its proportions: bilinear, averaging over the pixels that fall together.

    Args:
        image: Mode L or F.
        size: Side of the square in pixels.

    Returns:
        The pixels, (size, size), uint8 or float32.
    """
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def squash_mask(
    mask: Image.Image, *, image_width: int, image_height: int, size: int, protocol: Protocol
) -> npt.NDArray[np.uint8 | np.float32]:
    """Bring a lung mask onto its squashed image.

    Args:
        mask: Mode L or F; white is lung.
        image_width: Width of the mask's image as stored, in pixels.
        image_height: Height of the mask's image as stored, in pixels.
        size: Side of the square in pixels.
        protocol: `strict` resizes the mask to the image. `published` pads a smaller mask with black to the image's size
            first (256 to 299 pixels: 21 left and above, 22 right and below), as the paper's program did.

    Returns:
        The mask, (size, size), uint8 or float32.
    """
    if protocol == "published" and mask.width <= image_width and mask.height <= image_height:
        padded = Image.new(mask.mode, (image_width, image_height))
        padded.paste(mask, ((image_width - mask.width) // 2, (image_height - mask.height) // 2))
        mask = padded
    return squash(mask, size)
