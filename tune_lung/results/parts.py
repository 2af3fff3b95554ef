"""The parts of a table: Parquet files with checksums, each written whole and shared by a few trials.

A part per trial makes tens of thousands of files of ten thousand trials, slow to read. To merge small parts into large ones
later is no way out: between the one rename that brings the large part and the removals of the small ones, whoever knows
nothing but the folder, such as pandas, sees rows twice or not at all, and a kill leaves it so. So nothing is merged here, and
nothing moves: a trial's rows lie in one part from the first writing to the last. Up to 16 trials share it, it bears the name
of the first, and it is replaced whole by one rename. At every moment, for every reader, each row is there once; a part that
was listed is still there when it is opened; after a kill it is as before or as after.

To write a trial reads and writes one part of bounded size: it costs the same however many trials there are. The bound is
also what damage may cost: one flipped byte takes one of a small run's trials with it, and never more than 16.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tune_lung.files import CheckWriter, DamagedFileError, anyone_may_write, read_regular_file, set_aside, whole_file
from tune_lung.results.layout import RunPaths
from tune_lung.results.pages import UnusualPagesError, unpacked

MOST_TRIALS = 16
"""Trials that share a part at most. With 100 epochs each, to replace it takes about 2 ms, and 10,000 trials make 660 parts."""

_MOST_BYTES = 2**29
"""Size of the largest part that is read: the images of 3 million files take as much."""
_MOST_FOOTER_BYTES = 2**23
_LEAST_MEMORY, _MOST_GROWTH = 2**20, 64
"""What a part may take in memory: so many bytes, and so many times its size. Ours take 3 times it, or less than the first."""
_BYTES_PER_VALUE = 8
_WEAK_COMPRESSIONS = ("SNAPPY", "UNCOMPRESSED")
"""What they can unpack to is bounded by their size: 22 times it at most."""
_NUMBERS, _TEXTS, _LISTS = "numbers", "texts", "lists"
_INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
_KINDS = {
    **{kind.id: _NUMBERS for kind in (*_INTEGERS, pa.float32(), pa.float64(), pa.bool_(), pa.null())},
    **{kind.id: _TEXTS for kind in (pa.string(), pa.large_string())},
    pa.list_(pa.int32()).id: _LISTS,
}

_log = logging.getLogger(__name__)


class DamagedPartError(Exception):
    """A part is not what was written."""


def write_part(path: Path, table: pa.Table, *, check_writer: CheckWriter = anyone_may_write) -> None:
    """Write a part, whole and with checksums; `check_writer` as in `whole_file`."""
    with whole_file(path, check_writer=check_writer) as temporary:
        # Dictionaries save nothing that the compression does not, and cost a third of the time.
        pq.write_table(table, temporary, write_page_checksum=True, use_dictionary=False)


def read_part(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a part, its checksums verified.

    Args:
        path: The part.
        schema: The table's columns; those that a part of an older version lacks are null.

    Raises:
        DamagedPartError: The bytes are not those of a part that was written.
        OSError: The file is not there, or the disk does not give it.
    """
    try:
        return read_bounded(read_regular_file(path, most_bytes=_MOST_BYTES), schema)
    except DamagedFileError as error:
        raise DamagedPartError(f"{path.name}: {error}") from error


