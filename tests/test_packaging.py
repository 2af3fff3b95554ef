import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tune_lung
from tune_lung.results.layout import TABLES
from tune_lung.results.schema import column_meanings, table_schema

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pinned_versions():
    """Read constraints.txt: the tested version of every package by its canonical name."""
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def declared_requirements():
    """List what pyproject.toml asks for, extras included."""
    extras = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    return [Requirement(text) for text in [*PROJECT["dependencies"], *extras]]


@pytest.mark.parametrize("requirement", declared_requirements(), ids=str)
def test_every_requirement_has_a_tested_version_within_its_range(requirement):
    pinned = pinned_versions()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned)
    assert re.search(">=", str(requirement.specifier)), "no floor"


@pytest.mark.parametrize(("name", "hole"), [("ray", "2.55.1"), ("torch", "2.9.1"), ("optuna", "4.9.0"), ("optuna", "6.0.0")])
def test_versions_with_known_holes_or_other_behaviour_are_refused(name, hole):
    (requirement,) = [each for each in declared_requirements() if each.name == name]
    assert not requirement.specifier.contains(hole)


def test_torch_chooses_its_own_cuda_libraries():
    assert not [name for name in pinned_versions() if name.startswith(("nvidia-", "cuda-", "triton"))]


@pytest.mark.parametrize("folder", ["analysis", "search_spaces"])
def test_the_two_top_level_folders_are_reached_by_their_one_import_name(folder):
    link = Path(tune_lung.__file__).parent / folder
    assert link.resolve() == REPOSITORY / folder


def test_every_package_has_a_docstring_and_imports_nothing():
    for path in (REPOSITORY / "tune_lung").rglob("__init__.py"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith('"""'), path
        is_door = path.parent == REPOSITORY / "tune_lung"  # its names are loaded when they are asked for: see test_library
        assert is_door or "import " not in text.split('"""')[2], path


def test_every_make_target_that_the_readme_names_exists():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"`?make ([a-z]+)`?", README))
    assert {"search", "test", "check"} <= named
    assert named <= set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))


def test_every_path_that_the_readmes_tree_names_exists():
    tree = re.search(r"```text\n(tune_lung/\n.*?)```", README, re.DOTALL)
    assert tree is not None
    folder = Path()
    for line in tree[1].splitlines():
        name = line.split()[0]
        path = folder / name if line.startswith("  ") else Path(name)
        folder = path if name.endswith("/") and not line.startswith("  ") else folder
        assert (REPOSITORY / path).exists(), path


@pytest.mark.parametrize("table", TABLES)
def test_the_readme_explains_every_column_of_every_table(table):
    section = README.partition(f"### `{table}`")[2].partition("\n### ")[0]
    explained = set(re.findall(r"`([^`]+)`", section))
    columns = {"p_<class>" if name.startswith("p_") else name for name in column_meanings(table_schema(table, ["a", "b"]))}
    assert columns <= explained
