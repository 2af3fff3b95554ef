"""The release's tables `CLASS.metadata.xlsx`: where each image came from. They give nothing else, and nothing depends on them."""

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from python_calamine import CalamineWorkbook

from tune_lung.data.scan import IMAGE_SUFFIXES, Scan

_MOST_BYTES = 200_000_000
"""Unpacked size of the largest table that is read: the release's largest takes 2 MB for 10,000 rows."""
_NAME_HEADERS = ("file name", "filename", "file_name")
_SOURCE_HEADERS = ("url", "source")


@dataclass(frozen=True, kw_only=True)
class ClassMetadata:
    """What one class's table says."""

    readable: bool
    """Whether the table could be read."""
    sources: dict[str, str | None]
    """Source by file name, without ending and in small letters: Normal's rows are written NORMAL-1 for Normal-1.png."""


def metadata_file(root: Path, class_name: str) -> Path | None:
    """Find a class's table, beside its folder."""
    path = root / f"{class_name}.metadata.xlsx"
    is_inside = path.is_file() and path.resolve().is_relative_to(root.resolve())  # a link may lead anywhere
    return path if is_inside else None


def read_metadata(path: Path) -> ClassMetadata:
    """Read a class's table.

    Args:
        path: An .xlsx file with a row of headers.

    Returns:
        Its rows; `readable` is False, and there are none, where the file is damaged or has no column of names.
    """
    try:
        _require_table_size(path)
        with CalamineWorkbook.from_path(path) as book:
            rows = book.get_sheet_by_index(0).to_python()
        return ClassMetadata(readable=True, sources=_sources(rows))
    except Exception:  # a damaged table can raise anything, and must not stop a search
        return ClassMetadata(readable=False, sources={})


def _require_table_size(path: Path) -> None:
    """Refuse an archive that would unpack to more than any table of images is; nothing of it is unpacked here."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > _MOST_BYTES:
        raise ValueError(f"The table would unpack to {size} bytes.")


def _sources(rows: Sequence[Sequence[object]]) -> dict[str, str | None]:
    headers = [str(value).strip().casefold() for value in rows[0]]
    name_column = next(column for column, header in enumerate(headers) if header in _NAME_HEADERS)
    source_column = next((column for column, header in enumerate(headers) if header in _SOURCE_HEADERS), None)
    named = [row for row in rows[1:] if row[name_column]]
    return {
        _name_key(str(row[name_column])): None if source_column is None else str(row[source_column]).strip() or None
        for row in named
    }


def _name_key(name: str) -> str:
    name = name.strip().rpartition("/")[2]
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - 20,000 names: a path object each costs as much as reading the table
    return (stem if suffix.lower() in IMAGE_SUFFIXES else name).casefold()


def sources_by_path(found: Scan) -> dict[str, str | None]:
    """Give the source of every image of a scan, by its relative path; None where no table tells."""
    tables = {name: path for name in found.classes if (path := metadata_file(found.root, name)) is not None}
    sources = {name: read_metadata(path).sources for name, path in tables.items()}
    return {image.relative: sources.get(image.class_name, {}).get(_name_key(image.path.name)) for image in found.images}


@dataclass(frozen=True, kw_only=True)
class MetadataMismatch:
    """How a class's table and its images differ."""

    class_name: str
    """The class."""
    readable: bool
    """Whether the table could be read."""
    rows_without_image: int
    """Rows that name a file that is not here."""
    images_without_row: int
    """Images that no row names."""


def metadata_mismatches(found: Scan) -> list[MetadataMismatch]:
    """Compare every class that has a table with it."""
    mismatches = []
    for name in found.classes:
        path = metadata_file(found.root, name)
        if path is not None:
            table = read_metadata(path)
            own = {_name_key(image.path.name) for image in found.images if image.class_name == name}
            mismatch = MetadataMismatch(
                class_name=name,
                readable=table.readable,
                rows_without_image=len(table.sources.keys() - own),
                images_without_row=len(own - table.sources.keys()),
            )
            mismatches.append(mismatch)
    return mismatches