class SharedParts:
    """One table's parts, for the one process that writes them."""

    def __init__(self, paths: RunPaths, table: str, schema: pa.Schema, *, check_writer: CheckWriter = anyone_may_write) -> None:
        """Find which part holds which trial.

        Args:
            paths: The run's paths.
            table: The table's name; its rows have a `trial_id`.
            schema: Its columns.
            check_writer: Raises when this process must not write any more.
        """
        self._paths, self._table, self._schema, self._check_writer = paths, table, schema, check_writer
        self._path_of = self._find_trials()
        self._newest = paths.schema_part(table)
        self._room_in_newest = 0

    def replace(self, trial_id: str, rows: pa.Table) -> None:
        """Put a trial's rows in the place of those that it had.

        Args:
            trial_id: The trial; it must be fit to name a part.
            rows: All its rows, in the table's schema.
        """
        path = self._path_for(trial_id)
        write_part(path, pa.concat_tables([self._others(path, trial_id), rows]), check_writer=self._check_writer)

    def _path_for(self, trial_id: str) -> Path:
        """Return a trial's part; a new trial goes to the newest part, or begins one when that is full."""
        own = self._paths.part(self._table, trial_id)
        if trial_id not in self._path_of:
            if self._room_in_newest == 0:
                self._newest, self._room_in_newest = own, min(MOST_TRIALS, 1 + len(self._path_of) // MOST_TRIALS)
            self._room_in_newest -= 1
            self._path_of[trial_id] = self._newest
        return self._path_of[trial_id]

    def _others(self, path: Path, trial_id: str) -> pa.Table:
        """Read the rows of the trials that share a part with this one; a damaged part is set aside."""
        try:
            rows = read_part(path, self._schema)
        except FileNotFoundError:
            return self._schema.empty_table()
        except DamagedPartError:
            self._check_writer()
            aside = set_aside(path, self._paths.damaged_part(self._table, path.stem))
            _log.warning(
                "%s/%s was damaged and is begun anew; what is left of it lies in %s.", self._table, path.name, aside.name
            )
            return self._schema.empty_table()
        return rows.filter(pc.not_equal(rows["trial_id"], trial_id))

    def _find_trials(self) -> dict[str, Path]:
        path_of: dict[str, Path] = {}
        for path in self._paths.parts(self._table):
            try:
                trial_ids = read_part(path, self._schema)["trial_id"]
            except DamagedPartError:
                continue  # whoever reads the run names it
            path_of |= dict.fromkeys(trial_ids.unique().to_pylist(), path)
        return path_of


def read_bounded(content: bytes, schema: pa.Schema) -> pa.Table:
    """Decode a Parquet file whose bytes may be a stranger's, in a memory that grows with their number alone.

    Args:
        content: The file.
        schema: The columns; those that it lacks are null, others are not decoded.

    Raises:
        DamagedFileError: It is no such file, or would take far more memory than any that was written for its rows.
    """
    if int.from_bytes(content[-8:-4], "little") > _MOST_FOOTER_BYTES:
        raise DamagedFileError("its footer is too large")
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        found = file.schema_arrow
        names = None if found.equals(schema) else _names_to_read(found, schema)
        dictionaries = _require_bounded(content, file.metadata, found, names)
        if dictionaries:
            file = pq.ParquetFile(
                pa.BufferReader(content),
                metadata=file.metadata,
                read_dictionary=dictionaries,
                page_checksum_verification=True,
            )
        table = _conformed(file.read(columns=names, use_threads=False), schema, most_bytes=_most_memory(content))
    except (pa.ArrowException, OSError, UnicodeDecodeError, UnusualPagesError) as error:  # a wrong checksum is an OSError
        raise DamagedFileError(str(error)) from error
    if len(table) != file.metadata.num_rows:
        raise DamagedFileError(f"{len(table)} rows instead of {file.metadata.num_rows}")
    return table


def _most_memory(content: bytes) -> int:
    return _LEAST_MEMORY + _MOST_GROWTH * len(content)


def _names_to_read(found: pa.Schema, schema: pa.Schema) -> list[str]:
    """Give the columns that a file has of a schema; an older version's may lack some, and have others."""
    lacking, unknown = set(schema.names) - set(found.names), set(found.names) - set(schema.names)
    # No checksum holds the names: a flipped bit makes another of one. Only another version has others by right.
    is_renamed = bool(lacking and unknown) and found.metadata == schema.metadata
    if is_renamed or len(set(found.names)) < len(found.names):
        raise pa.ArrowInvalid(f"the columns {', '.join(found.names)}")
    return [name for name in found.names if name not in unknown]


def _require_bounded(content: bytes, footer: pq.FileMetaData, found: pa.Schema, names: Sequence[str] | None) -> list[str]:
    """Refuse a file that would take too much memory; name the columns of texts that must stay dictionaries.

    Args:
        content: The file.
        footer: Its footer.
        found: The columns it has.
        names: Those that are wanted; None for all.
    """
    kinds = [_kind_of(field.type) for field in found]
    if len(kinds) != footer.num_columns:
        raise pa.ArrowInvalid("nested columns")
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    rows_of_groups = [group.num_rows for group in groups]
    if min(rows_of_groups, default=0) < 0:
        raise pa.ArrowInvalid("fewer than no rows")
    num_rows, dictionaries = sum(rows_of_groups), []
    num_bytes = _BYTES_PER_VALUE * len(kinds) * num_rows
    for index, (name, kind) in enumerate(zip(found.names, kinds, strict=True)):
        if names is not None and name not in names:
            continue
        chunks = [group.column(index) for group in groups]
        if kind == _NUMBERS and all(chunk.compression in _WEAK_COMPRESSIONS for chunk in chunks):
            continue
        pages = unpacked(content, chunks)
        num_bytes += pages.num_bytes
        if kind == _LISTS:
            num_bytes += _BYTES_PER_VALUE * pages.num_values
        elif pages.num_values != num_rows:
            raise pa.ArrowInvalid("columns of different lengths")
        elif kind == _TEXTS and pages.has_dictionary:
            dictionaries.append(name)
    if num_bytes > _most_memory(content):
        raise pa.ArrowInvalid(f"it unpacks to {num_bytes} bytes")
    return dictionaries


def _kind_of(column: pa.DataType) -> str:
    """Say what has to be looked at to know what a column takes: its rows, its texts, or the items of its lists."""
    if column.id == pa.lib.Type_DICTIONARY:
        column = column.value_type
    kind = _KINDS.get(column.id)
    if kind is None or (kind == _LISTS and _KINDS.get(column.value_type.id) != _NUMBERS):
        raise pa.ArrowInvalid(f"a column of type {column}")
    return kind


def _conformed(table: pa.Table, schema: pa.Schema, *, most_bytes: int) -> pa.Table:
    """Bring a part of an older version to today's columns: those it lacks are null."""
    if table.schema.equals(schema):
        return table
    columns = [
        _cast(table[field.name], field.type, most_bytes) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(column: pa.ChunkedArray, kind: pa.DataType, most_bytes: int) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        num_bytes = sum(pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0 for chunk in column.chunks)
        if num_bytes > most_bytes:
            raise pa.ArrowInvalid(f"its texts come to {num_bytes} bytes")
    return column.cast(kind)
