"""Reading image files of which any may be hostile, by several threads, in a bounded memory and time.

What decoding costs follows from the pixels alone in a PNG or JPEG file of modest size and common make: those are decoded by
the thread that wants them. Any other file may be made to cost far more than it shows, as a JPEG file of thousands of scans or
segments, or an image written out in letters. So a confined child decodes it, and is ended when it takes too long. All images
that are being decoded share one memory.

What cannot be decoded is judged by its content alone, and by the child, which has the memory that it needs: a file that is gone,
a disk that does not answer, memory that the machine has not, end the reading instead. The digest is that of the very bytes that
were decoded, for a file may be replaced at any moment.
"""

import hashlib
import os
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from tune_lung.confined import Confined, ConfinedError
from tune_lung.data.decode import (
    MOST_IMAGE_BYTES,
    BadImageError,
    Grey,
    bad_images,
    has_numbers_of_16_bits,
    open_image,
    open_image_file,
    to_grey,
)
from tune_lung.data.depth import Depth, whites_of
from tune_lung.data.exclusion import ChangedError, ExclusionReason, NotReadError
from tune_lung.files import DamagedFileError, sha256_of_file

MEMORY_AT_ONCE = 10**9
"""Bytes that all images being decoded take together at most; who wants more waits."""
CPU_SECONDS = 10
"""Processor time that a child may take for one image; the largest honest ones take 5 s."""
_PLAIN_BYTES = 8 * 2**20
_PLAIN_PIXELS = 8_000_000
_PLAIN_SCANNED_PIXELS = 64_000_000
"""Pixels times scans of a JPEG file; a progressive one has about 10 scans."""
_MOST_PNG_CHUNKS = 4096
_MOST_OTHER_CHUNKS = 24
"""Chunks of a PNG file that are no pixels: each text unpacks to a megabyte at most, says Pillow."""
_MOST_SEGMENTS = 64
"""Segments of a JPEG file before its pixels."""
_MOST_EXIF_BYTES = 2**14
"""Of EXIF data: their table may name so many bytes once for each twelve of itself."""
_TEXT_OF_EXIF = b"Raw profile type"
_BYTES_PER_GREY_PIXEL = 3
"""Of the result, on its way from a child too."""
_BYTES_OF_NUMBER = 4
"""Of a pixel of a result of more than 8 bits."""
_BYTES_PER_WEBP_PIXEL = 22
"""Of a decoder that keeps two canvases, and their copies."""
_HEADER_BYTES = 32 * 2**20
_PNG_START, _JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_START_OF_SCAN = b"\xff\xda"


@dataclass(frozen=True, kw_only=True)
class GreyImage(Grey):
    """A decoded file."""

    stored_mode: str
    """How it is stored, in Pillow's words: L, RGB, P, I;16, ..."""
    sha256: str
    """Digest of the bytes that were decoded."""


def read_grey(path: Path) -> Image.Image:
    """Decode one file to 8-bit grey, as `GreyReader` does, as if it were a data set of its own."""
    with GreyReader() as reader, reader.read(path) as grey:
        if grey.depth is None:
            return grey.image
        return Image.fromarray(whites_of([grey.depth]).to_8_bits(np.asarray(grey.image), grey.depth))


@contextmanager
def memory_needed() -> Iterator[None]:
    """Turn a lack of memory into a NotReadError: it is no image's fault."""
    try:
        yield
    except MemoryError as error:
        raise NotReadError("memory ran out") from error


