"""Text of others as it may be shown: what a terminal obeys instead of showing it, and what turns letters around, is replaced.

Names of runs, cells, classes and files, what failed, and whatever an error quotes may be a stranger's. A command's two streams
let nothing else through, whoever writes to them (`clean_streams`), and rich's console neither (`tune_lung.screen`).
"""

import io
import logging
import re
import sys
from typing import Any, TextIO

MOST_LETTERS = 2000
"""Letters of a line that quotes others, unless a caller wants fewer."""

_REPLACEMENT = "\ufffd"
_OBEYED = re.compile(
    "["
    r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, the escape among them; a line's end and a tab may stay
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # from here on to the left, or to the right
    r"\u2028\u2029"  # further ends of lines
    r"\xad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # nothing to be seen of them
    r"\ud800-\udfff"  # halves of letters, such as the bytes of a file's name that is no UTF-8: nothing can encode them
    "]"
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_BREAKS = re.compile(r"[\t\n]")


def printable(text: str) -> str:
    """Replace each sign that a terminal would obey; lines stay lines."""
    return _OBEYED.sub(_REPLACEMENT, text)


def in_one_line(text: object, *, most: int = MOST_LETTERS) -> str:
    """Write anything as one printable line, its middle left out where it is long.

    Args:
        text: A name, a sentence that quotes one, an error.
        most: Letters to keep.
    """
    line = _BREAKS.sub(" ", printable(str(text)))
    if len(line) <= most:
        return line
    half = (most - 1) // 2
    return f"{line[: most - 1 - half]}…{line[-half:]}"


class UnfailingStream:
    """A stream of text that drops what cannot be written: a reader that has gone, or a full disk, ends no work.

    In all else it is the stream it stands for.
    """

    def __init__(self, stream: Any) -> None:
        """Stand for a stream."""
        self._stream = stream
        self.is_gone = False
        """Whether something could not be written."""

    def write(self, text: str) -> int:
        """Write a text, a question mark for what the stream's encoding lacks; drop it where that is not possible."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            self.write(text.encode(error.encoding, errors="replace").decode(error.encoding))
        except (OSError, ValueError):  # a ValueError: it was closed
            self.is_gone = True
        return len(text)

    def flush(self) -> None:
        """Write what is waiting, if it can be written."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self.is_gone = True

    def __getattr__(self, name: str) -> Any:
        """Do all else as the stream does it."""
        return getattr(self._stream, name)


class _Nowhere(io.TextIOBase):
    """Stands for a stream that was closed by who started us."""

    def write(self, text: str) -> int:
        return len(text)


class _PrintableStream:
    """A stream of text that lets through what can be printed alone; in all else it is the stream it stands for."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = UnfailingStream(stream)  # what rich writes to, whose own escapes are meant

    def write(self, text: str) -> int:
        """Write what a terminal shows of a text; colours, as loggers of other packages have them, are left out."""
        self.rich_proxied_file.write(printable(_COLOURS.sub("", text)))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


class _PrintableFormatter(logging.Formatter):
    """Formats what is logged."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def complain(line: str) -> None:
    """Write a line on stderr, if it can be written there."""
    stream = UnfailingStream(_Nowhere() if sys.stderr is None else sys.stderr)
    stream.write(f"{line}\n")
    stream.flush()


def clean_streams() -> None:
    """Let this process write to its terminal what can be printed alone, until it ends.

    What a terminal's encoding lacks becomes a question mark instead of an error, and what cannot be written is dropped.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, _PrintableStream):
            continue
        if stream is None:
            stream = _Nowhere()
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
        setattr(sys, name, _PrintableStream(stream))
    if logging.lastResort is not None:  # a live view of rich's takes the place of our streams
        logging.lastResort.setFormatter(_PrintableFormatter())
