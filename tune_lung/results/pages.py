"""What the pages of a Parquet file unpack to, read from their own headers before anything is unpacked.

A file's footer says how many rows it has and how large they are, but its pages are believed when they say otherwise: a few
bytes can stand for a billion list items, a dictionary for one long text in every row. So the headers of all pages are read,
in the words of Parquet's format (parquet.thrift, Thrift's compact protocol), and added up. Anything unusual is refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
"""Kinds of pages."""
_HEADER_OF = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
"""The field of a page's header that belongs to its kind."""
_DELTA_BYTE_ARRAY = 7
"""Each text begins as the one before: a file of texts that grow unpacks to its square."""
_BOOLEANS, _INTEGERS, _BINARY, _STRUCT = (1, 2), (4, 5, 6), 8, 12
"""Types of Thrift's compact protocol, as far as there are any in a page's header."""


class UnusualPagesError(ValueError):
    """The pages of a column are not as any of ours."""


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """What a column unpacks to."""

    num_values: int
    """Its values, nulls and list items included."""
    num_bytes: int
    """What its pages take when they are no longer compressed."""
    has_dictionary: bool
    """Whether values are numbers of entries in a dictionary: what they come to is not known."""


def unpacked(content: bytes, chunks: Iterable[Any]) -> Unpacked:
    """Add up the pages of one column.

    Args:
        content: The file.
        chunks: The column's part of each row group, as pyarrow's metadata has it.

    Raises:
        UnusualPagesError: The pages are not where the footer says, do not hold as many values, or are packed in a way that
            tells nothing of their size.
    """
    num_values = num_bytes = 0
    has_dictionary = False
    for chunk in chunks:
        position, left = chunk.dictionary_page_offset or chunk.data_page_offset, chunk.num_values
        while left > 0:
            kind, size, packed_size, values, position = _page(content, position)
            num_bytes += size
            position += packed_size
            if kind == _DICTIONARY:
                has_dictionary = True
            else:
                num_values += values
                left -= values
        if left < 0:
            raise UnusualPagesError("More values than the footer says.")
    return Unpacked(num_values=num_values, num_bytes=num_bytes, has_dictionary=has_dictionary)


def _page(content: bytes, position: int) -> tuple[int, int, int, int, int]:
    """Read a page's header: its kind, its size unpacked and packed, its values, and where it ends."""
    try:
        header, end = _struct(content, position)
        kind, size, packed_size = header[1], header[2], header[3]
        own = header[_HEADER_OF[kind]]
        values, encoding = own[1], own[4 if kind == _DATA_V2 else 2]
    except (IndexError, KeyError, TypeError) as error:
        raise UnusualPagesError("A page without a whole header.") from error
    is_possible = 0 <= size < 2**31 and 0 <= packed_size <= len(content) - end and 0 <= values < 2**31
    if not is_possible or encoding == _DELTA_BYTE_ARRAY:
        raise UnusualPagesError("A page whose size cannot be told.")
    if values == 0 and kind != _DICTIONARY:
        raise UnusualPagesError("A page without values.")
    return kind, size, packed_size, values, end


def _struct(content: bytes, position: int) -> tuple[dict[int, Any], int]:
    """Read a struct's fields by number; texts are passed over. Ours rise, so that none is there twice."""
    fields: dict[int, Any] = {}
    number = 0
    while head := content[position]:
        if head < 16:
            raise UnusualPagesError("Fields that do not rise.")
        number += head >> 4
        kind, position = head & 15, position + 1
        if kind in _INTEGERS:
            value, position = _varint(content, position)
            fields[number] = (value >> 1) ^ -(value & 1)
        elif kind == _BINARY:
            length, position = _varint(content, position)
            position += length
        elif kind == _STRUCT:
            fields[number], position = _struct(content, position)
        elif kind not in _BOOLEANS:
            raise UnusualPagesError(f"A field of type {kind}.")
    return fields, position + 1


def _varint(content: bytes, position: int) -> tuple[int, int]:
    number = content[position]
    if number < 128:
        return number, position + 1
    number = shift = 0
    while shift < 64:
        byte = content[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
        shift += 7
    raise UnusualPagesError("A number without end.")
