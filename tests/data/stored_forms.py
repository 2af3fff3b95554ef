"""Films of more than 8 bits in the forms that files have, written byte by byte where Pillow writes no such file."""

import struct
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.integer]


def png(values: Numbers, *, chunks: Mapping[bytes, bytes] | None = None) -> bytes:
    """A PNG file of 16 bits: (H, W) is grey, (H, W, 2) grey and transparency, (H, W, 3) and (H, W, 4) colours."""
    channels = values.shape[2] if values.ndim == 3 else 1
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = {b"IHDR": header, **(chunks or {}), b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts.items()
    )


def tiff(
    values: Numbers, *, bits: int = 16, photometric: int = 1, sample_format: int = 1, tags: Mapping[int, int] | None = None
) -> bytes:
    """A little-endian TIFF file of one strip; values of 12 bits are packed, two in three bytes."""
    channels = values.shape[2] if values.ndim == 3 else 1
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(np.uint32)
        whole = pairs[:, 0] << 12 | pairs[:, 1]
        strip = np.stack([whole >> 16, whole >> 8 & 255, whole & 255], axis=1).astype(np.uint8).tobytes()
    else:
        strip = values.astype(f"<u{bits // 8}").tobytes()
    entries = {256: values.shape[1], 257: values.shape[0], 259: 1, 262: photometric, 277: channels, 278: values.shape[0]}
    entries |= {279: len(strip), 339: sample_format, **(tags or {})}
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    of_bits = struct.pack("<HHII", 258, 4, 1, bits)
    if channels > 1:
        of_bits = struct.pack("<HHII", 258, 3, channels, start)
    extra = struct.pack(f"<{channels}H", *[bits] * channels) if channels > 1 else b""
    table = {number: struct.pack("<HHII", number, 4, 1, value) for number, value in entries.items()}
    table |= {258: of_bits, 273: struct.pack("<HHII", 273, 4, 1, start + len(extra))}
    packed = b"".join(table[number] for number in sorted(table))
    return struct.pack("<2sHIH", b"II", 42, 8, len(table)) + packed + bytes(4) + extra + strip


def pgm(values: Numbers, *, white: int) -> bytes:
    return b"P5 %d %d %d\n" % (values.shape[1], values.shape[0], white) + values.astype(">u2").tobytes()


def with_channels(values_HW: Numbers, *channels: int | None) -> Numbers:
    """Repeat grey values; a number stands for a channel of its own, such as full opacity."""
    return np.stack([values_HW if one is None else np.full_like(values_HW, one) for one in channels], axis=-1)


FORMS_OF_12_BITS: Mapping[str, Callable[[Numbers], bytes]] = {
    "grey.png": png,
    "colours.png": lambda values: png(with_channels(values, None, None, None)),
    "alpha.png": lambda values: png(with_channels(values, None, 65535)),
    "colours_and_alpha.png": lambda values: png(with_channels(values, None, None, None, 65535)),
    "16.tif": tiff,
    "packed.tif": lambda values: tiff(values, bits=12),
    "32.tif": lambda values: tiff(values, bits=32),
    "signed_32.tif": lambda values: tiff(values, bits=32, sample_format=2),
    "signed_16.tif": lambda values: tiff(values, sample_format=2),
    "colours.tif": lambda values: tiff(with_channels(values, None, None, None), photometric=2),
    "inverted.tif": lambda values: tiff(4095 - values, photometric=0),
    "all.pgm": lambda values: pgm(values, white=65535),
    "declared.pgm": lambda values: pgm(values, white=4095),
}
"""How a film of 12 bits may lie in a file, by an ending for its name."""
