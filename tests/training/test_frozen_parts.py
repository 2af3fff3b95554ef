"""What training never changes of a network is kept once, for all trials that share it."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from tune_lung.errors import SupersededError
from tune_lung.models.network import changing_state, frozen_state
from tune_lung.training import fit as fit_module
from tune_lung.training.checkpoints import FROZEN, Checkpoint, Checkpoints, load, save
from tune_lung.training.fit import fit
from tune_lung.training.frozen_parts import FrozenParts
from tune_lung.training.job import TrainingJob
from tune_lung.training.tensor_files import DamagedCheckpointError

MakeJob = Callable[..., TrainingJob]
POINT = {"model": "resnet18", "frozen_blocks": 2, "weights": "random", "batch_size": 8, "max_epochs": 1}
PART = {"prefix.weight": torch.arange(6.0).view(2, 3)}


def trained(job: TrainingJob, folder: Path, name: str = "trial") -> Checkpoints:
    """A trial of a run, trained to its end."""
    checkpoints = Checkpoints(folder / name, shared=folder / "frozen")
    list(fit(job, checkpoints))
    return checkpoints


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_what_is_kept_of_a_network_is_the_whole_network(make_job: MakeJob, tmp_path: Path, protocol: str) -> None:
    job = make_job(POINT, protocol=protocol)
    checkpoints = trained(job, tmp_path)
    best, network = load(checkpoints.best), job.build_network()
    frozen = checkpoints.frozen_parts.load(best.state[FROZEN])
    assert frozen.keys() | best.part("network").keys() == network.state_dict().keys()
    assert not frozen.keys() & best.part("network").keys()
    assert all(torch.equal(frozen[name], tensor) for name, tensor in frozen_state(network).items())
    assert frozen.keys() == {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert best.part("network").keys() == changing_state(network).keys()


def test_trials_with_the_same_frozen_part_share_one_file_and_others_do_not(make_job: MakeJob, tmp_path: Path) -> None:
    trained(make_job(POINT), tmp_path, "one")
    trained(make_job(POINT | {"learning_rate": 0.02}), tmp_path, "two")
    assert len(names_in(tmp_path / "frozen")) == 1
    trained(make_job(POINT | {"frozen_blocks": 1}), tmp_path, "three")
    trained(replace(make_job(POINT), network_seed=8), tmp_path, "another start")
    assert len(names_in(tmp_path / "frozen")) == 3


def test_a_network_of_which_nothing_is_frozen_leaves_nothing_out(make_job: MakeJob, tmp_path: Path) -> None:
    checkpoints = trained(make_job(POINT | {"frozen_blocks": 0}), tmp_path)
    assert load(checkpoints.best).state[FROZEN] is None
    assert not (tmp_path / "frozen").exists()


def test_a_frozen_part_is_there_before_the_network_that_names_it(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = []
    save_best = Checkpoints.save_best

    def seen(self: Checkpoints, checkpoint: Checkpoint) -> None:
        there.append(names_in(tmp_path / "frozen") == [f"{checkpoint.state[FROZEN]}.safetensors"])
        save_best(self, checkpoint)

    monkeypatch.setattr(Checkpoints, "save_best", seen)
    trained(make_job(POINT), tmp_path)
    assert there == [True]


def test_a_trial_of_an_earlier_version_that_goes_on_names_its_frozen_part(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it gets better or not: here it does not."""
    monkeypatch.setattr(fit_module, "SECONDS_BETWEEN_LAST", 0.0)
    job = make_job(POINT | {"max_epochs": 9})
    checkpoints = Checkpoints(tmp_path / "trial", shared=tmp_path / "frozen")
    list(islice(fit(job, checkpoints), 1))
    now = load(checkpoints.best)
    save(checkpoints.best, replace(now, state={name: value for name, value in now.state.items() if name != FROZEN}))
    for path in (tmp_path / "frozen").iterdir():
        path.unlink()
    next(fit(job, checkpoints))  # the first epoch is told again, and nothing trained
    assert load(checkpoints.best).state == now.state
    assert names_in(tmp_path / "frozen") == [f"{now.state[FROZEN]}.safetensors"]


@pytest.mark.parametrize("change", ["one byte", "cut", "gone", "link", "of another"])
def test_a_frozen_part_that_is_not_what_was_written_is_refused_and_written_anew(tmp_path: Path, change: str) -> None:
    parts = FrozenParts(tmp_path / "frozen")
    digest, other = parts.keep(PART), parts.keep({"prefix.weight": torch.zeros(3)})
    path = tmp_path / "frozen" / f"{digest}.safetensors"
    content = path.read_bytes()
    path.unlink()
    if change == "one byte":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif change == "cut":
        path.write_bytes(content[:-1])
    elif change == "link":
        (tmp_path / "elsewhere").write_bytes(b"a user's own")
        path.symlink_to(tmp_path / "elsewhere")
    elif change == "of another":
        path.write_bytes((tmp_path / "frozen" / f"{other}.safetensors").read_bytes())
    expected = {"gone": "was not kept", "link": "was not kept", "of another": "is another network's"}
    match = rf"^The frozen part of its network .*{expected.get(change, '(cannot be read|does not match)')}"
    with pytest.raises(DamagedCheckpointError, match=match):
        parts.load(digest)
    assert parts.keep(PART) == digest
    assert torch.equal(parts.load(digest)["prefix.weight"], PART["prefix.weight"])
    assert not path.is_symlink()
    if change == "link":
        assert (tmp_path / "elsewhere").read_bytes() == b"a user's own"


def test_who_does_not_own_the_run_any_more_writes_no_frozen_part(tmp_path: Path) -> None:
    def refuse() -> str:
        raise SupersededError("taken over")

    with pytest.raises(SupersededError):
        FrozenParts(tmp_path / "frozen", refuse).keep(PART)
    assert not (tmp_path / "frozen").exists()


def test_what_nothing_names_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    folder = tmp_path / "frozen"
    parts = FrozenParts(folder)
    kept, _ = parts.keep(PART), parts.keep({"prefix.weight": torch.zeros(3)})
    unfinished = f".{kept}.safetensors.0123abcd"
    (folder / unfinished).write_bytes(b"half")
    (folder / "notes.txt").write_text("a user's own")
    (folder / f"{'0' * 64}.safetensors").symlink_to(tmp_path)
    parts.remove_all_but({kept})
    assert names_in(folder) == sorted([f"{kept}.safetensors", "notes.txt", f"{'0' * 64}.safetensors"])
    parts.remove_all_but(())
    assert names_in(folder) == sorted(["notes.txt", f"{'0' * 64}.safetensors"])
