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
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tune_lung.files import whole_file
from tune_lung.results.layout import RunPaths

MOST_TRIALS = 16
"""Trials that share a part at most. With 100 epochs each, to replace it takes about 2 ms, and 10,000 trials make 660 parts."""

_MEASURED_SINCE = {"concurrent_trials": "started"}
"""Columns that versions before 3 filled with what was asked for, each with one that came when it was measured first."""

_log = logging.getLogger(__name__)


class DamagedPartError(Exception):
    """A part is not what was written."""


def write_part(path: Path, table: pa.Table) -> None:
    """Write a part, whole and with checksums."""
    with whole_file(path) as temporary:
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
    content = pa.BufferReader(path.read_bytes())
    try:
        file = pq.ParquetFile(content, page_checksum_verification=True)
        table = _conformed(file.read(use_threads=False), schema)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # a wrong checksum is an OSError
        raise DamagedPartError(f"{path.name}: {error}") from error
    if len(table) != file.metadata.num_rows:
        raise DamagedPartError(f"{path.name}: {len(table)} rows instead of {file.metadata.num_rows}")
    return table


def bring_up_to_date(path: Path, schema: pa.Schema) -> None:
    """Give a part of an older version today's columns: pandas reads a folder by the columns of the first part it meets.

    A damaged part is left to whoever reads it.
    """
    try:
        if pq.read_schema(path).names == schema.names:
            return
        content = read_part(path, schema)
    except (pa.ArrowException, DamagedPartError, OSError):
        return
    write_part(path, content)


class SharedParts:
    """One table's parts, for the one process that writes them."""

    def __init__(self, paths: RunPaths, table: str, schema: pa.Schema) -> None:
        """Find which part holds which trial.

        Args:
            paths: The run's paths.
            table: The table's name; its rows have a `trial_id`.
            schema: Its columns.
        """
        self._paths, self._table, self._schema = paths, table, schema
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
        write_part(path, pa.concat_tables([self._others(path, trial_id), rows]))

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
            aside = path.replace(self._paths.damaged_part(self._table, path.stem))
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
