"""Random kills, pauses and damage against a small search, round after round: `python -m tests.faults.soak N`.

Each round begins a search, kills its driver at a random moment, damages a random file or none, and resumes, up to three times;
then it must end as an undisturbed one. One driver in three is not killed but paused, its lock not shared, until another search
has taken the run over and ended it: then it goes on, and must change nothing.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tune_lung.results.layout import RunPaths
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
    searched,
    wait_until,
)

_SPACES: dict[str, tuple[str, ...]] = {"grid": (), "sampled": SAMPLED}
"""Options of each search, beside those of all."""
_READ_BACK = {".json", ".parquet", ".safetensors", ".npy", ".npz"}
_MOST_KILLS = 3
_SHARE_OF_LATE_KILLS = 0.75
_SHARE_OF_PAUSES = 1 / 3
_LONGEST_LIFE_SECONDS = 8.0
"""From the start, or for late kills from the moment at which the search owns its run."""


def main() -> int:
    """Run the rounds and print a line each; the exit status is 0 when every one survived and no row was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("rounds", type=int, metavar="N", help="how many rounds")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of kills and damage (default: the clock)")
    options = parser.parse_args()
    draws = np.random.default_rng(options.seed)
    num_survived = num_lost = num_double = 0
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="tune_lung-soak-") as name:
        folder = Path(name)
        undisturbed = {space: _undisturbed(folder / f"undisturbed-{kind}", space) for kind, space in _SPACES.items()}
        for number in range(1, options.rounds + 1):
            kind = str(draws.choice(list(_SPACES)))
            told, lost, double = _round(folder / f"round-{number}", _SPACES[kind], undisturbed[_SPACES[kind]], draws)
            num_lost, num_double = num_lost + lost, num_double + double
            num_survived += told.endswith("survived")
            print(f"{number:>4}/{options.rounds} {kind}: {told}", flush=True)
    print(f"survived {num_survived} of {options.rounds}, lost {num_lost} rows, {num_double} duplicate rows")
    return 0 if (num_survived, num_lost, num_double) == (options.rounds, 0, 0) else 1


def _options(folder: Path, sampled: tuple[str, ...]) -> list[str]:
    more = (*sampled, "--cache", str(folder / "cache"))
    options = begin(folder, *more, space=SAMPLED_SPACE) if sampled else begin(folder, *more)
    return [*options, "--max-epochs", "4"]


def _undisturbed(folder: Path, sampled: tuple[str, ...]) -> Path:
    searched(*_options(folder, sampled))
    return folder / "run"


def _round(folder: Path, sampled: tuple[str, ...], undisturbed: Path, draws: np.random.Generator) -> tuple[str, int, int]:
    """Disturb one search; say what was done, and count rows lost to kills, damaged files apart, and rows that are there twice."""
    run, command, told, num_lost = folder / "run", _options(folder, sampled), [], 0
    paused: list[SearchProcess] = []
    for _ in range(draws.integers(1, _MOST_KILLS + 1)):
        before = keys_of(run)
        search, seconds = _disturbed_search(command, run, draws)
        search.kill(signal.SIGSTOP)
        owner = read_owner(RunPaths(run))
        is_owner = owner is not None and owner.pid == search.process.pid and not owner.has_ended
        is_paused = is_owner and draws.random() < _SHARE_OF_PAUSES
        if is_paused:
            RunPaths(run).lock.unlink()
            paused.append(search)
        else:
            search.kill()
            search.end()
        num_lost += sum(len(rows - keys_of(run)[table]) for table, rows in before.items())
        told.append(f"{'paused' if is_paused else 'killed'} after {seconds:.1f} s")
        if (run / "run.json").exists():
            command = ["--resume", str(run)]
            told += _damage(folder, draws)
        else:
            shutil.rmtree(run, ignore_errors=True)
    before = keys_of(run)
    try:
        searched(*command)
        for search in paused:
            search.kill(signal.SIGCONT)
            status, printed = search.end()
            assert status == 3, f"A paused search ended with {status}: {printed}"
        assert_as_if_nothing_had_happened(run, undisturbed)
        told.append("survived")
    except AssertionError as error:
        told.append(f"DIFFERS: {error}")
    finally:
        for search in paused:
            search.kill()
            search.process.wait()
    after = keys_of(run)
    num_lost += sum(len(rows - after.get(table, set())) for table, rows in before.items())
    num_double = num_duplicates(run) if after else 0
    if told[-1] == "survived":
        shutil.rmtree(folder)
    return "; ".join(told), num_lost, num_double


def _disturbed_search(command: list[str], run: Path, draws: np.random.Generator) -> tuple[SearchProcess, float]:
    """Start a search that is to be disturbed now; return it, and the seconds that it was given."""
    owner = read_owner(RunPaths(run))
    search = SearchProcess.start(*command)
    if draws.random() < _SHARE_OF_LATE_KILLS:  # most of a small search's time is its start
        wait_until(lambda: read_owner(RunPaths(run)) not in (None, owner) or search.process.poll() is not None)
    seconds = draws.uniform(0.0, _LONGEST_LIFE_SECONDS)
    time.sleep(seconds)
    return search, float(seconds)


def _damage(folder: Path, draws: np.random.Generator) -> list[str]:
    """Damage a random file that is read back, one time in two."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in _READ_BACK]
    if draws.random() < 0.5 or not files:
        return []
    path, kind = files[draws.integers(len(files))], str(draws.choice(list(DAMAGES)))
    DAMAGES[kind](path)
    return [f"{kind} in {path.relative_to(folder).parts[-2]}/{path.name}"]


if __name__ == "__main__":
    sys.exit(main())
