"""The bridge to Optuna: what Ray asks is answered by an Optuna study, and the study is told what really happened."""

import math
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from tune_lung.space import Cell

METRIC = "selection_score"

optuna.logging.set_verbosity(optuna.logging.WARNING)


class CellSearch(OptunaSearch):
    """Proposes every cell of a space exactly once, in order.

    Ray's own OptunaSearch tells every trial that did not raise as COMPLETE with its last value, and loses a trial whose
    value is not finite. Here a trial that ran to its end is COMPLETE with its best epoch's score, one that the scheduler
    stopped is PRUNED, and one that failed or diverged is FAIL; none is left RUNNING.
    """

    def __init__(self, cells: tuple[Cell, ...], *, seed: int) -> None:
        """Queue the cells.

        Args:
            cells: At least one, names unique.
            seed: Seed of the sampler, used once the queue is empty.
        """
        points = {cell.name: dict(cell.point) for cell in cells}
        names = list(points)

        def propose(trial: optuna.Trial) -> dict[str, Any]:
            return {"point": points[trial.suggest_categorical("cell", names)]}

        self._propose = propose
        super().__init__(
            space=propose,
            metric=METRIC,
            mode="max",
            sampler=optuna.samplers.RandomSampler(seed=seed % 2**32),
            points_to_evaluate=[{"cell": name} for name in names],
        )

    @property
    def study(self) -> optuna.Study:
        """The Optuna study behind the search."""
        return cast("optuna.Study", self._ot_study)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Propose the next cell and its point, which is handed on as it is, never flattened."""
        if trial_id not in self._ot_trials:
            self._ot_trials[trial_id] = self.study.ask()
        return dict(self._suggest_from_define_by_run_func(self._propose, self._ot_trials[trial_id]))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report an epoch's score as an intermediate value; a diverged epoch has none."""
        if METRIC in result:
            self._ot_trials[trial_id].report(result[METRIC], result["epoch"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study how the trial ended."""
        if trial_id in self._completed_trials:
            return
        self._completed_trials.add(trial_id)
        state, value = _outcome(result, error=error)
        self.study.tell(self._ot_trials[trial_id], value, state=state)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing of the study: Ray's state files are never read back, the ledger is what a run goes on from."""
        Path(checkpoint_path).touch()


def _outcome(result: dict[str, Any] | None, *, error: bool) -> tuple[TrialState, float | None]:
    if error or not result or "failure" in result or not math.isfinite(result.get("best_score", math.nan)):
        return TrialState.FAIL, None
    if result.get("stop_reason") is None:
        return TrialState.PRUNED, None
    return TrialState.COMPLETE, result["best_score"]
