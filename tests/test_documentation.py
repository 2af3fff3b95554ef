"""README and the pages are compared with the code: links, paths, commands, options, spaces, columns."""

import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from io import StringIO
from itertools import dropwhile, groupby, takewhile
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tune_lung.__main__ import COMMANDS, main
from tune_lung.config import TrialConfig
from tune_lung.data.scan import IMAGE_SUFFIXES
from tune_lung.families.registry import LOOKS, MODELS, family_of
from tune_lung.models.cost import mult_adds, prefix_mult_adds
from tune_lung.models.network import network_outline
from tune_lung.results.layout import TABLES, TRACKERS
from tune_lung.results.schema import ALLOWED_WORDS, column_meanings, table_schema
from tune_lung.space_files import load_space, shipped_space_files, space_question
from tune_lung.strategy import SAMPLERS, SCHEDULERS

REPOSITORY = Path(__file__).resolve().parents[1]
OTHER_PROGRAMS_OPTIONS = {"--generate", "--working-dir", "--logdir", "--backend-store-uri"}


@dataclass(frozen=True)
class Page:
    """A page of Markdown, as GitHub reads it."""

    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tokens(self) -> list[Token]:
        return MarkdownIt("commonmark").enable("table").parse(self.text)

    def inline(self) -> Iterator[Token]:
        return (child for token in self.tokens for child in token.children or ())

    def code_spans(self) -> list[str]:
        return [" ".join(token.content.split()) for token in self.inline() if token.type == "code_inline"]

    def code_blocks(self) -> list[Token]:
        return [token for token in self.tokens if token.type in ("fence", "code_block")]

    def links(self) -> list[str]:
        return [
            str(token.attrs.get("href") or token.attrs.get("src"))
            for token in self.inline()
            if token.type in ("link_open", "image")
        ]

    def anchors(self) -> set[str]:
        """Name the headings as GitHub does in addresses."""
        after = zip(self.tokens, self.tokens[1:], strict=False)
        texts = [
            "".join(part.content for part in token.children or ()) for before, token in after if before.type == "heading_open"
        ]
        return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}

    def section(self, heading: str) -> str:
        """Cut out what stands under a heading, up to the next one of its level or above."""
        _, mark, rest = f"\n{self.text}".partition(f"\n{heading}\n")
        assert mark, f"{self.path.name} has no heading {heading!r}"
        level = len(heading) - len(heading.lstrip("#"))
        return re.split(rf"^#{{1,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]

    def table(self, heading: str) -> list[list[str]]:
        """Read the first table under a heading: its rows, each cell as it is written, without the head."""
        lines = self.section(heading).splitlines()
        rows = list(takewhile(_is_row, dropwhile(lambda line: not _is_row(line), lines)))
        assert rows, f"{self.path.name} has no table under {heading!r}"
        return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def _is_row(line: str) -> bool:
    return line.startswith("|")


def page(name: str) -> Page:
    return Page(REPOSITORY / name)


PAGES = [
    page(str(path.relative_to(REPOSITORY)))
    for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / "benchmarks").rglob("*.md"))
]
PRESENT = [each for each in PAGES if each.path.name != "CHANGELOG.md"]
"""What says how things are now."""

every_page = pytest.mark.parametrize("each", PAGES, ids=lambda each: str(each.path.relative_to(REPOSITORY)))
every_present_page = pytest.mark.parametrize("each", PRESENT, ids=lambda each: str(each.path.relative_to(REPOSITORY)))


def coded(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


def help_of(*words: str) -> str:
    printed = StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit, match="0"):
        main([*words, "--help"])
    return printed.getvalue()


def commands_within(name: str) -> list[str]:
    return re.findall(r"^    ([a-z-]+) ", help_of(name), re.MULTILINE)


def options_in(text: str) -> list[str]:
    """List the options that a `--help` tells, in its order."""
    return re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)


# Every page


@every_page
def test_every_link_within_the_repository_leads_to_a_file_and_a_heading(each):
    for link in each.links():
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (each.path.parent / name).resolve() if name else each.path
        assert target.exists(), link
        assert target.is_relative_to(REPOSITORY), link
        assert not anchor or anchor in Page(target).anchors(), link


@every_page
def test_every_row_of_a_table_has_as_many_cells_as_its_head(each):
    for is_table, lines in groupby(each.text.splitlines(), key=_is_row):
        assert not is_table or len({line.count("|") for line in lines}) == 1, f"a table of {each.path.name}"


