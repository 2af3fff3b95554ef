"""The benchmarks of speed measure what they say, on images few and small; their ratios are no matter here."""

import re
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import grid, prefix, step, store, turnover
from benchmarks.trials import data_parser, prepared_setup
from tune_lung.data.cache import Cache
from tune_lung.data.phantoms import ensure_phantoms
from tune_lung.results.layout import RunPaths
from tune_lung.results.reader import Run


@pytest.fixture(scope="module")
def small() -> list[str]:
    """Options for few and small phantoms, drawn once."""
    with Cache.open() as cache:
        return ["--data", str(ensure_phantoms(cache, seed=0)), "--limit", "60", "--image-size", "32"]


def test_features_change_no_number_and_are_there(
    small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prefix, "LEAST_RATIOS", {4: 0.0})
    assert prefix.main(small) == 0
    assert re.fullmatch(r"holds: 4 frozen blocks, [\d.]+ times as fast, at least 0; the same numbers\n", capsys.readouterr().out)


def test_a_prefix_without_features_never_holds(small: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prefix, "CACHE_BYTES", 0)
    with prepared_setup(data_parser("prefix", None).parse_args(small)) as setup:
        assert prefix.compare(setup, 4) == (0.0, False)


def test_a_step_is_set_against_fp32_and_the_matrix_rate(
    small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(step, "supports_bf16", lambda _: True)
    monkeypatch.setattr(step, "LEAST_RATIOS", {"cnn": 0.0, "resnet18": 0.0})
    monkeypatch.setattr(step, "LEAST_SHARE", 0.0)
    monkeypatch.setattr(step, "NUM_TURNS", 1)
    monkeypatch.setattr(step, "_MATRIX_SIDE", 64)
    monkeypatch.setitem(step.POINTS, "cnn", {"model": "cnn", "depth": 2, "base_channels": 4})  # type: ignore[misc]
    step.main(small)
    assert re.findall(r"^(?:holds|FAILS): (\w+): ", capsys.readouterr().out, re.MULTILINE) == ["cnn"] * 2 + ["resnet18"] * 3


def test_a_step_is_held_against_the_papers_program_on_its_machine():
    # 1,093 images at 100 a second are 10.93 s; on a core of half the paper's machine's rate they count as 5.465 s
    bars = step.bars_of("resnet18", plain=50.0, fast=100.0, matrix_rate=395e9, operations=3e9)
    assert [bar.text.partition(",")[0] for bar in bars] == [
        "resnet18: 2.00 times as fast as plain fp32",
        "resnet18: 2.58 times as fast as the paper's program",
        "resnet18: 76% of the bf16 matrix rate",
    ]
    assert all(bar.holds for bar in bars)
    assert not any(bar.holds for bar in step.bars_of("resnet18", plain=60.0, fast=70.0, matrix_rate=395e9, operations=3e9))


def test_resnet18_does_what_its_layers_count(small: list[str]):
    with prepared_setup(data_parser("step", None).parse_args([*small, "--image-size", "128"])) as setup:
        assert step.operations_of_step(setup, "resnet18") == pytest.approx(6 * 0.5e9, rel=0.2)  # a third of 224 px's 1.8e9


def test_a_store_is_built_once_and_opened_again(
    small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store, "LEAST_RATE", 0.0)
    monkeypatch.setattr(store, "MOST_SECONDS", 100.0)
    assert store.main(small) == 0
    assert re.findall(r"^(holds|FAILS)", capsys.readouterr().out, re.MULTILINE) == ["holds", "holds"]


def test_slots_are_busy_while_a_trial_works_and_does_not_wait():
    # two slots from 0 to 10: one trial 0-4 and one 0-10 that waits 1 of its 10 s, then one from 5, and the last starts at 10
    spans = [turnover.Span(0.0, 4.0), turnover.Span(0.0, 10.0, waited=1.0), turnover.Span(5.0, 12.0), turnover.Span(10.0, 13.0)]
    assert turnover.busy_share(spans) == pytest.approx((4 + 10 - 1 + 5) / 20)
    assert turnover.gaps(spans) == [1.0, 0.0]


def run_of(trials: pd.DataFrame, epochs: pd.DataFrame, profile: pd.DataFrame | None = None) -> Run:
    empty = pd.DataFrame()
    tables = dict.fromkeys(("decisions", "images", "predictions", "validation_predictions", "explanations"), empty)
    tables |= {"trials": trials, "epochs": epochs, "profile": empty if profile is None else profile}
    return Run(paths=RunPaths(Path("run")), manifest={}, damaged=(), **tables)


def test_a_plain_grid_is_extrapolated_by_its_passes_and_checkpoints_over_the_slots():
    trials = pd.DataFrame({"concurrent_trials": [2, 2]})
    epochs = pd.DataFrame(
        {"trial_id": ["a", "b"], "epoch": [1, 1], "epoch_seconds": [36.0, 2.0], "validation_seconds": [1.0, 1.0]}
    )
    profile = pd.DataFrame(
        {
            "trial_id": ["a", "a", "b", None],
            "part": ["checkpoint", "step", "checkpoint", "start"],
            "seconds": [4.0, 36.0, 1.0, 9.0],
        }
    )
    timed = grid.Timed(seconds=90.0, run=run_of(trials, epochs, profile))
    # 4 more epochs of 37 and 3 s on two slots, with a checkpoint each for the one and every tenth for the other
    assert timed.seconds_for(5) == pytest.approx(90.0 + 4 * (37.0 + 4.0 + 3.0 + 0.1) / 2)


def test_a_choices_regret_is_what_the_best_cell_is_worth_more_with_other_seeds():
    trials = pd.DataFrame({"cell": ["a", "b", "c"], "selection_score": [0.4, 0.9, None]})
    worth = pd.DataFrame({1: [0.5, 0.6, 0.7], 2: [0.5, 0.4, 0.7]}, index=["a", "b", "c"])
    assert grid.regret_of(run_of(trials, pd.DataFrame()), worth) == pytest.approx(0.7 - 0.5)
