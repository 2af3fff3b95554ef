"""The release's tables `CLASS.metadata.xlsx`: where each image came from. They give nothing else, and nothing depends on them.

A table says itself how many cells it has, and its reader takes memory for them all, or ends the process. So a confined child
reads it.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from python_calamine import CalamineWorkbook

from tune_lung.confined import Answer, Confined, ConfinedError
from tune_lung.data.exclusion import NotReadError
from tune_lung.data.scan import IMAGE_SUFFIXES, Scan
from tune_lung.files import DamagedFileError, read_regular_file

_MOST_BYTES = 200_000_000
"""Size of the largest table that is read, packed and unpacked: the release's largest takes 2 MB for 10,000 rows."""
_MEMORY_BYTES = 2 * 10**9
"""What reading one may take: a million rows, the most that a sheet can have, take half of it."""
_CPU_SECONDS = 20
"""The same in processor time: a million rows take 7 s."""
_MOST_SOURCES_BYTES = 200_000_000
_NAME_HEADERS = ("file name", "filename", "file_name")
_SOURCE_HEADERS = ("url", "source")


@dataclass(frozen=True, kw_only=True)
class ClassMetadata:
    """What one class's table says."""

    readable: bool
    """Whether the table could be read."""
    sources: dict[str, str | None]
    """Source by file name, without ending and in small letters: Normal's rows are written NORMAL-1 for Normal-1.png."""
    sha256: str | None
    """Digest of the bytes that were read; None where its reader did not come back, or it is no file, or has too many."""


def metadata_file(root: Path, class_name: str) -> Path | None:
    """Find a class's table, beside its folder."""
    path = root / f"{class_name}.metadata.xlsx"
    try:
        is_inside = path.is_file() and path.resolve().is_relative_to(root.resolve())  # a link may lead anywhere
    except OSError:  # the class's own name is as long as names may be
        return None
    return path if is_inside else None


def read_metadata(path: Path) -> ClassMetadata:
    """Read one class's table, as `read_tables` does."""
    return read_tables({path.name: path})[path.name]


def read_tables(paths: Mapping[str, Path]) -> dict[str, ClassMetadata]:
    """Read tables, all in one child unless one ends it.

    Args:
        paths: .xlsx files with a row of headers, by any name.

    Returns:
        Their rows by the same name; `readable` is False, and there are none, where a file is damaged, takes too much time or
        memory, or has no column of names.

    Raises:
        NotReadError: The system could not read a file.
    """
    with Confined(__name__) as child:
        return {name: _read_in_child(child, path) for name, path in paths.items()}


def _read_in_child(child: Confined, path: Path) -> ClassMetadata:
    try:
        answer, content = child.ask(
            {"path": os.path.abspath(path)},  # noqa: PTH100 - links stay
            memory_bytes=_MEMORY_BYTES,
            cpu_seconds=_CPU_SECONDS,
            most_bytes=_MOST_SOURCES_BYTES,
        )
    except ConfinedError as error:
        if error.from_outside:
            raise NotReadError(f"the process that reads tables came to an end ({str(error).rstrip('.')})") from error
        return ClassMetadata(readable=False, sources={}, sha256=None)
    if "trouble" in answer:
        raise NotReadError(answer["trouble"])
    return ClassMetadata(readable=answer["readable"], sources=json.loads(content), sha256=answer["sha256"])


def answer(question: Mapping[str, Any]) -> Answer:
    """Answer as a confined child: whether the table `path` is `readable`, its `sha256`, and its sources by name as JSON.

    Of one that the system did not let be read, the `trouble`.
    """
    try:
        content = read_regular_file(Path(question["path"]), most_bytes=_MOST_BYTES)
    except DamagedFileError:
        return {"readable": False, "sha256": None}, b"{}"
    except OSError as error:
        return {"trouble": error.strerror}, b""
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        _require_table_size(content)
        with CalamineWorkbook.from_filelike(BytesIO(content)) as book:
            rows = book.get_sheet_by_index(0).to_python()
        return {"readable": True, "sha256": sha256}, json.dumps(_sources(rows)).encode()
    except MemoryError:
        raise
    except Exception:  # a damaged table can raise anything, and must not stop a search
        return {"readable": False, "sha256": sha256}, b"{}"


def _require_table_size(content: bytes) -> None:
    """Refuse an archive that would unpack to more than any table of images is; nothing of it is unpacked here."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
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


def tables_of(found: Scan) -> dict[str, ClassMetadata]:
    """Read the tables of a scan's classes, by the class's name, as `read_tables` does."""
    return read_tables({name: path for name in found.classes if (path := metadata_file(found.root, name)) is not None})


def sources_by_path(found: Scan, tables: Mapping[str, ClassMetadata]) -> dict[str, str | None]:
    """Give the source of every image of a scan, by its relative path; None where no table tells."""
    sources = {name: table.sources for name, table in tables.items()}
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
    tables = tables_of(found)
    own_by_class: dict[str, set[str]] = {name: set() for name in tables}
    for image in found.images:
        if image.class_name in own_by_class:
            own_by_class[image.class_name].add(_name_key(image.path.name))
    return [
        MetadataMismatch(
            class_name=name,
            readable=table.readable,
            rows_without_image=len(table.sources.keys() - own_by_class[name]),
            images_without_row=len(own_by_class[name] - table.sources.keys()),
        )
        for name, table in tables.items()
    ]
