"""Training one trial."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tune_lung.families.registry import FAMILIES
from tune_lung.results.schema import TimePart
from tune_lung.training import fit as fit_module
from tune_lung.training.checkpoints import Checkpoints, load
from tune_lung.training.fit import DivergedError, EpochResult, checkpoint_bytes, fit
from tune_lung.training.job import TrainingJob
from tune_lung.training.loss import published_loss_floor
from tune_lung.training.stopwatch import Stopwatch

MakeJob = Callable[..., TrainingJob]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def numbers(results: list[EpochResult]) -> list[tuple[Any, ...]]:
    """The numbers of each epoch that must not depend on when or where it was trained."""
    return [(r.epoch, r.train_loss, r.validation, r.selection_score, r.best_epoch, r.stop_reason) for r in results]


def test_fit_learns_to_tell_stripes_apart(make_job: MakeJob, tmp_path: Path) -> None:
    results = list(fit(make_job(), Checkpoints(tmp_path)))
    assert results[-1].train_loss < results[0].train_loss
    assert max(result.validation["val_macro_recall"] for result in results) == 1.0


def test_fit_ends_at_max_epochs_with_its_reason(make_job: MakeJob, tmp_path: Path) -> None:
    results = list(fit(make_job(), Checkpoints(tmp_path)))
    assert [result.stop_reason for result in results] == [None, None, None, "max_epochs"]


def test_fit_ends_when_patience_is_spent(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job()
    still = replace(job, trial=job.trial.with_fields(max_epochs=50, patience=2, learning_rate=1e-12, weight_decay=0.0))
    results = list(fit(still, Checkpoints(tmp_path)))
    assert results[-1].stop_reason == "patience"
    assert results[-1].epoch == results[-1].best_epoch + 2


def test_fit_gives_the_same_numbers_twice(make_job: MakeJob, tmp_path: Path) -> None:
    first = list(fit(make_job(), Checkpoints(tmp_path / "a")))
    second = list(fit(make_job(), Checkpoints(tmp_path / "b")))
    assert numbers(first) == numbers(second)


def test_fit_gives_the_same_numbers_when_resumed_after_epoch_2(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "SECONDS_BETWEEN_LAST", 0.0)
    whole = list(fit(make_job(), Checkpoints(tmp_path / "whole")))
    cut = list(islice(fit(make_job(), Checkpoints(tmp_path / "cut")), 2))
    rest = list(fit(make_job(), Checkpoints(tmp_path / "cut"), known_epochs=2))
    assert [result.epoch for result in rest] == [3, 4]
    assert numbers(cut + rest) == numbers(whole)


@pytest.mark.parametrize("model", [next(iter(family.models)) for family in FAMILIES if family.takes_weights])
@pytest.mark.parametrize("frozen_blocks", [0, 3])
def test_every_familys_backbone_gives_the_same_numbers_when_resumed_whatever_others_draw(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, frozen_blocks: int
) -> None:
    """Dropout, and whole paths left out, are drawn too."""
    monkeypatch.setattr(fit_module, "SECONDS_BETWEEN_LAST", 0.0)
    point = {"model": model, "frozen_blocks": frozen_blocks, "weights": "random", "batch_size": 8, "max_epochs": 2}
    whole = list(fit(make_job(point), Checkpoints(tmp_path / "whole")))
    torch.rand(5)
    cut = list(islice(fit(make_job(point), Checkpoints(tmp_path / "cut")), 1))
    torch.rand(5)
    rest = list(fit(make_job(point), Checkpoints(tmp_path / "cut"), known_epochs=1))
    assert numbers(cut + rest) == numbers(whole)
    assert whole[0].train_loss != whole[1].train_loss


def test_fit_says_which_epochs_it_tells_again(make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "SECONDS_BETWEEN_LAST", 0.0)
    list(islice(fit(make_job(), Checkpoints(tmp_path)), 3))
    rest = list(fit(make_job(), Checkpoints(tmp_path), known_epochs=1))
    assert [(result.epoch, result.is_told_again) for result in rest] == [(2, True), (3, True), (4, False)]


def test_fit_goes_on_from_the_previous_state_when_the_last_is_damaged(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "SECONDS_BETWEEN_LAST", 0.0)
    checkpoints = Checkpoints(tmp_path)
    list(islice(fit(make_job(), checkpoints), 3))
    content = bytearray(checkpoints.last.read_bytes())
    content[-1] ^= 1
    checkpoints.last.write_bytes(content)
    result = next(fit(make_job(), checkpoints, known_epochs=2))
    assert (result.epoch, result.damaged_checkpoints) == (3, ("last",))


def test_fit_saves_the_state_to_go_on_from_at_rungs(make_job: MakeJob, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    saved = []
    for result in fit(make_job(), checkpoints, rungs={2}):
        newest = checkpoints.newest().state
        saved.append((result.epoch, newest and newest.state["epoch"]))
    assert saved == [(1, None), (2, 2), (3, 2), (4, 4)]


def test_a_stopwatch_takes_the_time_of_every_part_and_changes_no_number(make_job: MakeJob, tmp_path: Path) -> None:
    plain = list(fit(make_job(), Checkpoints(tmp_path / "plain")))
    timed = list(fit(make_job(), Checkpoints(tmp_path / "timed"), stopwatch=Stopwatch(torch.device("cpu"))))
    assert numbers(timed) == numbers(plain)
    assert [result.seconds_by_part for result in plain] == [{}] * 4
    in_every_epoch = {TimePart.STORE, TimePart.STEP, TimePart.EVALUATION}
    assert timed[0].seconds_by_part.keys() - {TimePart.CHECKPOINT} == in_every_epoch | {TimePart.START, TimePart.PREFIX}
    assert timed[1].seconds_by_part.keys() - {TimePart.CHECKPOINT} == in_every_epoch
    assert TimePart.CHECKPOINT in timed[-1].seconds_by_part
    trained = [result.seconds_by_part[TimePart.STORE] + result.seconds_by_part[TimePart.STEP] for result in timed]
    assert all(0 < parts <= result.epoch_seconds for parts, result in zip(trained, timed, strict=True))


def test_a_checkpoint_holds_no_frozen_parameter(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job({"model": "resnet18", "frozen_blocks": 4, "weights": "random", "max_epochs": 1})
    list(fit(job, Checkpoints(tmp_path)))
    kept = load(Checkpoints(tmp_path).best).part("network")
    frozen = {name for name, parameter in job.build_network().named_parameters() if not parameter.requires_grad}
    assert frozen
    assert not frozen & kept.keys()
    assert {"rest.fc.weight", "rest.fc.bias"} <= kept.keys()
    assert Checkpoints(tmp_path).best.stat().st_size < 200_000  # the whole network takes 45 MB


def test_fit_keeps_the_best_epochs_network(make_job: MakeJob, tmp_path: Path) -> None:
    results = list(fit(make_job(), Checkpoints(tmp_path)))
    best = max(results, key=lambda result: result.selection_score)
    assert load(Checkpoints(tmp_path).best).state["epoch"] == best.epoch == results[-1].best_epoch


def test_fit_ends_a_diverged_trial_with_the_epoch_named(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job()
    wild = replace(job, trial=job.trial.with_fields(optimizer="sgd", learning_rate=10.0, weight_decay=10.0, max_epochs=60))
    with pytest.raises(DivergedError, match=r"The (training|validation) loss is (nan|inf) at epoch \d+\."):
        list(fit(wild, Checkpoints(tmp_path)))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_loss_that_is_no_number_is_no_epoch(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    cross_entropy = functional.cross_entropy
    spoilt = lambda *given, **named: 0 * cross_entropy(*given, **named) + float(value)  # noqa: E731 - as the real one is called
    monkeypatch.setattr(functional, "cross_entropy", spoilt)
    with pytest.raises(DivergedError, match=rf"^The training loss is {value} at epoch 1\.$"):
        list(fit(make_job(), Checkpoints(tmp_path)))


def test_published_loss_stays_above_its_floor_and_selects_by_loss(make_job: MakeJob, tmp_path: Path) -> None:
    results = list(fit(make_job(protocol="published", select_by="val_loss"), Checkpoints(tmp_path)))
    # ln(e + 1) - 1 for two classes: what a softmax output of 1 for the right class gives
    assert published_loss_floor(2) == pytest.approx(0.31326, abs=1e-5)
    assert all(result.train_loss > published_loss_floor(2) for result in results)
    assert [result.selection_score for result in results] == [-result.validation["val_loss"] for result in results]


@pytest.mark.parametrize("select_by", ["val_recall:across", "val_recall:down"])
def test_the_kept_epoch_is_the_one_with_the_best_recall_of_the_class_that_counts(
    make_job: MakeJob, tmp_path: Path, select_by: str
) -> None:
    results = list(fit(make_job(select_by=select_by), Checkpoints(tmp_path)))
    scores = [result.validation[select_by] - 1e-5 * result.validation["val_loss"] for result in results]
    assert [result.selection_score for result in results] == scores
    best = 1 + scores.index(max(scores))
    assert results[-1].best_epoch == load(Checkpoints(tmp_path).best).state["epoch"] == best


def test_a_state_that_an_older_version_left_tells_what_it_knew_and_goes_on(make_job: MakeJob, tmp_path: Path) -> None:
    checkpoints, whole = Checkpoints(tmp_path / "older"), list(fit(make_job(), Checkpoints(tmp_path / "whole")))
    list(islice(fit(make_job(), checkpoints, rungs=(2,)), 2))
    written = load(checkpoints.last)
    older = [{name: value for name, value in row.items() if ":" not in name} for row in written.state["history"]]
    assert {"epoch", "train_loss", "val_loss", "val_macro_recall", "val_micro_recall", "selection_score"} <= set(older[0])
    checkpoints.save_last(replace(written, state=written.state | {"history": older}))
    results = list(fit(make_job(), checkpoints))
    assert [result.is_told_again for result in results] == [True, True, False, False]
    told = [{name: value for name, value in result.validation.items() if ":" not in name} for result in whole[:2]]
    assert [result.validation for result in results] == [*told, *(result.validation for result in whole[2:])]
    assert numbers(results[2:]) == numbers(whole[2:])


def test_a_state_with_another_history_is_passed_over(make_job: MakeJob, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    list(islice(fit(make_job(), checkpoints, rungs=(2,)), 2))
    written = load(checkpoints.last)
    checkpoints.save_last(replace(written, state=written.state | {"history": [{"epoch": 1}, {"epoch": 2}]}))
    first = next(fit(make_job(), checkpoints))
    assert (first.epoch, first.is_told_again, first.damaged_checkpoints) == (1, False, ("last",))


def test_a_frozen_random_prefix_gets_its_statistics_once_and_keeps_them(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job({"model": "resnet18", "frozen_blocks": 2, "weights": "random", "batch_size": 12, "max_epochs": 2})
    list(fit(job, Checkpoints(tmp_path)))
    kept = {name: value for name, value in load(Checkpoints(tmp_path).best).part("network").items() if "running_var" in name}
    prefix = {name: value for name, value in kept.items() if name.startswith("prefix")}
    assert prefix
    assert not any(torch.equal(value, torch.ones_like(value)) for value in prefix.values())


@pytest.mark.parametrize(
    "field", [{"augmentation": "strong"}, {"input": "lungs"}, {"learning_rate_schedule": "cosine"}, {"optimizer": "adamw"}]
)
def test_fit_runs_with_every_way_of_training(make_job: MakeJob, tmp_path: Path, field: dict[str, str]) -> None:
    point = {"channels": (4, 8), "kernel_sizes": (3, 3), "padding": "same", "batch_size": 8, "max_epochs": 2} | field
    results = list(fit(make_job(point), Checkpoints(tmp_path)))
    assert len(results) == 2


def test_cosine_schedule_falls_from_the_full_rate(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job()
    falling = replace(job, trial=job.trial.with_fields(learning_rate_schedule="cosine", learning_rate=0.01, max_epochs=2))
    # half way through a half cosine the factor is (1 + cos(pi / 2)) / 2 = 1/2
    assert [result.learning_rate for result in fit(falling, Checkpoints(tmp_path))] == pytest.approx([0.01, 0.005])


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_checkpoints_take_the_bytes_that_were_counted(make_job: MakeJob, tmp_path: Path, optimizer: str) -> None:
    job = make_job({"model": "resnet18", "frozen_blocks": 3, "weights": "random", "optimizer": optimizer, "max_epochs": 1})
    checkpoints = Checkpoints(tmp_path)
    list(fit(job, checkpoints))
    counted = checkpoint_bytes(job.trial.optimizer, job.build_network())
    sizes = checkpoints.best.stat().st_size, checkpoints.last.stat().st_size
    # Beside the tensors a file holds their names: about 120 bytes each, 122 tensors and twice as many of the optimizer.
    assert all(0 < size - expected < 122 * 3 * 150 for size, expected in zip(sizes, counted, strict=True))
