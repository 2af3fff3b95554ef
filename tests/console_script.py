"""The console script `tune-lung`, as pip writes it, wherever the package is imported from."""

import sys
import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def write_console_script(folder: Path) -> Path:
    """Write the script that pyproject.toml declares into a new folder `bin`; return its path."""
    module, _, function = _PROJECT["scripts"]["tune-lung"].partition(":")
    script = folder / "bin" / "tune-lung"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    script.chmod(0o755)
    return script
