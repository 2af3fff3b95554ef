"""What trials and sealed tests raise under a real Ray: the ledger has each by its name."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray import tune

from tune_lung.config import RunConfig
from tune_lung.results.ledger import Ledger
from tune_lung.results.manifest import DataFacts, SearchFacts, new_manifest
from tune_lung.results.schema import FailureKind
from tune_lung.space import Arm, Choice, SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.tuning import sealed_evaluation
from tune_lung.tuning.cluster import Resources
from tune_lung.tuning.failures import MOST_FAILURES, Failure
from tune_lung.tuning.plan import DataRequest, SearchSetup, TrialPlan
from tune_lung.tuning.proposals.studies import Studies
from tune_lung.tuning.recorder import Recorder
from tune_lung.tuning.sealed_evaluation import evaluate_sealed
from tune_lung.tuning.search_plan import SearchPlan
from tune_lung.tuning.search_run import train

from tests.tuning.conftest import epoch_result

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

ERRORS: dict[int, Callable[[], Exception]] = {
    11: lambda: PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/mnt/my scans/COVID-1.png"),
    12: lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    13: lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    14: lambda: RuntimeError("CUDA error: no CUDA-capable device is detected\nCompile with `TORCH_USE_CUDA_DSA`.\n"),
    15: lambda: ImportError("libcudart.so.13: cannot open shared object file: No such file or directory"),
    16: lambda: KeyError("x"),
}
"""By batch size, which tells a trial who it is; the others do well. The first is raised by a worker that is used again."""
FAILURES = {
    11: "unfit_node: its node cannot use a file or folder: PermissionError: [Errno 13] Permission denied: '...'",
    12: "unfit_node: its node cannot use a file or folder: OSError: [Errno 5] Input/output error",
    13: "out_of_memory: RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    14: "unfit_node: its node's GPU cannot be used: RuntimeError: CUDA error: no CUDA-capable device is detected",
    15: "unfit_node: its node lacks a part of the installation: ImportError: libcudart.so.13: cannot open shared object file:"
    " No such file or directory",
    16: "bug: KeyError: 'x'",
}


class RaisingTrial(tune.Trainable):
    """Raises in its set-up, or when it is used again, what its batch size says."""

    def setup(self, config: dict[str, Any], setup: SearchSetup | None = None) -> None:  # noqa: ARG002 - Ray's
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        name = new_config["point"]["batch_size"]
        if name in ERRORS:
            raise ERRORS[name]()
        return True

    def step(self) -> dict[str, Any]:
        return epoch_result(1, 0.5, stop_reason="max_epochs", done=True)


@pytest.fixture
def setup(tmp_path: Path) -> SearchSetup:
    run = RunConfig(image_size=64)
    return SearchSetup(
        run=run,
        run_root=tmp_path / "run",
        data=DataRequest(root=None, run=run, cache_root=tmp_path / "cache", cache_size_bytes=0),
        store=tmp_path / "store",
        data_fingerprint="f" * 64,
        weights={},
        cpus_per_trial=1,
        gpus_per_trial=0,
    )


def test_what_a_trials_set_up_raises_is_sorted_by_its_cause(
    setup: SearchSetup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in MOST_FAILURES:
        monkeypatch.setitem(MOST_FAILURES, kind, 2 if kind is FailureKind.OUT_OF_MEMORY else 1)
    names = (10, *ERRORS)
    space = SearchSpace(arms=(Arm(model="cnn", max_epochs=1, batch_size=Choice(*names)),), name="raising")
    strategy = Strategy.for_space(space, sampler="exhaustive", scheduler="none")
    facts = DataFacts(fingerprint="f" * 64, synthetic=True, classes=("a", "b"), counts={"train": 4, "validation": 2, "test": 2})
    manifest = new_manifest(
        SearchFacts(space=space, strategy=strategy, sampler_options={}, run=setup.run),
        name="run",
        arguments=[],
        data=facts,
        weights={},
    )
    resources = Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=1)
    recorder = Recorder(Ledger.create(setup.run_root, manifest), setup, resources)
    train(
        SearchPlan(space=space, strategy=strategy, setup=setup, resources=resources),
        Studies(space, strategy, seed=0),
        recorder,
        trainable=RaisingTrial,
    )
    trials = pd.read_parquet(setup.run_root / "trials").set_index("batch_size")
    assert trials.loc[10, "status"] == "completed"
    assert trials.loc[list(ERRORS), "failure"].to_dict() == FAILURES
    assert trials.loc[list(ERRORS), "attempts"].to_dict() == {11: 1, 12: 1, 13: 2, 14: 1, 15: 1, 16: 1}
    assert trials.loc[13, "ended_order"] == trials["ended_order"].max()  # alone, when all others had ended
    told = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("tune_lung"))
    assert "KeyError" in told
    assert "ip=" not in told
    assert "COVID-1" not in told


def raising(folder: Path, *, most: int) -> Callable[..., pd.DataFrame]:
    """Make a stand-in for a sealed test that raises what the trial's batch size says, in so many attempts."""

    def predict(plan: TrialPlan, setup: SearchSetup, best_epoch: int | None) -> pd.DataFrame:  # noqa: ARG001 - as a task takes it
        name = plan.trial.batch_size
        attempts = folder / str(name)
        attempts.write_text(attempts.read_text() + "x" if attempts.exists() else "x")
        if name in ERRORS and len(attempts.read_text()) <= most:
            raise ERRORS[name]()
        return pd.DataFrame({"name": [name]})

    return predict


def sealed_outcomes(setup: SearchSetup, names: tuple[int, ...]) -> dict[int, Any]:
    plans = [setup.plan_trial("cnn", {"model": "cnn", "batch_size": name}) for name in names]
    resources = Resources(cpus_per_trial=1, gpus_per_trial=0, max_concurrent=1)
    return {plan.trial.batch_size: outcome for plan, outcome in evaluate_sealed(plans, {}, setup, resources)}


def test_a_sealed_test_that_fails_is_sorted_and_tried_again_as_a_trial_is(
    setup: SearchSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed_evaluation, "_predictions_or_damage", raising(tmp_path, most=2))
    outcomes = sealed_outcomes(setup, (11, 13, 10))
    assert outcomes[13] == Failure(FailureKind.OUT_OF_MEMORY, FAILURES[13], is_final=True)  # its second attempt was its last
    assert [outcomes[name]["name"].tolist() for name in (10, 11)] == [[10], [11]]
    assert {name: len((tmp_path / str(name)).read_text()) for name in (10, 11, 13)} == {10: 1, 11: 3, 13: 2}
    assert list(outcomes) == [10, 11, 13]


def test_a_bug_in_a_sealed_test_is_raised(setup: SearchSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_evaluation, "_predictions_or_damage", raising(tmp_path, most=9))
    with pytest.raises(KeyError):
        sealed_outcomes(setup, (16,))
