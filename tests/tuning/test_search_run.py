"""A search under a real Ray over scripted trials: what the studies, the rungs and the ledger are told of each."""

import itertools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from optuna.trial import TrialState
from ray import tune

from tune_lung.config import RunConfig
from tune_lung.errors import SupersededError
from tune_lung.files import CheckWriter
from tune_lung.results.ledger import Ledger
from tune_lung.results.manifest import DataFacts, SearchFacts, new_manifest
from tune_lung.space import Arm, Choice, SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.tuning.cluster import Resources
from tune_lung.tuning.plan import DataRequest, SearchSetup
from tune_lung.tuning.proposals.studies import Studies
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.search_plan import SearchPlan
from tune_lung.tuning.search_run import train

from tests.tuning.conftest import epoch_result

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

NAN, INF = float("nan"), float("inf")
CURVES: dict[int, tuple[float, ...]] = {
    10: (0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8),
    11: (0.9, 0.85, 0.8, 0.7, 0.6, 0.6, 0.6, 0.6),
    12: (0.1, 0.9),
    13: (0.8, NAN),
    14: (0.8, INF),
    15: (0.8, -INF),
    16: (0.95, 0.9, 0.9),
    17: (),
}
"""Scores by epoch, by batch size: it tells a scripted trial which one it is."""
PATIENCE = {16}
MAX_EPOCHS = 8
ORDER = tuple(CURVES)
SPACE = SearchSpace(arms=(Arm(model="cnn", max_epochs=MAX_EPOCHS, batch_size=Choice(*ORDER)),), name="scripted")


class ScriptedTrial(tune.Trainable):
    """Reports a known curve as LungTrial would; an empty one raises."""

    def setup(self, config: dict[str, Any], setup: SearchSetup | None = None) -> None:
        assert setup is not None
        self._is_out_of_time = setup.is_out_of_time
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._name = new_config["point"]["batch_size"]
        self._offset = 0.01 * new_config["repeat"]
        self._told = 0
        self._best = (0, -INF)
        return True

    def step(self) -> dict[str, Any]:
        curve = CURVES[self._name]
        if not curve:
            raise RuntimeError("scripted to fail")
        self._told += 1
        score = curve[self._told - 1] + self._offset
        if score > self._best[1]:
            self._best = (self._told, score)
        ends = self._told == len(curve)
        reason = ("patience" if self._name in PATIENCE else "max_epochs") if ends and np.isfinite(score) else None
        if not reason and self._is_out_of_time():
            ends, reason = True, "time"
        best = {"best_epoch": self._best[0], "best_score": self._best[1]}
        return epoch_result(self._told, score, stop_reason=reason, done=ends, **best)


class Searched:
    """One finished search over the scripted trials."""

    def __init__(
        self,
        root: Path,
        *,
        space: SearchSpace = SPACE,
        max_concurrent: int = 1,
        searched_seconds: Callable[[], float] | None = None,
        trainable: type[tune.Trainable] = ScriptedTrial,
        check_writer: CheckWriter | None = None,
        **choices: Any,
    ) -> None:
        run = RunConfig(image_size=64)
        data = DataRequest(root=None, run=run, cache_root=root / "cache", cache_size_bytes=0)
        setup = SearchSetup(
            run=run,
            run_root=root / "run",
            data=data,
            store=root / "store",
            data_fingerprint="f" * 64,
            weights={},
            cpus_per_trial=1,
            gpus_per_trial=0,
            has_time_budget=searched_seconds is not None,
        )
        strategy = Strategy.for_space(space, sampler="exhaustive", **choices)
        facts = DataFacts(
            fingerprint="f" * 64, synthetic=True, classes=("a", "b"), counts=dict.fromkeys(("train", "validation", "test"), 4)
        )
        manifest = new_manifest(
            SearchFacts(space=space, strategy=strategy, sampler_options={}, run=run),
            name="run",
            arguments=[],
            data=facts,
            weights={},
        )
        resources = Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=max_concurrent)
        ledger = Ledger.create(setup.run_root, manifest)
        if check_writer is not None:
            ledger = Ledger(setup.run_root, check_writer=check_writer)
        recorder = Recorder(ledger, setup, resources)
        studies = Studies(space, strategy, seed=0)
        if searched_seconds is not None:
            setup.run_root.joinpath(".owner.json").write_text('{"attempt": 1, "pid": 1, "is_out_of_time": true}')
        train(
            SearchPlan(space=space, strategy=strategy, setup=setup, resources=resources),
            studies,
            recorder,
            trainable=trainable,
            searched_seconds=searched_seconds,
        )
        self.study = studies.studies[0]
        self.trials = pd.read_parquet(setup.run_root / "trials").set_index("batch_size")
        self.epochs = pd.read_parquet(setup.run_root / "epochs")
        self.decisions = pd.read_parquet(setup.run_root / "decisions").sort_values("decision").reset_index(drop=True)

    def told(self, name: int) -> tuple[TrialState, float | None]:
        trial = next(trial for trial in self.study.trials if trial.params["batch_size"] == name)
        return trial.state, trial.value


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """All curves under ASHA with rungs 1, 2 and 4, one at a time, in order."""
    return Searched(tmp_path_factory.mktemp("scripted"), scheduler="asha", grace_epochs=1, reduction_factor=2)


def test_the_study_holds_exactly_what_happened(searched: Searched) -> None:
    states = Counter(trial.state for trial in searched.study.trials)
    assert states == {TrialState.COMPLETE: 3, TrialState.PRUNED: 1, TrialState.FAIL: 4}


