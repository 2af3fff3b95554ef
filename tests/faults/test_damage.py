"""Damaged files: noticed, named, survived.

Every kind of damage to the files of a run is done here. For the cache, for checkpoints and for JSON files, cut tails and zero
bytes are in the tests of their own modules.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tune_lung.report import main as report
from tune_lung.results.reader import read_run

from tests.faults.damage import DAMAGES
from tests.faults.search_process import (
    SAMPLED,
    SAMPLED_SPACE,
    SPACE,
    SearchProcess,
    assert_as_if_nothing_had_happened,
    begin,
    searched,
    wait_until,
)

pytestmark = pytest.mark.faults


KILLED = -9


@pytest.fixture(scope="module")
def cut_short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sampled run killed in its sixth of eight trials: there is something of everything but predictions."""
    folder = tmp_path_factory.mktemp("cut_short")
    options = begin(folder, *SAMPLED, "--cache", str(folder / "cache"), space=SAMPLED_SPACE)
    fault = {"do": "kill driver", "file": "*/decisions/.[0-9a-f]*.parquet.*", "at": 6}
    searched(*options, "--max-epochs", "4", status=KILLED, fault=fault)
    return folder


@pytest.fixture
def copied(cut_short: Path, tmp_path: Path) -> Path:
    """Run and cache of one's own."""
    shutil.copytree(cut_short, tmp_path, dirs_exist_ok=True)
    return tmp_path


def resumed(folder: Path) -> str:
    """Resume a copy of the run: what was remembered of the run, one trial at once, was so where it lay."""
    return searched("--resume", str(folder / "run"), "--cache", str(folder / "cache"), "--max-concurrent", "1")


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_of_the_run_that_is_read_back(copied: Path, undisturbed_sampled: Path, damage: str) -> None:
    """Manifest, owner, every table and every checkpoint at once: all is done again, and comes out the same."""
    run = copied / "run"
    parts = [path for path in run.glob("*/*.parquet") if path.stem != "schema"]
    assert {path.parent.name for path in parts} == {"trials", "epochs", "decisions", "images", "validation_predictions"}
    for path in (run / "run.json", run / ".owner-1.json", *run.glob("checkpoints/*/*.safetensors"), *parts):
        DAMAGES[damage](path)
    assert set(read_run(run).damaged) == {"run.json", *(f"{path.parent.name}/{path.name}" for path in parts)}
    printed = resumed(copied)
    assert "run.json is damaged; its copy is used." in printed
    told = next(line for line in printed.splitlines() if line.startswith("Damaged and passed over: run.json"))
    assert all(f"{path.parent.name}/{path.name}" in told for path in parts)
    assert_as_if_nothing_had_happened(run, undisturbed_sampled)
    assert read_run(run).manifest["attempt"] == 2


def test_the_newest_checkpoint_of_the_trial_that_goes_on(copied: Path, undisturbed_sampled: Path) -> None:
    run = copied / "run"
    trials = read_run(run).trials
    (running,) = trials.loc[trials["status"] == "running", "trial_id"]
    DAMAGES["one byte flipped"](run / "checkpoints" / running / "last.safetensors")
    assert f"Trial {running} " in (printed := resumed(copied))
    assert "damaged and passed over: checkpoint last." in printed
    assert_as_if_nothing_had_happened(run, undisturbed_sampled)


def test_every_file_of_the_cache(copied: Path, undisturbed_sampled: Path) -> None:
    files = [
        path for kind in ("stores", "phantoms", "digests") for path in (copied / "cache" / kind).rglob("*") if path.is_file()
    ]
    assert {".npy", ".npz", ".json", ".png"} <= {path.suffix for path in files}
    for path in files:
        DAMAGES["one byte flipped"](path)
    printed = resumed(copied)
    assert "An entry of the cache (stores) is damaged" in printed
    assert "An entry of the cache (phantoms) is damaged" in printed
    assert_as_if_nothing_had_happened(copied / "run", undisturbed_sampled)


