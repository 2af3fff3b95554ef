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

import atexit
import logging
import os
import threading
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tune_lung.confined import Answer, Confined, ConfinedError, bound_memory
from tune_lung.errors import InputError, is_of_the_system
from tune_lung.files import CheckWriter, DamagedFileError, anyone_may_write, read_regular_file, set_aside, whole_file
from tune_lung.results.layout import RunPaths

MOST_TRIALS = 16
"""Trials that share a part at most. With 100 epochs each, to replace it takes about 2 ms, and 10,000 trials make 660 parts."""

_MOST_BYTES = 2**29
"""Size of the largest part that is read: the images of 3 million files take as much."""
_LEAST_DECODED, _MOST_GROWTH = 2**20, 64
"""What the rows of a part may take: so many bytes, and so many times its size. Ours take 3 times it, or less than the first."""
_LEAST_MEMORY, _MEMORY_GROWTH = 2**29, 16
"""The same of a child that decodes one."""
_LEAST_CPU_SECONDS, _BYTES_PER_CPU_SECOND = 20, 2**22
_MEASURED_SINCE = {"concurrent_trials": "started"}
"""Columns that versions before 3 filled with what was asked for, each with one that came when it was measured first."""

_log = logging.getLogger(__name__)
_child, _reading = Confined(__name__), threading.Lock()
atexit.register(_child.close)


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
        schema: The table's columns; those that a part of an older version lacks, or did not measure, are null.

    Raises:
        DamagedPartError: The bytes are not those of a part that was written.
        OSError: The file is not there, or the disk does not give it.
    """
    try:
        content = read_regular_file(path, most_bytes=_MOST_BYTES)
    except DamagedFileError as error:
        raise DamagedPartError(str(error)) from error
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        table = _conformed(file.read(use_threads=False), schema)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # a wrong checksum is an OSError
        raise DamagedPartError(f"{path.name}: {error}") from error
    if len(table) != file.metadata.num_rows:
        raise DamagedPartError(f"{path.name}: {len(table)} rows instead of {file.metadata.num_rows}")
    return table


def read_parts(paths: Sequence[Path], schema: pa.Schema) -> tuple[pa.Table, list[Path]]:
    """Read parts that may be a stranger's, whatever memory and time they would take.

    What a part unpacks to shows only while it is: a dictionary may stand for one long text in every row, a few bytes for a
    billion list items, and some damage ends the process. So a confined child reads them, all at once; where it does not come
    through, halves of them, down to the part that it fails at.

    Args:
        paths: The parts.
        schema: The table's columns.

    Returns:
        The rows of all parts in their order, and the parts that are damaged, or far larger than any that was written.

    Raises:
        InputError: The disk, the machine's memory or somebody who ended the child is to blame, not what the parts hold.
    """
    try:
        with _reading:
            return _read_in_child(paths, schema)
    except ConfinedError as error:
        if error.from_outside:
            raise _not_read(str(error)) from error
        if len(paths) == 1:
            return schema.empty_table(), list(paths)
    middle = len(paths) // 2
    first, second = read_parts(paths[:middle], schema), read_parts(paths[middle:], schema)
    return pa.concat_tables([first[0], second[0]]), [*first[1], *second[1]]


def _read_in_child(paths: Sequence[Path], schema: pa.Schema) -> tuple[pa.Table, list[Path]]:
    if not paths:
        return schema.empty_table(), []
    num_bytes = sum(map(_bytes_on_disk, paths))
    answer, content = _child.ask(
        {"paths": [os.path.abspath(path) for path in paths], "schema": b64encode(schema.serialize()).decode()},  # noqa: PTH100
        memory_bytes=_LEAST_MEMORY,
        cpu_seconds=_LEAST_CPU_SECONDS + num_bytes // _BYTES_PER_CPU_SECOND,
        most_bytes=_most_decoded(num_bytes) * len(paths),
    )
    if answer["trouble"] is not None:
        raise _not_read(answer["trouble"])
    with pa.ipc.open_stream(content) as stream:
        return stream.read_all(), [paths[index] for index in answer["damaged"]]


def _not_read(trouble: str) -> InputError:
    return InputError(f"The tables could not be read: {trouble.removesuffix('.')}. Nothing of them was changed; try again.")


def answer(question: Mapping[str, Any]) -> Answer:
    """Answer as a confined child: the rows of the parts `paths` in a `schema`, and the numbers of the `damaged` ones.

    Where the system does not give one of them, it says so as `trouble`; there are no rows then.
    """
    schema = pa.ipc.read_schema(pa.py_buffer(b64decode(question["schema"])))
    tables, damaged = [schema.empty_table()], []
    for number, path in enumerate(map(Path, question["paths"])):
        try:
            bound_memory(_LEAST_MEMORY + _MEMORY_GROWTH * _bytes_on_disk(path))
            table = read_part(path, schema)
            if table.get_total_buffer_size() > _most_decoded(_bytes_on_disk(path)):
                raise DamagedPartError(f"{path.name} has far more rows than bytes.")  # noqa: TRY301 - as any other damage
            tables.append(table)
        except (DamagedPartError, OSError, MemoryError) as error:
            if isinstance(error, OSError) and is_of_the_system(error):
                return {"damaged": [], "trouble": error.strerror}, b""
            damaged.append(number)
    bound_memory(_LEAST_MEMORY + 3 * sum(table.get_total_buffer_size() for table in tables))
    rows = pa.concat_tables(tables).combine_chunks()
    counted = pa.MockOutputStream()
    _write_stream(counted, rows)
    content = pa.allocate_buffer(counted.size())
    _write_stream(pa.FixedSizeBufferWriter(content), rows)
    return {"damaged": damaged, "trouble": None}, memoryview(content)


def _write_stream(sink: pa.NativeFile, rows: pa.Table) -> None:
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)


def _bytes_on_disk(path: Path) -> int:
    """Count what a file really has: one without content may say that it has petabytes."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return min(status.st_size, status.st_blocks * 512)