class GreyReader:
    """Decodes files to grey for several threads."""

    def __init__(self) -> None:
        """Start without a child."""
        self._room = _Room(MEMORY_AT_ONCE)
        self._children: list[Confined] = []
        self._idle: list[Confined] = []
        self._is_over = False
        self._changing = threading.Lock()

    @contextmanager
    def read(self, path: Path, *, beside_bytes: int = 0) -> Iterator[GreyImage]:
        """Decode a whole file; its share of the memory is held until the block ends.

        Args:
            path: The file.
            beside_bytes: What the block takes beside the image.

        Yields:
            The image.

        Raises:
            BadImageError: The file cannot be used; the error carries the reason, and the digest of what was found so.
            NotReadError: It could not be read, for no fault of its content.
        """
        plain = _opened_if_plain(path)
        if plain is not None:
            image, content = plain
            wanted = image.width * image.height * _bytes_per_pixel(image.format, image.mode, has_numbers_of_16_bits(image))
            with self._room.held(wanted + beside_bytes):
                grey = _grey_if_good(image, content)
                if grey is not None:
                    yield grey
                    return
        with self._read_in_child(path, beside_bytes) as grey:
            yield grey

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the children; a thread that still waits for one, or for memory, gets a ConfinedError."""
        with self._changing:
            self._is_over = True
            for child in self._children:
                child.interrupt()
            for child in self._idle:
                child.close()
        self._room.close()

    @contextmanager
    def _read_in_child(self, path: Path, beside_bytes: int) -> Iterator[GreyImage]:
        with self._child() as child:
            opened, _ = _answer(child, path, {"path": os.path.abspath(path)}, memory_bytes=_HEADER_BYTES)  # noqa: PTH100 - links stay
            width, height = opened["width"], opened["height"]
            per_pixel = _bytes_per_pixel(opened["format"], opened["mode"], opened["has_numbers_of_16_bits"])
            wanted = width * height * per_pixel + opened["bytes"]
            with self._room.held(wanted + beside_bytes) as held:
                memory_bytes = _HEADER_BYTES + min(wanted, held)
                most_bytes = width * height * _BYTES_OF_NUMBER
                decoded, pixels = _answer(child, path, {}, memory_bytes=memory_bytes, most_bytes=most_bytes)
                depth = None if decoded["depth"] is None else _depth(decoded["depth"])
                mode, size = "L" if depth is None else "F", tuple(decoded["size"])
                if sorted(size) != sorted((width, height)):  # it may be upright now
                    raise BadImageError(ExclusionReason.DAMAGED, sha256=decoded["sha256"])
                yield GreyImage(
                    image=Image.frombuffer(mode, size, pixels, "raw", mode, 0, 1),
                    depth=depth,
                    stored_mode=decoded["mode"],
                    sha256=decoded["sha256"],
                )

    @contextmanager
    def _child(self) -> Iterator[Confined]:
        """Lend a child to the thread that asks."""
        with self._changing:
            if self._is_over:
                raise ConfinedError("Interrupted.", is_over_bounds=False, from_outside=True)
            child = self._idle.pop() if self._idle else Confined("tune_lung.data.decode")
            if child not in self._children:
                self._children.append(child)
        try:
            yield child
        finally:
            self._take_back(child)

    def _take_back(self, child: Confined) -> None:
        with self._changing:
            if self._is_over:
                child.close()
            else:
                self._idle.append(child)


class _Room:
    """Memory that threads share: who wants more than there is waits."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = self._free = num_bytes
        self._is_closed = False
        self._changed = threading.Condition()

    @contextmanager
    def held(self, num_bytes: int) -> Iterator[int]:
        """Hold so many bytes, all at most."""
        num_bytes = min(num_bytes, self._num_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or num_bytes <= self._free)
            if self._is_closed:
                raise ConfinedError("Interrupted.", is_over_bounds=False, from_outside=True)
            self._free -= num_bytes
        try:
            yield num_bytes
        finally:
            with self._changed:
                self._free += num_bytes
                self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def _answer(
    child: Confined, path: Path, question: Mapping[str, Any], *, memory_bytes: int, most_bytes: int = 0
) -> tuple[dict[str, Any], bytes]:
    try:
        answer, content = child.ask(question, memory_bytes=memory_bytes, cpu_seconds=CPU_SECONDS, most_bytes=most_bytes)
    except ConfinedError as error:
        if error.from_outside:
            raise NotReadError(f"the process that decodes images came to an end ({str(error).rstrip('.')})") from error
        reason = ExclusionReason.TOO_COSTLY if error.is_over_bounds else ExclusionReason.DAMAGED
        raise BadImageError(reason, sha256=_sha256_of(path)) from error
    except OSError as error:
        raise NotReadError(f"no process can be started that decodes images ({error.strerror})") from error
    if "trouble" in answer:
        raise NotReadError(answer["trouble"])
    if "reason" in answer:
        raise BadImageError(ExclusionReason(answer["reason"]), sha256=answer["sha256"])
    return answer, content


