"""Every notebook runs over a run made by the real writer, and is stored without what it showed."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.fabricated_run import write_fabricated_run

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "analysis" / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def test_there_is_a_notebook_on_freezing():
    assert "02_freezing" in {path.stem for path in NOTEBOOKS}


def test_notebook_is_valid_and_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code] == [[]] * len(code)
    assert {cell.execution_count for cell in code} == {None}


@pytest.mark.filterwarnings("default")  # the kernel's client warns about event loops of its own
def test_notebook_runs_over_a_run_of_the_real_writer(notebook, tmp_path, monkeypatch):
    run = write_fabricated_run(tmp_path / "run", failed=["resnet34 frozen_blocks=3"], missing=["resnet18 frozen_blocks=2"])
    monkeypatch.setenv("TUNE_LUNG_RUN", str(run))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})

    client.execute()

    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert any("resnet18 frozen_blocks=1" in output.get("text", "") for output in shown)
