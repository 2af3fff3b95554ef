"""What every benchmark ends with: its bars, each printed with whether it holds, and the exit status."""

from collections.abc import Iterable
from typing import NamedTuple

from rich.console import Console


class Bar(NamedTuple):
    """One bar of a benchmark."""

    text: str
    """What was measured, and what is asked."""
    holds: bool


def exit_status(bars: Iterable[Bar], console: Console) -> int:
    """Print each bar when it is there.

    Returns:
        The exit status of the benchmark: 0 when all its bars hold, else 1.
    """
    status = 0
    for bar in bars:
        console.print(f"{'holds' if bar.holds else 'FAILS'}: {bar.text}", soft_wrap=True)
        status = status if bar.holds else 1
    return status