@every_present_page
def test_every_path_that_is_named_exists(each):
    folders = {path.name for path in REPOSITORY.iterdir() if path.is_dir()} - {"runs"}
    for span in each.code_spans():
        name, _, test = span.partition("::")
        if not re.fullmatch(r"[\w./*-]+", name) or name.partition("/")[0] not in folders or "/" not in name:
            continue
        found = list(REPOSITORY.glob(name.replace("NAME", "*").rstrip("/")))
        assert found, name
        assert not test or f"def {test}(" in found[0].read_text(encoding="utf-8"), span


@every_present_page
def test_every_module_that_is_run_or_named_is_there(each):
    code = "\n".join([*each.code_spans(), *(block.content for block in each.code_blocks())])
    for module in re.findall(r"python -m ((?:tune_lung|benchmarks)(?:\.[a-z_]+)*)", code):
        assert find_spec(module) is not None, module
    for name in re.findall(r"^tune_lung(?:\.\w+)+$", "\n".join(each.code_spans()), re.MULTILINE):
        assert any(_path_of(dotted) for dotted in (name, name.rpartition(".")[0])), name


def _path_of(module: str) -> bool:
    path = REPOSITORY / module.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


@every_present_page
def test_every_make_target_that_is_named_exists(each):
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    code = "\n".join([*each.code_spans(), *(block.content for block in each.code_blocks())])
    named = set(re.findall(r"^\s*make ([a-z]+)", code, re.MULTILINE))
    assert named <= set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))


@every_present_page
def test_every_option_that_is_named_is_one_of_our_commands(each):
    within = [(name, inner) for name in ("data", "runs") for inner in commands_within(name)]
    known = {option for words in (*((name,) for name in COMMANDS), *within) for option in options_in(help_of(*words))}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", each.text)) - OTHER_PROGRAMS_OPTIONS
    assert named <= known | {"--help"}


# Contributing


def test_every_name_in_contributing_stands_in_a_file_that_its_item_names():
    contributing = page("CONTRIBUTING.md")
    for item in re.split(r"\n(?=\* )|\n\n", contributing.text):
        paths = [REPOSITORY / name for name in coded(item) if (REPOSITORY / name).is_file()]
        names = {name for name in coded(item) if re.fullmatch(r"_?[A-Za-z][A-Za-z_]*", name) and name != "NAME"}
        text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
        missing = {name for name in names if not re.search(rf"\b{name}\b", text)} if paths else set()
        assert not missing, item


# The front page


def test_the_readme_is_a_front_page():
    readme = page("README.md")
    assert len(readme.text.splitlines()) < 200
    assert {"make search", "make test"} <= {line.split("#")[0].strip() for line in readme.text.splitlines()}


def test_the_readme_leads_to_every_page():
    links = set(page("README.md").links())
    assert {str(each.path.relative_to(REPOSITORY)) for each in PAGES if each.path.parent == REPOSITORY / "docs"} <= links


# Data


def test_the_page_on_data_explains_every_command_of_data():
    told = [coded(name) for name, _ in page("docs/data.md").table("# Data")]
    assert told == [{name} for name in commands_within("data")]


def test_the_page_on_data_names_every_ending_that_is_read():
    section = page("docs/data.md").section("## The folder")
    assert {name for name in coded(section) if re.fullmatch(r"\.\w+", name)} == IMAGE_SUFFIXES


# Searching


def test_the_page_on_searching_has_every_shipped_space_with_its_question():
    told = page("docs/searching.md").table("## The shipped spaces")
    spaces = {name: (str(len(load_space(name).cells())), space_question(path)) for name, path in shipped_space_files().items()}
    assert {name.strip("`"): (cells, question) for name, cells, question in told} == spaces


def test_the_page_on_searching_has_every_option_once_in_the_group_of_the_help():
    told = {
        group: re.findall(r"`(--[a-z-]+)`", options) for group, options, _ in page("docs/searching.md").table("## Every option")
    }
    groups = re.split(r"^([a-z ]+):$", help_of("search"), flags=re.MULTILINE)
    helped = {title: options_in(text) for title, text in zip(groups[1::2], groups[2::2], strict=True) if title != "options"}
    assert told == helped


