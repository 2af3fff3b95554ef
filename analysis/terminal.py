"""Sentences, tables and numbers as a terminal of 100 columns shows them."""

from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from tune_lung.printable import in_one_line

COLUMNS = 100
"""Characters of a line."""

Heading: TypeAlias = tuple[str, str]
"""What stands over a column, in two lines."""

_LABEL_COLUMNS = 60
_MOST_LETTERS = 400
"""Of a cell's name; the longest of our own spaces has a third of them."""
_MOST_LETTERS_OF_SENTENCES = 10_000
"""They may name every cell."""
_INDENT = "    "


def sentences(texts: Iterable[str]) -> list[str]:
    """Fold each text into lines that fit."""
    return [line for text in texts for line in wrap(in_one_line(text, most=_MOST_LETTERS_OF_SENTENCES), COLUMNS)]


def aligned(headings: Sequence[Heading], rows: Sequence[Sequence[str]]) -> list[str]:
    """Set columns in one width each, the first to the left, the others to the right.

    Columns that find no room in a line follow below, beside the first one again. A long text of the first column is
    folded; a short row ends early, and stands once.

    Args:
        headings: What stands over each column.
        rows: A text for each column, or fewer.
    """
    rows = [[in_one_line(text, most=_MOST_LETTERS) for text in row] for row in rows]
    full = [row for row in rows if len(row) == len(headings)]
    widths = [max(len(text) for text in (*heading, *(row[column] for row in full))) for column, heading in enumerate(headings)]
    labels = [wrap(row[0], _LABEL_COLUMNS, subsequent_indent=_INDENT) or [""] for row in rows]
    widths[0] = max(len(text) for lines in ([*headings[0]], *labels) for text in lines)
    lines: list[str] = []
    for number, block in enumerate(_blocks(widths)):
        lines += [""] if number else []
        lines += [line for line in (_line(texts, widths, block) for texts in zip(*headings, strict=True)) if line]
        for label, row in zip(labels, rows, strict=True):
            if len(row) == len(headings):
                lines += [_line([label[0], *row[1:]], widths, block), *label[1:]]
            elif not number:
                lines += [" ".join([label[0].ljust(widths[0]), *row[1:]]).rstrip(), *label[1:]]
    return lines


def _blocks(widths: Sequence[int]) -> Iterator[list[int]]:
    """Give the columns of each block, without the first column, which stands in all of them."""
    block: list[int] = []
    taken = widths[0]
    for column, width in enumerate(widths[1:], start=1):
        if block and taken + 1 + width > COLUMNS:
            yield block
            block, taken = [], widths[0]
        block.append(column)
        taken += 1 + width
    yield block


def _line(texts: Sequence[str], widths: Sequence[int], columns: Sequence[int]) -> str:
    return " ".join([texts[0].ljust(widths[0]), *(texts[column].rjust(widths[column]) for column in columns)]).rstrip()


def shown(value: Any) -> str:
    """Write a value of a table: real numbers with three digits, lists with commas, `-` for null."""
    if isinstance(value, list | tuple | np.ndarray):
        return ",".join(map(str, value))
    if pd.isna(value):
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(share: Any) -> str:
    """Write a share from 0 to 1 in percent."""
    return "-" if pd.isna(share) else f"{100 * share:.1f}"


def percent_interval(share: Any, low: Any, high: Any) -> str:
    """Write a share in percent with its interval, where it has one."""
    return percent(share) if pd.isna(low) else f"{percent(share)} [{percent(low)}, {percent(high)}]"


def signed(points: Any) -> str:
    """Write a difference in percentage points."""
    return "-" if pd.isna(points) else f"{points:+.1f}"


def magnitude(number: Any) -> str:
    """Write a large whole number, from a million on in millions (M), from a thousand millions on in those (G)."""
    if pd.isna(number):
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.2f} {letter}"
    return f"{number:,.0f}"
