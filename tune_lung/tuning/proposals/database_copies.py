"""Copies of sqlite files that anybody may have made: plain tables, sound pages, and no more rows than a search has.

A database can be a program: a view or a generated column runs for ever, pages that hold each other have rows without end. So a
confined child makes the copy and looks it through, and only what it found sound is opened by others.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from tune_lung.confined import Answer, Confined, ConfinedError
from tune_lung.errors import InputError
from tune_lung.files import DamagedFileError, check_regular_file

_MOST_BYTES = 2**28
"""Size of the largest file that is read: 10,000 trials of 100 epochs take 150 MB."""
_MOST_ROWS = 4_000_000
"""Rows of all its tables: those have 1.6 million."""
_MOST_DEFAULT = 64
"""Letters of a column's default value, which stands for nothing in every row that is too short."""
_MEMORY_BYTES = 2**29
_CPU_SECONDS = 60
_PAGES_AT_ONCE = 4096


def sound_copy(path: Path, folder: Path) -> Path:
    """Copy a database as sqlite sees it, with what still lies in its journal, and look it through.

    Args:
        path: The sqlite file; it is left as it is.
        folder: Takes the copy.

    Raises:
        InputError: It is no sqlite file that can be read, is too large, or holds more than tables.
    """
    copy = folder / "study.db"
    try:
        for beside in ("", "-wal", "-shm", "-journal"):
            own = path.with_name(path.name + beside)
            if own.exists():
                check_regular_file(own, most_bytes=_MOST_BYTES)
        with Confined(__name__) as child:
            question = {"source": os.path.abspath(path), "copy": str(copy)}  # noqa: PTH100 - links stay
            answer, _ = child.ask(question, memory_bytes=_MEMORY_BYTES, cpu_seconds=_CPU_SECONDS, most_bytes=0)
    except (DamagedFileError, ConfinedError, OSError) as error:
        raise _unreadable(path, str(error).rstrip(".")) from error
    if answer["problem"] is not None:
        raise _unreadable(path, answer["problem"])
    return copy


def _unreadable(path: Path, problem: str) -> InputError:
    return InputError(f"'{path.name}' is no sqlite file of Optuna that can be read ({problem}).")


def answer(question: Mapping[str, Any]) -> Answer:
    """Answer as a confined child: copy the file `source` to `copy`, and say what `problem` it has, if any."""
    copy = Path(question["copy"])
    try:
        _copy(Path(question["source"]), copy)
        with closing(sqlite3.connect(copy)) as database:
            return {"problem": next(_problems(database), None)}, b""
    except sqlite3.Error as error:
        return {"problem": type(error).__name__}, b""


def _copy(path: Path, copy: Path) -> None:
    with (
        closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target, pages=_PAGES_AT_ONCE)


def _problems(database: sqlite3.Connection) -> Iterator[str]:
    """Name what keeps a database from being opened by others; the first one may keep the next from being looked for."""
    database.execute("PRAGMA trusted_schema=OFF")
    tables = []
    for kind, name, program in database.execute("SELECT type, name, sql FROM sqlite_master"):
        if kind not in ("table", "index") or str(program).upper().startswith("CREATE VIRTUAL"):
            yield "it holds more than tables"
        if kind == "table":
            tables.append(str(name))
    for table in tables:
        for column in database.execute("SELECT dflt_value, hidden FROM pragma_table_xinfo(?)", (table,)):
            if column[1] != 0 or len(str(column[0] or "")) > _MOST_DEFAULT:
                yield "it holds more than tables"
    if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        yield "its pages are damaged"
    num_rows = 0
    for table in tables:
        quoted = table.replace('"', '""')
        num_rows += database.execute(f'SELECT count(*) FROM "{quoted}"').fetchone()[0]  # noqa: S608 - quoted
    if num_rows > _MOST_ROWS:
        yield f"it has {num_rows} rows"
