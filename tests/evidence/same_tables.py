"""Small searches of all shipped spaces give the same tables, bit for bit, as those of an earlier commit.

Each search is run by either tree in processes of its own, with the same Python and packages, one trial at a time. Each of its
rows must be the same, but for times, and for columns that the newer tree adds. What has run stays in a folder named after what
was run, the tree's code and the options, and is not run again.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tune_lung.errors import InputError

_BEFORE_THE_ISSUE = "17c3b64^"
_ROOT = Path(__file__).parents[2]
_NICE = 19

_OPTIONS = (
    *("--image-size", "64", "--limit", "80", "--seed", "3", "--no-report"),
    *("--max-concurrent", "1", "--cpus-per-trial", "1"),
)
_GRID = ("--max-epochs", "2", "--set", "padding=same", "--set", "batch_size=16")
_SAMPLED = ("--max-epochs", "2", "--grace-epochs", "1", "--reduction-factor", "2")
SEARCHES: Mapping[str, tuple[str, ...]] = {
    "backbones": ("--samples", "2", "--set", "padding=same", *_SAMPLED),
    "cnn_architecture": ("--samples", "4", *_SAMPLED),
    "everything": ("--samples", "3", *_SAMPLED),
    "freeze_grid": _GRID,
    "freeze_grid_published": ("--limit", "120", *_GRID),  # fewer leave a class without a validation image
    "freeze_tuned": ("--samples", "2", "--set", "padding=same", *_SAMPLED),
    "inputs": ("--set", "model=cnn", *_GRID),
    "representations": ("--samples", "2", "--weights", "random"),
    "resnet_finetune": ("--samples", "4", *_SAMPLED),
    "training": ("--max-epochs", "2", "--set", "padding=same"),
}
"""Options of each shipped space's search beside those of all, so that it takes less than a minute or two."""
_OTHERS = ("--max-epochs", "1")
"""Of a space that has none here yet."""

