"""What may happen to a file."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[_place_in_table(path) if path.suffix == ".parquet" else len(content) // 2] ^= 0x10
    path.write_bytes(content)


def _place_in_table(path: Path) -> int:
    """Find the last byte of the first column's values; a byte of what a file says of itself may be lost without harm."""
    try:
        column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    except (pa.ArrowException, OSError, IndexError):  # damaged before
        return 4
    return int(column.data_page_offset + column.total_compressed_size - 1)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: dict[str, Callable[[Path], None]] = {"one byte flipped": _flip, "the tail cut": _cut, "zero bytes": _empty}