@pytest.mark.parametrize(("option", "names"), [("--sampler", SAMPLERS), ("--scheduler", SCHEDULERS)])
def test_every_sampler_and_scheduler_is_told(option, names):
    rows = page("docs/searching.md").table("## Who proposes, and who is stopped")
    (meaning,) = [row[1] for row in rows if coded(row[0]) == {option}]
    assert coded(meaning) == set(names)


def work_by_frozen_blocks(model: str) -> list[int]:
    """Count a training step's work for one image: forward through all, backward, twice that, through what is not frozen."""
    family = family_of(model)
    depths = (
        [{"frozen_blocks": number, "weights": "random"} for number in range(family.num_blocks + 1)] if family.num_blocks else [{}]
    )
    configs = [TrialConfig.from_point({"model": model, **depth}).network for depth in depths]
    outlines = [network_outline(config, protocol="strict", num_classes=4, image_size=128) for config in configs]
    whole = mult_adds(outlines[0], 128)
    return [3 * whole] + [3 * whole - 2 * prefix_mult_adds(outline, 128) for outline in outlines[1:]]


def test_the_table_of_costs_is_what_is_counted():
    told = {
        label: [ratio for ratio in ratios if ratio] for label, *ratios in page("docs/searching.md").table("## What a cell costs")
    }
    (unit, *_) = work_by_frozen_blocks("resnet18")
    networks = [model for model in MODELS if family_of(model).has_epochs]
    assert told == {LOOKS[model].label: [f"{work / unit:.2f}" for work in work_by_frozen_blocks(model)] for model in networks}


def test_the_example_of_a_space_is_one(tmp_path):
    example, line = (block.content for block in page("docs/searching.md").code_blocks() if block.info == "python")
    file = tmp_path / "small_cnn.py"
    file.write_text(example, encoding="utf-8")
    space = load_space(str(file))
    assert f"Trials: {len(space.cells())} cells" in example
    file.write_text(f"from tune_lung.space import *\nSPACE = SearchSpace(arms=({line.strip()},))\n", encoding="utf-8")
    assert len(load_space(str(file)).cells()) == 6


# Tables


@pytest.mark.parametrize("table", TABLES)
def test_every_column_of_every_table_is_explained_once(table):
    tables = page("docs/tables.md")
    columns = list(column_meanings(table_schema(table, ["<class>"])))
    if table == "validation_predictions":
        assert set(columns) <= coded(tables.section(f"## `{table}`"))
        return
    explained = [name for row in tables.table(f"## `{table}`") for name in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(explained) == sorted(columns)


@pytest.mark.parametrize(("table", "column"), [("trials", "status"), ("trials", "stop_reason"), ("trials", "failure_kind")])
def test_every_word_of_a_column_is_told(table, column):
    _assert_words_told(table, column, set(ALLOWED_WORDS[column]))


@pytest.mark.parametrize(("table", "column"), [("decisions", "verdict"), ("profile", "part")])
def test_every_word_of_a_column_of_decisions_and_profile_is_told(table, column):
    _assert_words_told(table, column, set(ALLOWED_WORDS[column]))


def test_every_model_is_told():
    _assert_words_told("trials", "model", set(MODELS))


def _assert_words_told(table: str, column: str, words: set[str]) -> None:
    (meaning,) = [row[1] for row in page("docs/tables.md").table(f"## `{table}`") if f"`{column}`" in row[0]]
    assert words <= set(re.findall(r"\w+", meaning))


# Runs and speed


def test_the_page_on_runs_names_every_command_of_runs():
    code = "\n".join(block.content for block in page("docs/runs.md").code_blocks())
    assert all(f"python -m tune_lung.runs {name} " in code for name in commands_within("runs"))


def test_the_page_on_runs_names_every_tracker():
    folders = {name.rstrip("/") for row in page("docs/runs.md").table("# Runs") if "tracker" in row[1] for name in coded(row[0])}
    asked_for = re.search(r"--tracker \{(.*)\}", help_of("search"))
    assert asked_for is not None
    assert folders == set(TRACKERS) == set(asked_for[1].split(","))


def test_the_page_on_speed_names_every_measurement():
    measurements = {
        path.stem
        for path in (REPOSITORY / "benchmarks").glob("*.py")
        if "\n    python -m benchmarks." in path.read_text(encoding="utf-8")
    }
    assert measurements <= coded(page("docs/speed.md").text)