TABLES: Mapping[str, tuple[str, ...]] = {
    "trials": ("trial_id",),
    "epochs": ("trial_id", "epoch"),
    "decisions": ("decision",),
    "images": ("path",),
    "predictions": ("trial_id", "image_id"),
    "validation_predictions": ("trial_id", "image_id"),
}
"""The tables of a run, and what tells the rows of each apart."""
TIMES = frozenset(
    {
        *("started", "ended", "epoch_seconds", "epoch_seconds_mean", "validation_seconds", "images_per_second"),
        *("prefix_seconds", "prefix_cached"),  # features are stored where that is measured to gain
        *("concurrent_trials", "slot"),
    }
)
"""Columns that hang on the machine's load."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A checkout whose searches are run."""

    root: Path
    """Its folder."""
    runs: Path
    """Where its runs stay."""

    def spaces(self) -> list[str]:
        """Name its shipped spaces."""
        return sorted(path.stem for path in (self.root / "search_spaces").glob("*.py") if not path.stem.startswith("_"))

    def begin(self, space: str, *options: str, name: str | None = None) -> "Search":
        """Start a search of a shipped space, unless it was run to its end before.

        Args:
            space: The space's name.
            *options: Of the command.
            name: What the run is called; the space's name where it is None.
        """
        digest = hashlib.sha256(repr((space, options, self._code())).encode()).hexdigest()[:16]
        place = self.runs / f"{name or space}-{digest}"
        if place.is_dir():
            return Search(run=place, process=None, log=None)
        work = self.runs / f"unfinished-{place.name}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        log = work / "printed.txt"
        command = [sys.executable, "-m", "tune_lung.search", "--space", space, "--out", str(work), "--name", "run", *options]
        with log.open("w") as printed:
            process = subprocess.Popen(
                [*command, "--cache", str(work / "cache")],
                stdout=printed,
                stderr=subprocess.STDOUT,
                cwd=self.root,
                env={**os.environ, "PYTHONPATH": str(self.root), "XDG_STATE_HOME": str(work / "state")},
            )
        return Search(run=place, process=process, log=log)

    def check_imports(self) -> None:
        """See that its searches run its own code.

        Raises:
            RuntimeError: Python finds `tune_lung` elsewhere.
        """
        command = [sys.executable, "-c", "import tune_lung; print(tune_lung.__file__)"]
        environment = {**os.environ, "PYTHONPATH": str(self.root)}
        told = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=True).stdout.strip()
        if Path(told).parent != self.root / "tune_lung":
            raise RuntimeError(f"Python finds tune_lung at {told}, not in {self.root}.")

    def _code(self) -> list[tuple[str, str]]:
        """Give the digest of each file that a search runs or reads."""
        files = [path for folder in ("tune_lung", "search_spaces") for path in (self.root / folder).rglob("*.py")]
        return sorted((str(path.relative_to(self.root)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files)


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search that runs, or has run."""

    run: Path
    """The run's folder, once it has ended."""
    process: "subprocess.Popen[bytes] | None"
    """None where it was run before."""
    log: Path | None

    def end(self) -> str | None:
        """Wait for its end; return None when it went well, else the last of what it printed."""
        if self.process is None or self.log is None:
            return None
        status = self.process.wait()
        if status == 0:
            (self.log.parent / "run").rename(self.run)
            shutil.rmtree(self.log.parent)
            return None
        return f"exit status {status}: {self.log.read_text().strip().rpartition(chr(10))[2]} (see {self.log})"

    def stop(self) -> None:
        """End it where it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


def show_same_tables(base: str | None, folder: Path) -> bool:
    """Run the small searches with this tree and an earlier one, print a line for each space, and say whether all were the same.

    Args:
        base: The earlier commit; None for that before the issue.
        folder: Where runs stay.

    Raises:
        InputError: There is no such commit here.
    """
    commit = base or _BEFORE_THE_ISSUE
    os.nice(_NICE)
    with tempfile.TemporaryDirectory(prefix="tune_lung-evidence-") as name:
        earlier = Tree(root=Path(name).resolve() / "base", runs=folder / "base")
        _unpack(commit, earlier.root)
        present = Tree(root=_ROOT, runs=folder / "present")
        for tree in (earlier, present):
            tree.check_imports()
        return all([_show(space, earlier, present) for space in sorted({*earlier.spaces(), *present.spaces()})])


def _unpack(commit: str, folder: Path) -> None:
    """Lay a commit's files out in a folder."""
    done = subprocess.run(["git", "-C", str(_ROOT), "archive", commit], capture_output=True, check=False)
    if done.returncode:
        raise InputError(f"There is no commit {commit} here to compare with. A shallow clone lacks it; name another by --base.")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


def _show(space: str, earlier: Tree, present: Tree) -> bool:
    if space not in earlier.spaces():
        print(f"{space}: only in this tree", flush=True)
        return True
    if space not in present.spaces():
        print(f"{space}: GONE", flush=True)
        return False
    options = (*_OPTIONS, *SEARCHES.get(space, _OTHERS))
    searches = [tree.begin(space, *options) for tree in (earlier, present)]
    try:
        failures = [failure for search in searches if (failure := search.end()) is not None]
    finally:
        for search in searches:
            search.stop()
    if failures:
        print(f"{space}: FAILED: {'; '.join(failures)}", flush=True)
        return False
    differences = list(differences_of(*(search.run for search in searches)))
    if differences:
        print(f"{space}: DIFFERS: {'; '.join(differences)}", flush=True)
        return False
    before, now = ({table: _read(search.run, table) for table in TABLES} for search in searches)
    rows = ", ".join(f"{len(table)} {name}" for name, table in now.items())
    added = [f"{name}.{column}" for name in TABLES for column in now[name].columns.difference(before[name].columns)]
    print(f"{space}: equal: {rows}{'; added: ' if added else ''}{', '.join(added)}", flush=True)
    return True


def differences_of(earlier: Path, present: Path) -> Iterator[str]:
    """Name what of a run's tables is not as in an earlier one's: rows, values or types; times and added columns left out."""
    for name, keys in TABLES.items():
        before, now = _read(earlier, name), _read(present, name)
        gone = before.columns.difference(now.columns)
        if len(gone):
            yield f"{name} has no {', '.join(gone)}"
            continue
        columns = [column for column in before.columns if column not in TIMES]
        before, now = (table[columns].sort_values(list(keys)).reset_index(drop=True) for table in (before, now))
        if len(before) != len(now):
            yield f"{name} has {len(now)} rows, not {len(before)}"
            continue
        others = [column for column in columns if not _are_equal(before[column], now[column])]
        if others:
            yield f"{name} has other values in {', '.join(others)}"


def _read(run: Path, table: str) -> pd.DataFrame:
    return pd.read_parquet(run / table)


def _are_equal(one: "pd.Series[object]", other: "pd.Series[object]") -> bool:
    try:
        pd.testing.assert_series_equal(one, other, check_exact=True)
    except AssertionError:
        return False
    return True
