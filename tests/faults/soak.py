"""Random kills, pauses, damage and forgery against a small search, round after round: `python -m tests.faults.soak N`.

Each round begins a search, kills its driver at a random moment or pauses it while another takes the run over, damages a random
file or none, forges the manifest or puts copies of parts beside them, and resumes, up to three times; then it must end as an
undisturbed one. What lies around that is none of ours must lie there untouched.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tune_lung.files import sha256_of_file, write_json_with_digest
from tune_lung.results.layout import RunPaths
from tune_lung.results.ledger import read_manifest
from tune_lung.results.ownership import read_owner

from tests.faults.damage import DAMAGES
from tests.faults.search_process import (
    SAMPLED,
    SAMPLED_SPACE,
    SearchProcess,
    assert_as_if_nothing_had_happened,
    begin,
    keys_of,
    num_duplicates,
    parts_of,
    searched,
    wait_until,
)

_SPACES: dict[str, tuple[str, ...]] = {"grid": (), "sampled": SAMPLED}
"""Options of each search, beside those of all."""
_READ_BACK = {".json", ".parquet", ".safetensors", ".npy", ".npz"}
_MOST_DISTURBANCES = 3
_SHARE_OF_PAUSES = 0.3
_COPIES = (
    "{} (conflicted copy 2026-11-27).parquet",
    "{} 2.parquet",
    "{}-copy.parquet",
    "{}.sync-conflict-20261127-A1B2C3D.parquet",
)
_SUPERSEDED = 3
"""Exit status of a search whose run another has taken over."""
_SHARE_OF_LATE_ENDS = 0.75
_LONGEST_LIFE_SECONDS = 8.0
"""From the start, or for late ends from the moment at which the search owns its run."""


def main() -> int:
    """Run the rounds and print a line each; the exit status is 0 when every one survived and no row was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("rounds", type=int, metavar="N", help="how many rounds")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of kills and damage (default: the clock)")
    options = parser.parse_args()
    draws = np.random.default_rng(options.seed)
    num_survived, total = 0, _Losses()
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="tune_lung-soak-") as name:
        folder = Path(name)
        undisturbed = {space: _undisturbed(folder / f"undisturbed-{kind}", space) for kind, space in _SPACES.items()}
        for number in range(1, options.rounds + 1):
            kind = str(draws.choice(list(_SPACES)))
            told, losses = _Round(folder / f"round-{number}", _SPACES[kind], draws).run(undisturbed[_SPACES[kind]])
            total += losses
            num_survived += told.endswith("survived")
            print(f"{number:>4}/{options.rounds} {kind}: {told}", flush=True)
    print(f"survived {num_survived} of {options.rounds}, {total}")
    return 0 if num_survived == options.rounds and total == _Losses() else 1


@dataclass(frozen=True, kw_only=True)
class _Losses:
    """What should never be."""

    rows: int = 0
    """Rows that were there and are not, but for those in a damaged file."""
    duplicates: int = 0
    """Rows that are there twice."""
    touched: int = 0
    """Files that are not ours, changed or gone."""

    def __add__(self, other: "_Losses") -> "_Losses":
        return _Losses(
            rows=self.rows + other.rows, duplicates=self.duplicates + other.duplicates, touched=self.touched + other.touched
        )

    def __str__(self) -> str:
        return f"lost {self.rows} rows, {self.duplicates} duplicate rows, {self.touched} foreign files touched"


def _options(folder: Path, sampled: tuple[str, ...]) -> list[str]:
    more = (*sampled, "--cache", str(folder / "cache"))
    options = begin(folder, *more, space=SAMPLED_SPACE) if sampled else begin(folder, *more)
    return [*options, "--max-epochs", "4"]


def _undisturbed(folder: Path, sampled: tuple[str, ...]) -> Path:
    searched(*_options(folder, sampled))
    return folder / "run"


