import subprocess
import sys

import pytest

FRAMEWORKS = ("torch", "torchvision", "ray", "optuna")


def loaded_by(statement):
    """Run one statement in a fresh interpreter and list the top-level packages that it loaded."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


def test_importing_the_package_costs_nothing():
    loaded = loaded_by("import tune_lung")
    assert "tune_lung" in loaded
    assert not loaded & {*FRAMEWORKS, "pandas", "numpy", "pyarrow", "matplotlib", "PIL"}


def test_saying_what_may_be_tried_needs_nothing_but_python():
    loaded = loaded_by("from tune_lung.space_files import load_space; load_space('freeze_grid').cells()")
    assert not loaded & {*FRAMEWORKS, "pandas", "numpy", "pyarrow", "matplotlib", "PIL"}


@pytest.mark.parametrize(
    "module",
    ["tune_lung.results.reader", "tune_lung.results.ledger", "tune_lung.analysis.figures", "tune_lung.report"],
)
def test_looking_at_a_run_loads_no_framework(module):
    assert not loaded_by(f"import {module}") & set(FRAMEWORKS)


def test_the_search_command_answers_wrong_options_before_it_loads_a_framework():
    assert not loaded_by("import tune_lung.search.__main__") & set(FRAMEWORKS)


@pytest.mark.parametrize(
    "module", ["tune_lung.models", "tune_lung.training", "tune_lung.data", "tune_lung.answers", "tune_lung.tuning"]
)
def test_a_stages_folder_loads_nothing_by_itself(module):
    assert not loaded_by(f"import {module}") & set(FRAMEWORKS)


def test_no_stage_but_tuning_loads_ray():
    assert not loaded_by("import tune_lung.answers.loading, tune_lung.training.fit, tune_lung.data.prepare") & {"ray", "optuna"}
