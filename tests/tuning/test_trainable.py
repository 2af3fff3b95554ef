"""What a trial reports, and when: scripted epochs under a clock of their own, without Ray."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tune_lung.learners.network import NetworkLearner
from tune_lung.training.fit import DivergedError, EpochResult
from tune_lung.tuning import trainable
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.trainable import LungTrial

CONFIG = {
    "cell": "cnn",
    "point": {"model": "cnn", "padding": "same", "max_epochs": 9},
    "repeat": 0,
    "known_epochs": 0,
    "proposed_order": 1,
}
Begin = Callable[..., LungTrial]


def epoch(number: int, *, seconds: float, best_epoch: int, stop_reason: Any = None) -> EpochResult:
    return EpochResult(
        epoch=number,
        train_loss=1.0,
        validation={"val_loss": 1.0, "val_macro_recall": 0.5, "val_micro_recall": 0.5},
        selection_score=0.5,
        epoch_seconds=seconds,
        validation_seconds=0.0,
        images_per_second=1.0,
        learning_rate=0.1,
        best_epoch=best_epoch,
        best_score=0.5,
        stop_reason=stop_reason,
        prefix_seconds=None,
        kept_logits_NK=torch.full((1, 2), float(number)) if number == best_epoch else None,  # saved at once
        seconds_by_part={},
    )


@pytest.fixture
def begin(setup: SearchSetup, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Begin a trial whose epochs take so many seconds each, and note which epochs' predictions it writes."""

    def make(
        seconds: list[float], *, judged_epochs: frozenset[int] = frozenset(), best_epoch: int = 1, diverges: bool = False
    ) -> LungTrial:
        clock = SimpleNamespace(now=0.0)

        def scripted(*_: Any, **__: Any) -> Iterator[EpochResult]:
            for number, own in enumerate(seconds, start=1):
                clock.now += own
                ends = number == len(seconds) and not diverges
                yield epoch(
                    number,
                    seconds=own,
                    best_epoch=min(number, best_epoch),
                    stop_reason="max_epochs" if ends else None,
                )
            if diverges:
                raise DivergedError(f"The training loss is nan at epoch {len(seconds) + 1}.")

        class Bound(LungTrial):
            def setup(self, config: dict[str, Any], setup: SearchSetup | None = None) -> None:  # noqa: ARG002 - Ray's
                self.written: list[float] = []
                super().setup(config, replace(bound, judged_epochs=judged_epochs))

            def _write_validation_predictions(self, logits_NK: torch.Tensor) -> None:
                self.written.append(logits_NK[0, 0].item())

        bound = setup
        monkeypatch.setattr(NetworkLearner, "fit", scripted)
        monkeypatch.setattr(trainable, "time", SimpleNamespace(monotonic=lambda: clock.now))
        monkeypatch.setattr(trainable, "claim_device", lambda **_: torch.device("cpu"))
        monkeypatch.setattr(SearchSetup, "open_store", lambda _: SimpleNamespace(classes=("a", "b")))
        begun.append(Bound(config=CONFIG))
        return begun[-1]

    begun: list[LungTrial] = []
    yield make
    for trial in begun:
        trial.cleanup()


def reports_of(trial: LungTrial) -> list[dict[str, Any]]:
    reports = [trial.step()]
    while not reports[-1]["done"]:
        reports.append(trial.step())
    return reports


def epochs_of(trial: LungTrial) -> list[list[int]]:
    return [[row["epoch"] for row in report["epochs"]] for report in reports_of(trial)]


def test_long_epochs_are_reported_one_by_one(begin: Begin):
    assert epochs_of(begin([0.5, 0.5, 2.0])) == [[1], [2], [3]]


def test_short_epochs_are_reported_together_after_half_a_second(begin: Begin):
    assert epochs_of(begin([0.2] * 8)) == [[1, 2, 3], [4, 5, 6], [7, 8]]


def test_a_judged_epoch_is_reported_at_once(begin: Begin):
    assert epochs_of(begin([0.01] * 9, judged_epochs=frozenset({2, 6}))) == [[1, 2], [3, 4, 5, 6], [7, 8, 9]]


def test_a_report_has_every_epochs_row_and_no_number_beside_them(begin: Begin):
    (report,) = reports_of(begin([0.01, 0.02, 0.03]))
    assert report.keys() == {"epochs", "done"}
    assert [row["epoch_seconds"] for row in report["epochs"]] == [0.01, 0.02, 0.03]
    assert [row["stop_reason"] for row in report["epochs"]] == [None, None, "max_epochs"]
    assert all("kept_logits_NK" not in row for row in report["epochs"])


@pytest.mark.parametrize(("best_epoch", "written"), [(1, [1.0]), (3, [3.0]), (5, [3.0, 5.0])])
def test_of_a_report_only_the_best_epochs_predictions_are_written(begin: Begin, best_epoch: int, written: list[float]):
    trial = begin([0.2] * 6, best_epoch=best_epoch)
    reports_of(trial)
    assert trial.written == written


def test_epochs_before_a_divergence_are_reported_and_then_the_failure_alone(begin: Begin):
    first, last = reports_of(begin([0.1, 0.1], diverges=True))
    assert ([row["epoch"] for row in first["epochs"]], first["done"]) == ([1, 2], False)
    assert last == {"failure": "diverged: The training loss is nan at epoch 3.", "done": True}
