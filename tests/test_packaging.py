import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tune_lung

REPOSITORY = Path(__file__).resolve().parents[1]
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


def test_the_changelog_begins_with_the_packages_version():
    versions = re.findall(r"^## (.*)$", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] in (tune_lung.__version__, "Unreleased")
    assert tune_lung.__version__ in versions


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