def test_prefix_features(undisturbed: Path, tmp_path: Path) -> None:
    cache = ("--cache", str(tmp_path / "cache"))
    fault = {"do": "kill driver", "file": "*/checkpoints/*/.last.safetensors.*", "at": 1}
    begun = begin(tmp_path, *cache)
    searched(*begun, "--max-epochs", "4", "--set", "model=resnet18", status=KILLED, fault=fault)
    files = [path for path in (tmp_path / "cache" / "features").rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        DAMAGES["one byte flipped"](path)
    searched("--resume", str(tmp_path / "run"), *cache)
    run, other = read_run(tmp_path / "run"), read_run(undisturbed)
    same = other.trials.merge(run.trials, on=["trial_id", "selection_score", "val_loss", "test_macro_recall"])
    assert len(same) == len(run.trials) == 1


def test_what_a_warm_start_taught(undisturbed_sampled: Path, tmp_path: Path) -> None:
    fault = {"do": "kill driver", "file": "*/trials/.[0-9a-f]*.parquet.*", "at": 1}
    options = begin(tmp_path, *SAMPLED, "--warm-start", str(undisturbed_sampled), space=SAMPLED_SPACE)
    searched(*options, "--max-epochs", "4", status=KILLED, fault=fault)
    DAMAGES["one byte flipped"](tmp_path / "run" / "warm_start.json")
    printed = searched("--resume", str(tmp_path / "run"))
    assert "warm_start.json is damaged: going on without what the earlier run taught" in printed
    assert read_run(tmp_path / "run").manifest["status"] == "completed"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_reported_with_what_is_left(
    undisturbed: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    part = next(path for path in (run / "predictions").glob("*.parquet") if path.stem != "schema")
    for path in (run / "run.json", part):
        DAMAGES[damage](path)
    assert report([str(run)]) == 0
    printed = capsys.readouterr().out
    assert f"predictions/{part.name}" in printed
    assert "run.json" in printed


def test_a_best_network_damaged_or_lost_before_the_evaluation_is_trained_again(tmp_path: Path, undisturbed: Path) -> None:
    fault = {"do": "kill driver", "file": "*/predictions/.[0-9a-f]*.parquet.*", "at": 1}
    searched(*begin(tmp_path), "--max-epochs", "4", status=KILLED, fault=fault)
    damaged, lost, _ = sorted((tmp_path / "run" / "checkpoints").iterdir())
    DAMAGES["one byte flipped"](damaged / "best.safetensors")
    (lost / "best.safetensors").unlink()
    printed = searched("--resume", str(tmp_path / "run"))
    for folder, why in ((damaged, "The checkpoint 'best' does not match its digest."), (lost, "Its network was not kept.")):
        told = next(line for line in printed.splitlines() if line.startswith(f"Trial {folder.name} "))
        assert told.endswith(f" is trained again, to be tested. {why}")
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("table", ["trials", "epochs", "decisions", "validation_predictions"])
def test_one_part_of_each_table(undisturbed_sampled: Path, tmp_path: Path, table: str) -> None:
    """A finished run of which a part is lost: what was in it is there again, trained again but for decisions."""
    run = Path(shutil.copytree(undisturbed_sampled, tmp_path / "run"))
    part = sorted(path for path in (run / table).glob("*.parquet") if path.stem != "schema")[0]
    for path in (part, run / table / "schema.parquet"):
        DAMAGES["the tail cut"](path)
    printed = searched("--resume", str(run), "--seed", "3")
    assert f"Damaged and passed over: {table}/{part.name}, {table}/schema.parquet" in printed
    # A trial whose own row is lost is not known to have ended: it is drawn again.
    assert ("trained again from" in printed) == (table in {"epochs", "validation_predictions"})
    assert_as_if_nothing_had_happened(run, undisturbed_sampled)


def invert_pixels(cache: Path) -> None:
    """Write other pixels into the files as they lie there: a worker that has mapped them sees them."""
    for path in cache.glob("stores/*/*.npy"):
        values = np.load(path, mmap_mode="r+")
        values[:] = 255 - values
        values.flush()


def cut_images_and_features(cache: Path) -> None:
    for path in (*cache.glob("stores/*/*.npy"), *cache.glob("features/*/train")):
        os.truncate(path, 40)


@pytest.mark.parametrize(
    ("damage", "options", "space", "before"),
    [
        (invert_pixels, SAMPLED, SAMPLED_SPACE, "undisturbed_sampled"),
        (cut_images_and_features, (), SPACE, "undisturbed"),
    ],
    ids=["inverted in the middle of a trial", "cut"],
)
def test_a_cache_damaged_while_a_search_runs(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    damage: Callable[[Path], None],
    options: Sequence[str],
    space: str,
    before: str,
) -> None:
    """A worker waits where it saves its first network: after one of several epochs where trials are compared, else at its end."""
    undisturbed: Path = request.getfixturevalue(before)
    waits, goes_on = tmp_path / "waits", tmp_path / "goes_on"
    fault = {"do": "wait", "file": "*/.best.*", "at": 1, "once": str(waits), "note": str(goes_on)}
    begun = begin(tmp_path, *options, "--cache", str(tmp_path / "cache"), space=space)
    search = SearchProcess.start(*begun, "--max-epochs", "4", fault=fault)
    wait_until(waits.exists)
    damage(tmp_path / "cache")
    goes_on.touch()
    status, printed = search.end()
    assert status == 0, printed
    assert_as_if_nothing_had_happened(tmp_path / "run", undisturbed)
    if space == SAMPLED_SPACE:
        assert "damaged_cache: " in printed
        assert "tried again" in printed