def _most_decoded(num_bytes: int) -> int:
    return _LEAST_DECODED + _MOST_GROWTH * num_bytes


def bring_up_to_date(path: Path, schema: pa.Schema, *, check_writer: CheckWriter = anyone_may_write) -> None:
    """Give a part of an older version today's columns: pandas reads a folder by the columns of the first part it meets.

    A damaged part is left to whoever reads it; `check_writer` as in `whole_file`.
    """
    try:
        if pq.read_schema(path).names == schema.names:
            return
    except (pa.ArrowException, OSError):
        return
    content, damaged = read_parts([path], schema)
    if not damaged:
        write_part(path, content, check_writer=check_writer)


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
        trials_of: dict[Path, list[str]] = {}
        for path in self._paths.parts(self._table):
            try:
                trials_of[path] = read_part(path, self._schema)["trial_id"].unique().to_pylist()
            except DamagedPartError:
                continue  # whoever reads the run names it
        path_of: dict[str, Path] = {}
        for path in sorted(trials_of, key=lambda path: path.stem in trials_of[path]):  # of a part and its copy, the part counts
            path_of |= dict.fromkeys(trials_of[path], path)
        return path_of


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Bring a part of an older version to today's columns: those it lacks, or did not measure, are null."""
    if table.schema.equals(schema):
        return table
    names = table.column_names
    lacking, unknown = set(schema.names) - set(names), set(names) - set(schema.names)
    # No checksum holds the names: a flipped bit makes another of one. Only another version has others by right.
    is_renamed = bool(lacking and unknown) and table.schema.metadata == schema.metadata
    if is_renamed or len(set(names)) < len(names):
        raise pa.ArrowInvalid(f"the columns {', '.join(names)}")
    lacking |= {name for name, measured_with in _MEASURED_SINCE.items() if measured_with in lacking}
    columns = [
        pa.nulls(len(table), field.type) if field.name in lacking else table[field.name].cast(field.type) for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