class _Round:
    """One search that is disturbed."""

    def __init__(self, folder: Path, sampled: tuple[str, ...], draws: np.random.Generator) -> None:
        """Make its folder, and things in it that are none of ours."""
        self._folder, self._run, self._draws = folder, folder / "run", draws
        self._command = _options(folder, sampled)
        self._told: list[str] = []
        self._paused: list[SearchProcess] = []
        self._lost = 0
        self._foreign: dict[Path, str] = {}
        self._plant(folder / "precious" / "notes.txt", b"mine")
        self._plant(folder / "precious" / "stores" / "data" / "train.npy", bytes(1000))

    def run(self, undisturbed: Path) -> tuple[str, _Losses]:
        """Disturb the search, and let it end; say what was done, and what is lost."""
        for _ in range(self._draws.integers(1, _MOST_DISTURBANCES + 1)):
            before = keys_of(self._run)
            self._disturb()
            self._count_lost(before)
            if (self._run / "run.json").exists():
                self._command = ["--resume", str(self._run)]
                self._leave_foreign_files()
                self._forge()
                self._damage()
        before = keys_of(self._run)
        try:
            searched(*self._command)
            self._end_paused()
            assert_as_if_nothing_had_happened(self._run, undisturbed)
            self._told.append("survived")
        except AssertionError as error:
            self._told.append(f"DIFFERS: {error}")
        finally:
            for search in self._paused:
                search.kill()
                search.process.wait()
        self._count_lost(before)
        losses = _Losses(
            rows=self._lost,
            duplicates=num_duplicates(self._run) if keys_of(self._run) else 0,
            touched=sum(not path.is_file() or sha256_of_file(path) != digest for path, digest in self._foreign.items()),
        )
        if self._told[-1] == "survived" and losses == _Losses():
            shutil.rmtree(self._folder)
        return "; ".join(self._told), losses

    def _count_lost(self, before: Mapping[str, set[tuple[Any, ...]]]) -> None:
        after = keys_of(self._run)
        self._lost += sum(len(rows - after.get(table, set())) for table, rows in before.items())

    def _disturb(self) -> None:
        """Start a search, give it some time, and kill it, or let it stand still until another has taken its run over."""
        owner = read_owner(RunPaths(self._run))
        search = SearchProcess.start(*self._command)
        if self._draws.random() < _SHARE_OF_LATE_ENDS:  # most of a small search's time is its start
            wait_until(lambda: read_owner(RunPaths(self._run)) not in (None, owner) or search.process.poll() is not None)
        seconds = self._draws.uniform(0.0, _LONGEST_LIFE_SECONDS)
        time.sleep(seconds)
        search.kill(signal.SIGSTOP)
        owner = read_owner(RunPaths(self._run))
        is_owner = owner is not None and owner.pid == search.process.pid and not owner.has_ended
        if is_owner and self._draws.random() < _SHARE_OF_PAUSES:
            RunPaths(self._run).lock.unlink()  # as on a machine that does not share it
            self._paused.append(search)
            self._told.append(f"paused after {seconds:.1f} s")
            return
        search.kill()
        search.end()
        self._told.append(f"killed after {seconds:.1f} s")

    def _end_paused(self) -> None:
        """Let those go on that stood still: each finds its run taken over."""
        for search in self._paused:
            search.kill(signal.SIGCONT)
            status, printed = search.end()
            assert status == _SUPERSEDED, f"A paused search ended with {status}: {printed}"

    def _plant(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self._foreign[path] = sha256_of_file(path)

    def _leave_foreign_files(self) -> None:
        """Put a synchroniser's copy of a part beside it, and a user's own files into the run and the cache."""
        if self._draws.random() < 0.5:
            return
        self._plant(self._run / "notes.txt", b"mine")
        if (self._folder / "cache").is_dir():
            self._plant(self._folder / "cache" / "stores" / "mine.txt", b"mine")
        parts = parts_of(self._run)
        if parts:
            part = parts[self._draws.integers(len(parts))]
            name = str(self._draws.choice(_COPIES)).format(part.stem)
            if not (part.parent / name).exists():
                self._plant(part.parent / name, part.read_bytes()[: -40 if self._draws.random() < 0.3 else None])
                self._told.append(f"copied {part.parent.name}/{name}")

    def _forge(self) -> None:
        """Let the manifest order what a stranger would like."""
        if self._draws.random() < 0.5:
            return
        paths, precious = RunPaths(self._run), self._folder / "precious"
        orders = ["--cache", str(precious), "--cache-size", "1KB", "--out", str(precious), "--space", str(precious / "no.py")]
        for path in (paths.manifest, paths.manifest_copy):
            write_json_with_digest(path, {**read_manifest(paths), "command": orders})
        self._told.append("forged")

    def _damage(self) -> None:
        """Damage a random file that is read back, one time in two."""
        files = [path for path in self._folder.rglob("*") if path.is_file() and path.suffix in _READ_BACK]
        files = [path for path in files if path not in self._foreign]
        if self._draws.random() < 0.5 or not files:
            return
        path, kind = files[self._draws.integers(len(files))], str(self._draws.choice(list(DAMAGES)))
        DAMAGES[kind](path)
        self._told.append(f"{kind} in {path.parent.name}/{path.name}")


if __name__ == "__main__":
    sys.exit(main())
