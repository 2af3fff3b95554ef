"""The lines of Python in README do what they say: in a script, in a notebook, and twice in one process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

README = Path(__file__).resolve().parents[1] / "README.md"


def lines_of_python() -> str:
    found = re.search(r"## Ten lines of Python\n\n```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def assert_told(printed: str, *, times: int) -> None:
    assert len(re.findall(r"^\* (svm|cnn) .*", printed, re.MULTILINE)) == times  # the table names a leader
    assert len(re.findall(r"^\[5 rows x \d columns\]$|^4 +films\S+", printed, re.MULTILINE)) >= times


def test_they_are_about_ten() -> None:
    assert len([line for line in lines_of_python().splitlines() if line.strip()]) <= 11


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_they_run_twice_in_one_process(tmp_path: Path) -> None:
    program = f"code = {lines_of_python()!r}\nfor _ in range(2):\n    exec(code, {{}})\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_told(done.stdout, times=2)
    assert len(list(tmp_path.glob("runs/small-*/figures/figure4.png"))) == 2


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_they_run_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(lines_of_python())])
    NotebookClient(notebook, timeout=380, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (cell,) = notebook.cells
    printed = "".join(output.get("text", "") for output in cell.outputs)
    assert_told(printed, times=1)
    assert "[4/4]" in printed  # progress
    assert [path.name for path in tmp_path.glob("runs/small-*/figures/*")] == ["figure4.png"]