def _depth(answer: Mapping[str, Any]) -> Depth:
    return Depth(**{**answer, "declared": tuple(answer["declared"])})


def _sha256_of(path: Path) -> str:
    """Digest a file whose decoder did not come back."""
    with bad_images():
        try:
            return sha256_of_file(path, most_bytes=MOST_IMAGE_BYTES)
        except DamagedFileError as error:  # it was a file of fewer bytes when it was opened
            raise ChangedError from error


def _bytes_per_pixel(kind: str | None, mode: str, has_numbers_of_16_bits: bool) -> int:
    """Count what an image of a format and a mode takes while it becomes grey, for each of its pixels."""
    if kind == "WEBP":
        return _BYTES_PER_WEBP_PIXEL
    if has_numbers_of_16_bits:  # decoded twice
        return 2 * 4 + _BYTES_PER_GREY_PIXEL * _BYTES_OF_NUMBER
    if mode.startswith("I"):
        return (2 if mode.startswith("I;16") else 4) + _BYTES_PER_GREY_PIXEL * _BYTES_OF_NUMBER
    stored = 1 if mode in ("1", "L", "P") else 4
    coefficients = 2 * Image.getmodebands(mode) if kind == "JPEG" else 0  # of all scans until the last
    return stored + coefficients + _BYTES_PER_GREY_PIXEL


def _opened_if_plain(path: Path) -> tuple[Image.Image, bytes] | None:
    """Open an image that costs no more than its pixels show, and give its bytes; None where it takes a child to find out."""
    with open_image_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _PLAIN_BYTES:
            return None
        with bad_images(), memory_needed():
            content = file.read(size)
    if content.startswith(_PNG_START):
        kind, num_scans = "PNG", int(_is_plain_png(content))
    else:
        kind, num_scans = "JPEG", content.count(_START_OF_SCAN) if _is_plain_jpeg(content) else 0
    if num_scans == 0:
        return None
    try:
        with memory_needed():
            image = open_image(BytesIO(content), (kind,))
    except BadImageError:
        return None
    num_pixels = image.width * image.height
    is_plain = num_pixels <= _PLAIN_PIXELS and num_pixels * num_scans <= _PLAIN_SCANNED_PIXELS
    return (image, content) if is_plain else None


def _grey_if_good(image: Image.Image, content: bytes) -> GreyImage | None:
    """Decode an opened image; None where it is a bad one, as far as this process can tell."""
    mode = image.mode
    try:
        with memory_needed():
            grey = to_grey(image, content)
    except BadImageError:
        return None
    return GreyImage(image=grey.image, depth=grey.depth, stored_mode=mode, sha256=hashlib.sha256(content).hexdigest())


def _is_plain_png(content: bytes) -> bool:
    """Whether a PNG file has no more chunks than writers make; what is missing at its end does not count."""
    position, num_others = len(_PNG_START), 0
    for _ in range(_MOST_PNG_CHUNKS):
        if position + 8 > len(content):
            return True
        length, kind = struct.unpack_from(">I4s", content, position)
        num_others += kind != b"IDAT"
        if kind == b"IEND":
            return True
        is_text_of_exif = kind in (b"tEXt", b"zTXt", b"iTXt") and content.startswith(_TEXT_OF_EXIF, position + 8)
        if num_others > _MOST_OTHER_CHUNKS or is_text_of_exif or (kind == b"eXIf" and length > _MOST_EXIF_BYTES):
            return False
        position += 12 + length
    return False


def _is_plain_jpeg(content: bytes) -> bool:
    """Whether a JPEG file has no more segments before its pixels than writers make, and nothing between them."""
    position, num_exif_bytes = len(_JPEG_START), 0
    if not content.startswith(_JPEG_START):
        return False
    for _ in range(_MOST_SEGMENTS):
        if content[position : position + 1] != b"\xff" or position + 4 > len(content):
            return False
        if content.startswith(_START_OF_SCAN, position):
            return num_exif_bytes <= _MOST_EXIF_BYTES
        length = int.from_bytes(content[position + 2 : position + 4])
        num_exif_bytes += length if content.startswith(b"Exif", position + 4) else 0
        position += 2 + length
    return False
