"""What the Optuna study is told."""

from typing import Any

import pytest
from optuna.trial import TrialState

from tune_lung.space import Cell
from tune_lung.tuning.sampler import CellSearch

CELLS = tuple(Cell(name=f"resnet18 frozen_blocks={k}", point={"model": "resnet18", "frozen_blocks": k}) for k in range(3))


def told(result: dict[str, Any] | None, *, error: bool = False) -> tuple[TrialState, float | None]:
    """End one trial that reported two epochs, and read the study."""
    search = CellSearch(CELLS, seed=0)
    search.suggest("a")
    for epoch, score in ((1, 0.6), (2, 0.5)):
        search.on_trial_result("a", {"epoch": epoch, "selection_score": score})
    search.on_trial_complete("a", result, error=error)
    trial = search.study.trials[0]
    assert trial.intermediate_values == {1: 0.6, 2: 0.5}
    return trial.state, trial.value


def test_every_cell_is_proposed_once_in_order() -> None:
    search = CellSearch(CELLS, seed=0)
    proposed = [search.suggest(name) for name in "abc"]
    assert proposed == [{"cell": cell.name, "point": cell.point} for cell in CELLS]


def test_a_trial_run_to_its_end_is_complete_with_its_best_epochs_score() -> None:
    assert told({"stop_reason": "patience", "best_score": 0.6, "selection_score": 0.5}) == (TrialState.COMPLETE, 0.6)


def test_a_trial_stopped_by_the_scheduler_is_pruned_with_its_last_reported_value() -> None:
    # Optuna itself takes a pruned trial's value from its last intermediate value
    assert told({"stop_reason": None, "best_score": 0.6}) == (TrialState.PRUNED, 0.5)


@pytest.mark.parametrize("result", [{"failure": "diverged"}, None, {}, {"stop_reason": "patience", "best_score": float("-inf")}])
def test_a_diverged_trial_fails_without_a_value(result: dict[str, Any] | None) -> None:
    assert told(result) == (TrialState.FAIL, None)


def test_a_trial_that_raised_fails_and_is_told_once() -> None:
    search = CellSearch(CELLS, seed=0)
    search.suggest("a")
    search.on_trial_complete("a", None, error=True)
    search.on_trial_complete("a", {"stop_reason": "patience", "best_score": 0.9})
    assert [(trial.state, trial.value) for trial in search.study.trials if trial.state.is_finished()] == [(TrialState.FAIL, None)]