@pytest.mark.parametrize(("name", "best"), [(10, 0.8), (11, 0.9), (16, 0.95)])
def test_a_completed_trial_is_told_with_its_best_epochs_value(searched: Searched, name: int, best: float) -> None:
    assert searched.told(name) == (TrialState.COMPLETE, best)


def test_a_stopped_trial_is_pruned_and_keeps_the_value_it_was_stopped_with(searched: Searched) -> None:
    trial = next(trial for trial in searched.study.trials if trial.params["batch_size"] == 12)
    assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, {1: 0.1})
    row = searched.trials.loc[12]
    assert (row["status"], row["stop_reason"], row["epochs_run"]) == ("stopped", "asha", 1)


@pytest.mark.parametrize("name", [13, 14, 15])
def test_a_value_that_is_not_finite_ends_the_trial_at_that_epoch_as_failed(searched: Searched, name: int) -> None:
    row = searched.trials.loc[name]
    assert (row["status"], row["stop_reason"], row["epochs_run"]) == ("failed", "failure", 1)
    assert row["failure"].startswith("diverged: selection_score is ")
    assert row["failure"].endswith("at epoch 2.")
    assert searched.told(name) == (TrialState.FAIL, None)


def test_a_value_that_is_not_finite_reaches_neither_rungs_nor_sampler(searched: Searched) -> None:
    assert np.isfinite(searched.decisions["value"]).all()
    assert set(searched.decisions.loc[searched.decisions["rung_epoch"] > 1, "trial_id"]) == set(
        searched.trials.loc[[10, 11, 16], "trial_id"]
    )
    values = [value for trial in searched.study.trials for value in trial.intermediate_values.values()]
    assert np.isfinite(values).all()
    assert np.isfinite(searched.epochs["selection_score"]).all()


def test_a_trial_that_raises_is_failed_and_the_search_goes_on(searched: Searched) -> None:
    assert searched.trials.loc[17, "failure"] == "bug: RuntimeError: scripted to fail"
    assert searched.told(17) == (TrialState.FAIL, None)


def test_trials_end_by_patience_and_by_max_epochs(searched: Searched) -> None:
    reasons = searched.trials.loc[[10, 11, 16], ["stop_reason", "epochs_run"]].to_numpy().tolist()
    assert reasons == [["max_epochs", 8], ["max_epochs", 8], ["patience", 3]]


def test_a_trial_ended_by_patience_stands_in_the_rungs_it_did_not_reach(searched: Searched) -> None:
    own = searched.decisions[searched.decisions["trial_id"] == searched.trials.loc[16, "trial_id"]]
    assert own[["rung_epoch", "value", "verdict"]].to_numpy().tolist() == [
        [1, 0.95, "continue"],
        [2, 0.95, "continue"],
        [4, 0.95, "stand"],
    ]


def test_verdicts_equal_an_independent_replay_of_the_decisions_table(searched: Searched) -> None:
    stood: dict[int, list[float]] = {}
    for row in searched.decisions.itertuples():
        rivals = stood.setdefault(row.rung_epoch, [])
        if row.verdict != "stand":
            assert (row.verdict == "stop") == (len(rivals) > 0 and row.value < np.median(rivals))
            assert np.isnan(row.cutoff) if not rivals else row.cutoff == pytest.approx(np.median(rivals))
        rivals.append(row.value)
    assert sorted(stood) == [1, 2, 4]


def test_repeats_are_rows_with_seeds_of_their_own_and_one_value_for_the_sampler(tmp_path: Path) -> None:
    space = SearchSpace(arms=(Arm(model="cnn", max_epochs=MAX_EPOCHS, batch_size=Choice(10, 11)),), name="repeated")
    searched = Searched(tmp_path, space=space, repeats=3, max_concurrent=2)
    assert sorted(searched.trials.loc[10, "repeat"]) == [0, 1, 2]
    assert searched.trials["trial_seed"].nunique() == 6
    assert searched.trials["point_id"].nunique() == 2
    assert len(searched.study.trials) == 2
    # repeat r scores 0.01 r more, so the mean of three is 0.01 above the first
    assert searched.told(10) == (TrialState.COMPLETE, pytest.approx(0.81))


def test_a_spent_time_budget_ends_the_running_trial_and_starts_no_other(tmp_path: Path) -> None:
    moments = itertools.chain([0.0], itertools.repeat(61.0))  # the first proposal, and then over a minute
    searched = Searched(tmp_path, time_budget_seconds=60.0, searched_seconds=lambda: next(moments))
    assert searched.trials[["status", "stop_reason", "epochs_run"]].to_numpy().tolist() == [["stopped", "time", 1]]
    assert [trial.state for trial in searched.study.trials] == [TrialState.PRUNED]


class SilentTrial(ScriptedTrial):
    """Reports nothing for long."""

    def step(self) -> dict[str, Any]:
        time.sleep(60)
        return super().step()


def test_a_superseded_driver_ends_soon_though_nothing_is_reported(tmp_path: Path) -> None:
    looks: list[float] = []

    def check_writer() -> str:
        looks.append(time.monotonic())
        if looks[-1] - looks[0] > 3:
            raise SupersededError("another has it")
        return ""

    with pytest.raises(SupersededError, match="another has it"):
        Searched(tmp_path, trainable=SilentTrial, check_writer=check_writer)
    assert time.monotonic() - looks[-1] < 30  # Ray gives the worker 10 seconds
