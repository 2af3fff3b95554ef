"""The pictures and tables of docs/architecture.md are compared with what the modules import, and with the import contracts."""

import ast
import re
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import grimp
import pytest

from tune_lung.families.registry import FAMILIES, MODELS

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
LINTER = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
(LAYERS,) = [contract["layers"] for contract in LINTER["contracts"] if contract.get("containers") == ["tune_lung"]]
FLOORS = [[room.strip() for room in floor.split("|")] for floor in LAYERS]
BENEATH = {
    room for floor in FLOORS[1 + next(number for number, floor in enumerate(FLOORS) if "families" in floor) :] for room in floor
}
"""What every room may use: it is in no picture."""

ENTRANCES = {"console_script", "__main__"}
"""They start whichever command is asked for, by its name."""

Arrows = set[tuple[str, str]]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("tune_lung", cache_dir=None)


def picture(number: int) -> str:
    return re.findall(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)[number]


def arrows_of(drawn: str) -> Arrows:
    shape = r'(?:[\[(/]+"[^"]*"[\])/]+)?'
    return set(re.findall(rf"^ *(\w+){shape} --> (\w+){shape}$", drawn, re.MULTILINE))


def table(heading: str) -> list[list[str]]:
    section = PAGE.partition(f"\n{heading}\n")[2]
    rows = re.search(r"(?:^\|.*\|\n)+", section, re.MULTILINE)
    assert rows is not None
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[0].splitlines()[2:]]


def coded(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# The way of the data


def modules_drawn() -> dict[str, str]:
    """Name the module of every box but the outermost, by its name in the picture."""
    paths = re.findall(r'(\w+)\[\(?"[^"]*<br>([\w/]+\.py)"', picture(0))
    return {name: "tune_lung." + path.removeprefix("tune_lung/").removesuffix(".py").replace("/", ".") for name, path in paths}


def drums_drawn() -> set[str]:
    return set(re.findall(r'(\w+)\[\("', picture(0)))


def test_every_line_of_the_first_picture_is_understood():
    lines = [line for line in picture(0).splitlines()[1:] if " --> " in line]
    assert len(arrows_of(picture(0))) == len(lines)
    boxes = {name for arrow in arrows_of(picture(0)) for name in arrow}
    assert boxes - modules_drawn().keys() == {"folder"}
    assert drums_drawn() == {"store", "checkpoints", "ledger"}


def test_the_data_go_the_way_that_is_drawn(graph):
    modules, drums = modules_drawn(), drums_drawn()
    for start, end in arrows_of(picture(0)):
        if start == "folder":
            continue
        knows, known = (start, end) if end in drums else (end, start)
        assert graph.find_shortest_chain(importer=modules[knows], imported=modules[known]), f"{knows} knows nothing of {known}"
        assert not graph.find_shortest_chain(importer=modules[known], imported=modules[knows]), f"{known} knows {knows}"


# The rooms


def rooms_imported(graph: grimp.ImportGraph) -> Arrows:
    """List which room imports something of which other, those beneath left out."""
    found = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            one, other = (name.split(".")[1] if "." in name else "" for name in (module, imported))
            if one and other and one != other:
                found.add((one, other))
    return {(one, other) for one, other in found if not {one, other} & BENEATH and one not in ENTRANCES}


def without_what_follows(arrows: Arrows) -> Arrows:
    """Leave out each arrow that a longer way replaces."""

    @cache
    def reached(room: str) -> frozenset[str]:
        return frozenset(end for start, next_room in arrows if start == room for end in (next_room, *reached(next_room)))

    def is_replaced(start: str, end: str) -> bool:
        return any(end in reached(between) for room, between in arrows if room == start)

    return {(start, end) for start, end in arrows if not is_replaced(start, end)}


def as_mermaid(arrows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"    {start} --> {end}" for start, end in sorted(arrows))


def test_the_second_picture_is_what_the_rooms_import(graph):
    imported = without_what_follows(rooms_imported(graph))
    assert arrows_of(picture(1)) == imported, f"docs/architecture.md should draw\n{as_mermaid(imported)}"


def test_the_table_of_rooms_has_every_floor_from_top_to_bottom():
    told = [room for row in (*table("## The rooms"), *table("Beneath lie rooms of one file each:")) for room in coded(row[0])]
    floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    assert sorted(told) == sorted(floor_of)
    assert [floor_of[room] for room in told] == sorted(floor_of[room] for room in told)


def test_what_a_room_may_not_know_is_what_the_contracts_forbid():
    forbidden: dict[str, set[str]] = {room: set() for floor in FLOORS for room in floor}
    parts: dict[str, set[str]] = {room: set() for room in forbidden}
    for contract in LINTER["contracts"]:
        for source in contract["source_modules"] if contract["type"] == "forbidden" else ():
            _, room, *part = source.split(".")
            forbidden[room] |= {name.removeprefix("tune_lung.") for name in contract["forbidden_modules"]}
            parts[room] |= set(part)
    for names, _, told in table("## The rooms"):
        rooms = coded(names)
        assert set(coded(told)) == set().union(*(forbidden[room] | parts[room] for room in rooms)), rooms


def test_every_place_beside_the_package_is_told_and_there():
    told = {name.rstrip("/") for row in table("## Beside the package") for name in coded(row[0])}
    ignored = (REPOSITORY / ".gitignore").read_text(encoding="utf-8").split()
    folders = {path.name for path in REPOSITORY.iterdir() if path.is_dir() and path.name != ".git" and any(path.iterdir())}
    folders -= {path.name for pattern in ignored for path in REPOSITORY.glob(pattern.rstrip("/"))}
    assert folders - {"tune_lung", "shared"} <= told
    assert all((REPOSITORY / name).exists() for name in told)


# What the house keeps to


CODE = {
    path: ast.parse(path.read_text(encoding="utf-8"))
    for folder in ("tune_lung", "analysis")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
    if not {"analysis", "search_spaces"} & set(path.relative_to(REPOSITORY / "tune_lung").parts if folder == "tune_lung" else ())
}
OF_MODELS = ("tune_lung/families/", "tune_lung/models/", "tune_lung/learners/")


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_models_are_named_by_families_and_what_builds_and_trains_them_alone(path):
    names = {*MODELS, *(family.config.__name__ for family in FAMILIES)}
    texts = {node.value for node in ast.walk(CODE[path]) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    used = {node.id for node in ast.walk(CODE[path]) if isinstance(node, ast.Name)}
    if not str(path.relative_to(REPOSITORY)).startswith(OF_MODELS):
        assert not names & (texts | used)


def test_no_public_function_takes_more_than_7_arguments():
    long = {
        f"{path.name}:{node.name}": count
        for path, tree in CODE.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        for count in [
            len(
                [
                    arg
                    for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                    if arg.arg not in ("self", "cls")
                ]
            )
        ]
        if count > 7
    }
    assert not long


def test_nobody_but_the_small_commands_parsers_reads_a_namespace():
    readers = {
        str(path.relative_to(REPOSITORY))
        for path, tree in CODE.items()
        if any(isinstance(node, ast.Attribute) and node.attr == "Namespace" for node in ast.walk(tree))
    }
    assert readers == {
        "tune_lung/data/__main__.py",
        "tune_lung/option_values.py",
        "tune_lung/report.py",
        "tune_lung/runs.py",
    }
