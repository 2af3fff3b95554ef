"""What a run has finished writing is there after a power cut: content, name, and the folders above it."""

import errno
import os
import stat
import time
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from tune_lung.analysis.figures import save_figure
from tune_lung.data.cache import Cache
from tune_lung.files import make_folder, whole_file, write_json_with_digest, write_text_whole
from tune_lung.results.imported import ForeignSearch, ForeignTrial, run_of, write_run
from tune_lung.results.layout import RunPaths
from tune_lung.results.ledger import Ledger
from tune_lung.results.ownership import Ownership
from tune_lung.results.schema import TrialStatus
from tune_lung.training.checkpoints import Checkpoint, Checkpoints

from tests.fabricated_run import write_fabricated_run
from tests.power_cut import Disk


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk.watched(tmp_path, monkeypatch)


def checkpoint(epoch: int) -> Checkpoint:
    return Checkpoint(tensors={"network.weight": torch.full((2,), float(epoch))}, state={"epoch": epoch, "best_epoch": epoch})


def test_a_file_and_the_folders_that_were_made_for_it(disk, tmp_path):
    write_text_whole(tmp_path / "a" / "b" / "c.txt", "content")
    assert disk.lost() == []
    write_text_whole(tmp_path / "a" / "b" / "c.txt", "other content")
    assert disk.lost() == []


def test_what_need_not_last_costs_no_folder(disk, tmp_path):
    write_text_whole(tmp_path / "a" / "c.txt", "content", lasts=False)
    assert disk.num_folders_written == 0
    assert disk.lost() == ["a", "a/c.txt"]


def test_a_folder(disk, tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert disk.lost() == []
    assert disk.num_folders_written == 2


def test_a_whole_run_with_all_its_tables(disk, tmp_path):
    root = write_fabricated_run(tmp_path / "runs" / "run", num_test=10)
    assert disk.lost() == []
    Ledger(root).write_run_profile([{"part": "idle", "seconds": 1.0}])
    write_json_with_digest(RunPaths(root).lessons, {"trials": []})
    save_figure(Figure(), RunPaths(root).figure("figure4"))
    assert disk.lost() == []


def test_a_damaged_part_that_was_set_aside_and_the_one_in_its_place(disk, tmp_path):
    root = write_fabricated_run(tmp_path / "run", num_test=10)
    (part,) = [part for part in RunPaths(root).parts("trials") if part.stem != "schema"][:1]
    part.write_bytes(b"damage")
    Ledger(root).write_trial({"trial_id": part.stem, "cell": "cnn", "status": "running"})
    assert disk.lost() == []


def test_checkpoints_and_those_before_them(disk, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "3f2a")
    for epoch in (1, 2, 3):
        checkpoints.save_best(checkpoint(epoch))
        checkpoints.save_last(checkpoint(epoch))
        assert disk.lost() == []
    assert sorted(path.stem for path in checkpoints.directory.iterdir()) == ["best", "last", "previous", "previous_best"]


def test_an_imported_run(disk, tmp_path):
    trial = ForeignTrial(name="0", params={"batch_size": 16}, status=TrialStatus.COMPLETED, score=0.5, measured={}, epochs=())
    search = ForeignSearch(name="theirs", source="notebook", trials=(trial,), axes={}, select_by="accuracy", started_utc=None)
    write_run(run_of(search), tmp_path / "runs" / "imported")
    assert disk.lost() == ["runs/imported/.lock"]  # it is made anew by whoever needs it


def test_who_owns_a_run_but_not_each_beat_of_its_heart(disk, tmp_path, monkeypatch):
    monkeypatch.setattr("tune_lung.results.ownership._SECONDS_BETWEEN_BEATS", 0.01)
    with Ownership.claim(tmp_path) as ownership:
        assert disk.num_folders_written == 1
        while ownership._owner.beat < 3:
            time.sleep(0.01)
        assert disk.num_folders_written == 1
    assert disk.num_folders_written == 2
    assert disk.lost() == [".lock"]


def test_what_can_be_built_again_costs_no_folder(disk, tmp_path):
    with Cache.open(tmp_path / "cache") as cache:
        cache.entry("stores", "ab", build=lambda folder: write_text_whole(folder / "x", "x", lasts=False), check=lambda _: None)
        (tmp_path / "image").write_bytes(b"x")
        cache.digests(tmp_path).of({"image": tmp_path / "image"})
    assert disk.num_folders_written == 0


def test_a_file_system_that_cannot_write_folders_is_believed(tmp_path, monkeypatch):
    real = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with whole_file(tmp_path / "a" / "file") as temporary:
        temporary.write_text("content")
    assert (tmp_path / "a" / "file").read_text() == "content"
