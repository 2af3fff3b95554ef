"""Checkpoints that are whole, verified or refused."""

import os
from pathlib import Path

import pytest
import torch

from tune_lung.training.checkpoints import Checkpoint, Checkpoints, DamagedCheckpointError, Resumable, load, save

CHECKPOINT = Checkpoint(
    tensors={"network.w": torch.arange(6.0).view(2, 3), "optimizer.0.step": torch.tensor(3.0)}, state={"epoch": 3}
)


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    save(tmp_path / "best.safetensors", CHECKPOINT)
    loaded = load(tmp_path / "best.safetensors")
    assert loaded.state == {"epoch": 3}
    assert torch.equal(loaded.part("network")["w"], CHECKPOINT.tensors["network.w"])


@pytest.mark.parametrize("where", [0, 12, 60, -1, -20])
def test_one_flipped_bit_anywhere_is_noticed(tmp_path: Path, where: int) -> None:
    path = tmp_path / "best.safetensors"
    save(path, CHECKPOINT)
    content = bytearray(path.read_bytes())
    content[where] ^= 4
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="checkpoint 'best'"):
        load(path)


@pytest.mark.parametrize("size", [0, 7, 40, -1])
def test_a_cut_file_is_noticed(tmp_path: Path, size: int) -> None:
    path = tmp_path / "last.safetensors"
    save(path, CHECKPOINT)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedCheckpointError, match="checkpoint 'last'"):
        load(path)


def test_the_state_before_last_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2, 3):
        checkpoints.save_best(Checkpoint(tensors=CHECKPOINT.tensors, state={"epoch": epoch}))
        checkpoints.save_last(Checkpoint(tensors=CHECKPOINT.tensors, state={"epoch": epoch, "best_epoch": epoch}))
    assert (load(checkpoints.last).state["epoch"], load(checkpoints.previous).state["epoch"]) == (3, 2)
    checkpoints.last.unlink()
    newest = checkpoints.newest()
    assert newest.state is not None
    assert newest.best is not None
    assert (newest.state.state["epoch"], newest.best.state["epoch"]) == (2, 2)


def test_there_is_nothing_to_go_on_from_in_an_empty_folder(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).newest() == Resumable()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["pipe", "device", "header"])
def test_a_checkpoint_without_end_is_damaged(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "best.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:  # names of millions of tensors without values: the library makes an object of each
        header = b"{" + b'"a":{},' * 4_000_000
        path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(DamagedCheckpointError, match=r"no regular file|header of more than"):
        load(path)
