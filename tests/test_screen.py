import ast
import io
import re
from pathlib import Path

import pytest
from rich.live import Live
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

import tune_lung
from tune_lung.screen import Screen, say

from tests.hostile_text import HOSTILE_NAMES, OBEYED

RICHS_OWN = re.compile(r"\x1b\[[0-9;]*m|\x1b\[[0-9]*[ABCDGKJ]|\x1b\[\?25[lh]|\r")
"""Colours and moves of the cursor."""


def printed_by(show) -> str:
    """Let something be shown on a terminal, and take rich's own escapes out of what comes."""
    screen = Screen(file=io.StringIO(), force_terminal=True, width=400, color_system="standard", legacy_windows=False)
    show(screen)
    return RICHS_OWN.sub("", screen.file.getvalue())


def table(name: str) -> Table:
    grid = Table("heading", name, title=name)
    grid.add_row(Text(name), name.replace("[", ""))
    return grid


def live(screen: Screen, name: str) -> None:
    with Live(table(name), console=screen, auto_refresh=False, transient=True) as view:
        view.update(table(f"{name} again"), refresh=True)


def bars(screen: Screen, name: str) -> None:
    with Progress(console=screen, transient=True) as progress:
        progress.advance(progress.add_task(Text(name).plain.replace("[", ""), total=2))


SHOWN = {
    "say": lambda screen, name: say(screen, name),
    "print": lambda screen, name: screen.print(name, markup=False),
    "text": lambda screen, name: screen.print(Text(name)),
    "table": lambda screen, name: screen.print(table(name), markup=False),
    "live": live,
    "bars": bars,
}


@pytest.mark.parametrize("way", SHOWN)
def test_no_name_commands_the_terminal(way):
    for name in HOSTILE_NAMES.values():
        printed = printed_by(lambda screen, name=name: SHOWN[way](screen, name))
        assert not (OBEYED | {"\x1b"}) & set(printed), ascii(printed)


def test_colours_of_our_own_stay():
    screen = Screen(file=io.StringIO(), force_terminal=True, color_system="standard")
    screen.print(Text("red", style="red"))
    assert screen.file.getvalue() == "\x1b[31mred\x1b[0m\n"


def test_no_name_begins_a_line_of_its_own():
    assert printed_by(lambda screen: say(screen, "of 'a\nRun: elsewhere'", "next")) == "of 'a Run: elsewhere'\nnext\n"


def test_markup_and_long_lines_are_shown_as_they_are():
    assert printed_by(lambda screen: say(screen, f"[bold]{'x' * 500}[/]")) == f"[bold]{'x' * 500}[/]\n"


def test_there_is_no_other_console():
    makers = [
        path.name
        for path in Path(tune_lung.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "Console"
    ]
    assert makers == []
