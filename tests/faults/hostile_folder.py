"""A working folder of somebody who knows what is imported, loaded and read, and puts all of it there."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Self

_OTHERS = ("tune_lung", "sitecustomize", "usercustomize", "msvcrt", "six", "evil_backend")
_MODULE = """
import os
os.close(os.open({proof!r}, os.O_CREAT | os.O_WRONLY))
raise ImportError("{name} of the working folder")
"""
_PROBE = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"


@dataclass(frozen=True)
class HostileFolder:
    """Modules that tell when they are imported, a library that is loaded by its name, and settings of others."""

    path: Path
    """The folder."""
    proofs: Path
    """Where each module that is imported leaves a file of its name."""

    @classmethod
    def make(cls, parent: Path, *, but: frozenset[str] = frozenset()) -> Self:
        """Make one with every module that anything could import, but some."""
        folder = cls(parent / "theirs", parent / "proofs")
        folder.path.mkdir()
        folder.proofs.mkdir()
        for name in {*sys.stdlib_module_names, *packages_distributions(), *_OTHERS} - but:
            if name.isidentifier():
                proof = str(folder.proofs / name)
                (folder.path / f"{name}.py").write_text(_MODULE.format(name=name, proof=proof))
        # A library that torch brings looks here for the driver's, before the system does.
        shutil.copy(_some_library(), folder.path / "libcuda.so.1")
        (folder.path / "matplotlibrc").write_text("backend: module://evil_backend\nevil: settings of the working folder\n")
        (folder.path / "wandb").mkdir()
        (folder.path / "wandb" / "settings").write_text("[default]\nbase_url = http://evil.invalid\n")
        return folder

    def imported(self) -> list[str]:
        """Name the modules of the folder that somebody has imported."""
        return sorted(proof.name for proof in self.proofs.iterdir())

    def content(self) -> dict[str, bytes]:
        """Read every file."""
        return {str(path.relative_to(self.path)): path.read_bytes() for path in self.path.rglob("*") if path.is_file()}


def loaded_by_python_itself(folder: Path) -> frozenset[str]:
    """Name the modules that `python -m` needs before the first line of what it was asked for: nobody can do anything there."""
    (folder / "first_line.py").write_text(_PROBE)
    done = subprocess.run(
        [sys.executable, "-m", "first_line"], cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )
    return frozenset(done.stdout.split())


def _some_library() -> Path:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(Path(line.split()[-1]) for line in lines if "/libm.so" in line or "/libm-" in line)
