"""The console that the commands print to."""

from collections.abc import Iterable
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tune_lung.printable import UnfailingStream, in_one_line, printable


class Screen(Console):
    """A console that shows text and obeys nothing in it: its escapes are rich's own, for colours and the cursor.

    What cannot be written is dropped.
    """

    @property
    def file(self) -> IO[str]:
        """Return what is written to."""
        file = super().file
        while hasattr(file, "rich_proxied_file"):
            file = file.rich_proxied_file
        return file if isinstance(file, UnfailingStream) else UnfailingStream(file)  # type: ignore[return-value]

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Lay out what is printed; everything that is comes through here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def say(console: Console, *lines: str) -> None:
    """Print lines as they are, wrapped by the terminal alone; nothing in a line begins another."""
    for line in lines:
        console.print(in_one_line(line), markup=False, highlight=False, soft_wrap=True)
