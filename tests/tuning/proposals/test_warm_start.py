"""What a search takes from an earlier run, and which earlier runs it refuses."""

import json
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from optuna.trial import TrialState

from tune_lung.config import RunConfig
from tune_lung.errors import InputError
from tune_lung.models.weights import WeightsSource
from tune_lung.results.ledger import Ledger
from tune_lung.results.reader import Run, read_run
from tune_lung.search.__main__ import main
from tune_lung.space import Arm, Choice, LogUniform, SearchSpace
from tune_lung.space_files import load_space
from tune_lung.strategy import Objective, Strategy
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.proposals.studies import KnownTrial, Proposal, Studies
from tune_lung.tuning.proposals.warm_start import known_trials, lesson, lessons_as_json, lessons_from_json, require_compatible

from tests.small_search import run_search, sampled_options
from tests.tuned_run import BEGINNING, TRIAL_TIME, TUNED, as_version_2, setup_of, write_tuned_run

NUM_POINTS = 3 * 8  # cells cnn, resnet18, resnet34; 8 samples each
SAMPLERS = ("tpe", "random", "gp", "nsga2")
PARETO = (Objective("val_macro_recall", "max"), Objective("trainable_params", "min"))
SAMPLED = Strategy.for_space(TUNED, samples=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm_start")


@pytest.fixture(scope="module")
def earlier(folder: Path) -> Run:
    """A run of `TUNED`; trials end in turn as completed, stopped, completed and failed."""
    return read_run(write_tuned_run(folder / "earlier"))


@pytest.fixture
def setup(folder: Path) -> SearchSetup:
    return setup_of(folder)


def key_of(cell: str, values: dict[str, Any]) -> tuple[Any, ...]:
    return cell, *sorted(values.items())


def keys_of(known: list[KnownTrial]) -> set[tuple[Any, ...]]:
    return {key_of(trial.cell.name, dict(trial.values)) for trial in known}


def key_of_proposal(proposal: Proposal) -> tuple[Any, ...]:
    return key_of(proposal.cell.name, {name: proposal.point[name] for name in proposal.cell.axes})


def first_proposals(strategy: Strategy, known: list[KnownTrial], *, seed: int = 0, number: int = 12) -> list[tuple[Any, ...]]:
    studies = Studies(TUNED, strategy, seed=seed, known=known)
    proposals = [studies.propose() for _ in range(number)]
    return [key_of_proposal(proposal) for proposal in proposals if proposal is not None]


def test_every_finished_point_is_known_with_its_state_value_and_scores(earlier: Run, setup: SearchSetup) -> None:
    known = known_trials(earlier, TUNED, SAMPLED, setup)
    assert Counter(trial.state for trial in known) == {
        TrialState.COMPLETE: NUM_POINTS // 2,
        TrialState.PRUNED: NUM_POINTS // 4,
        TrialState.FAIL: NUM_POINTS // 4,
    }
    scores = dict(zip(earlier.trials["learning_rate"], earlier.trials["selection_score"], strict=True))
    for trial in known:
        score = scores[trial.values["learning_rate"]]
        assert trial.objective_values == ((score,) if trial.state is TrialState.COMPLETE else None)
        assert trial.scores == {1: 0.25, 2: score, 3: 0.28}
        assert trial.is_comparable


def test_points_are_learnt_from_in_the_order_of_their_proposal_with_their_times(earlier: Run, setup: SearchSetup) -> None:
    known = known_trials(earlier, TUNED, SAMPLED, setup)
    trials = earlier.trials.sort_values("proposed_order")
    assert [trial.values["learning_rate"] for trial in known] == trials["learning_rate"].to_list()
    assert [(trial.started, trial.ended) for trial in known] == [
        (BEGINNING + number * timedelta(minutes=1), BEGINNING + number * timedelta(minutes=1) + TRIAL_TIME)
        for number in range(24)
    ]
    kept = lessons_from_json(json.loads(json.dumps(lessons_as_json(known))), TUNED, SAMPLED)
    for learnt in (known, kept):
        studies = Studies(TUNED, SAMPLED, seed=0, known=learnt).studies
        assert sum(len(study.trials) for study in studies) == 24
        for study in studies:
            assert study.trials[0].datetime_start == min(trial.datetime_start for trial in study.trials)
            assert {trial.duration for trial in study.trials} == {TRIAL_TIME}


def test_a_run_of_version_2_is_learnt_from_without_times(folder: Path, setup: SearchSetup) -> None:
    run = read_run(as_version_2(write_tuned_run(folder / "version 2", samples=4)))
    known = known_trials(run, TUNED, SAMPLED, setup)
    assert [(trial.started, trial.ended) for trial in known] == [(None, None)] * 12
    assert [trial.values["learning_rate"] for trial in known] == run.trials.sort_values("proposed_order")[
        "learning_rate"
    ].to_list()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_first_proposals_differ_from_a_cold_starts_and_no_finished_point_is_among_them(
    sampler: str, folder: Path, setup: SearchSetup
) -> None:
    strategy = Strategy.for_space(TUNED, sampler=sampler, samples=8)  # type: ignore[arg-type]
    run = read_run(write_tuned_run(folder / sampler, sampler=sampler))
    known = known_trials(run, TUNED, strategy, setup)
    warm, cold = first_proposals(strategy, known), first_proposals(strategy, [])
    assert len(warm) == 12
    assert not set(warm) & keys_of(known)
    assert not set(warm) & set(cold)
    assert set(cold) & keys_of(known)  # the same seed: a cold start begins as the earlier run did


def test_a_warm_search_gives_every_cell_its_samples_on_top(earlier: Run, setup: SearchSetup) -> None:
    known = known_trials(earlier, TUNED, SAMPLED, setup)
    proposals = first_proposals(SAMPLED, known, number=100)
    assert Counter(cell for cell, *_ in proposals) == {"cnn": 8, "resnet18": 8, "resnet34": 8}
    assert len(set(proposals) | keys_of(known)) == 2 * NUM_POINTS


def test_repeats_of_a_point_are_one_known_trial_with_their_mean(folder: Path, setup: SearchSetup) -> None:
    run = read_run(write_tuned_run(folder / "repeats", samples=2, repeats=3))
    known = known_trials(run, TUNED, Strategy.for_space(TUNED, samples=2, repeats=3), setup)
    assert len(known) == 6
    completed = run.trials[run.trials["status"] == "completed"]
    means = completed.groupby("learning_rate")["selection_score"].mean()
    for trial in known:  # of three consecutive trials at least one completes
        assert trial.objective_values == (pytest.approx(means[trial.values["learning_rate"]]),)
        assert trial.scores == {}


def test_a_point_of_which_a_repeat_still_runs_is_not_finished(folder: Path, setup: SearchSetup) -> None:
    strategy = Strategy.for_space(TUNED, samples=2, repeats=3)
    run = read_run(write_tuned_run(folder / "running", samples=2, repeats=3, still_running=1))
    assert len(known_trials(run, TUNED, strategy, setup)) == 5


def test_several_objectives_are_known_whole(folder: Path, setup: SearchSetup) -> None:
    run = read_run(write_tuned_run(folder / "pareto", samples=4, objectives=PARETO))
    known = known_trials(run, TUNED, Strategy.for_space(TUNED, samples=4, objectives=PARETO), setup)
    values = {trial.objective_values for trial in known if trial.state is TrialState.COMPLETE}
    completed = run.trials[run.trials["status"] == "completed"]
    assert values == set(zip(completed["val_macro_recall"], completed["trainable_params"], strict=True))


def test_budget_precision_and_first_points_may_differ(earlier: Run, setup: SearchSetup) -> None:
    space = replace(
        TUNED.with_fixed({"max_epochs": 7, "patience": 3, "precision": "bf16"}), first_points=({"learning_rate": 0.001},)
    )
    known = known_trials(earlier, space, SAMPLED, setup)
    assert len(known) == NUM_POINTS
    assert all(trial.is_comparable for trial in known)


def test_other_images_give_each_cells_best_point_to_try_first_and_no_score(earlier: Run, folder: Path) -> None:
    known = known_trials(earlier, TUNED, SAMPLED, setup_of(folder, data_fingerprint="e" * 64))
    completed = earlier.trials[earlier.trials["status"] == "completed"]
    best = completed.loc[completed.groupby("cell")["selection_score"].idxmax()].set_index("cell")["learning_rate"]
    assert {trial.cell.name: trial.values["learning_rate"] for trial in known} == best.to_dict()
    studies = Studies(TUNED, SAMPLED, seed=0, known=known)
    assert studies.studies == ()
    assert {key_of_proposal(proposal) for _ in range(3) if (proposal := studies.propose())} == keys_of(known)


def test_other_weights_leave_the_cnns_points_finished(earlier: Run, folder: Path, setup: SearchSetup) -> None:
    pretrained = WeightsSource(kind="file", name="resnet18-5c.pth", sha256="ab" * 32, path=folder / "resnet18-5c.pth")
    space = TUNED.with_fixed({"weights": "file"})
    known = known_trials(earlier, space, SAMPLED, replace(setup, weights=dict.fromkeys(setup.weights, pretrained)))
    comparable = Counter((trial.cell.name, trial.is_comparable) for trial in known)
    assert comparable == {("cnn", True): 8, ("resnet18", False): 1, ("resnet34", False): 1}


def test_a_schedule_over_another_number_of_epochs_is_another_training(folder: Path, setup: SearchSetup) -> None:
    space = TUNED.with_fixed({"learning_rate_schedule": "cosine", "max_epochs": 4})
    run = read_run(write_tuned_run(folder / "cosine", space=space))
    longer = space.with_fixed({"max_epochs": 8})
    assert all(trial.is_comparable for trial in known_trials(run, space, SAMPLED, setup))
    assert not any(trial.is_comparable for trial in known_trials(run, longer, SAMPLED, setup))


def changed(arm_number: int, **fields: Any) -> SearchSpace:
    arms = list(TUNED.arms)
    arms[arm_number] = arms[arm_number].with_fixed(**fields)
    return replace(TUNED, arms=tuple(arms))


def without(arm_number: int, name: str) -> SearchSpace:
    arms = list(TUNED.arms)
    arms[arm_number] = Arm(**{field: value for field, value in arms[arm_number].fields.items() if field != name})
    return replace(TUNED, arms=tuple(arms))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (changed(0, padding="valid"), "padding of arm 1 is same in 'earlier' and valid here"),
        (changed(1, optimizer="sgd"), "optimizer of arm 2 is adam in 'earlier' and sgd here"),
        (
            changed(1, learning_rate=LogUniform(1e-4, 1e-1)),
            r"learning_rate of arm 2 is LogUniform\(low=0.0001, high=0.01\) in 'earlier' and LogUniform\(low=0.0001, high=0.1\)",
        ),
        (changed(1, batch_size=Choice(16, 64)), r"batch_size of arm 2 is Choice\(values=\(16, 32\)\) in 'earlier'"),
        (without(1, "batch_size"), r"batch_size of arm 2 is Choice\(values=\(16, 32\)\) in 'earlier' and 128 here"),
        (changed(0, batch_size=Choice(16, 32)), r"batch_size of arm 1 is 128 in 'earlier' and Choice\(values=\(16, 32\)\) here"),
        (changed(1, patience=Choice(5, 10)), r"patience of arm 2 is 20 in 'earlier' and Choice\(values=\(5, 10\)\) here"),
        (replace(TUNED, arms=TUNED.arms[:1]), "the number of arms is 2 in 'earlier' and 1 here"),
        (replace(TUNED, arms=TUNED.arms[::-1]), r"model of arm 1 is cnn in 'earlier' and Grid\("),
    ],
)
def test_an_incompatible_space_is_refused_by_the_field_that_differs(space: SearchSpace, message: str, earlier: Run) -> None:
    with pytest.raises(InputError, match=message):
        require_compatible(earlier, space, SAMPLED, RunConfig(image_size=64))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (RunConfig(image_size=64, protocol="published"), "protocol is strict in 'earlier' and published here"),
        (RunConfig(image_size=96), "image_size is 64 in 'earlier' and 96 here"),
        (RunConfig(image_size=64, select_by="val_loss"), "select_by is val_macro_recall in 'earlier' and val_loss here"),
    ],
)
def test_other_rules_are_refused_by_their_name(run: RunConfig, message: str, earlier: Run) -> None:
    with pytest.raises(InputError, match=message):
        require_compatible(earlier, TUNED, SAMPLED, run)


def test_other_objectives_are_refused(earlier: Run) -> None:
    strategy = Strategy.for_space(TUNED, objectives=PARETO)
    message = "objective is selection_score:max in 'earlier' and val_macro_recall:max,trainable_params:min here"
    with pytest.raises(InputError, match=message):
        require_compatible(earlier, TUNED, strategy, RunConfig(image_size=64))


def test_a_pure_grid_has_nothing_to_learn(earlier: Run) -> None:
    grid = load_space("freeze_grid")
    with pytest.raises(InputError, match="'freeze_grid' samples nothing; each of its 11 cells is run"):
        require_compatible(earlier, grid, Strategy.for_space(grid), RunConfig())


def test_an_axis_written_in_other_words_is_the_same(earlier: Run) -> None:
    as_lists = replace(TUNED, arms=(TUNED.arms[0].with_fixed(channels=Choice([4, 8], [8, 16])), TUNED.arms[1]))  # type: ignore[arg-type]
    default_named = replace(as_lists, arms=(as_lists.arms[0].with_fixed(batch_size=128), as_lists.arms[1]))
    require_compatible(earlier, default_named, SAMPLED, RunConfig(image_size=64))


def test_an_imported_run_that_does_not_know_its_rules_lends_its_best_points(folder: Path) -> None:
    root = write_tuned_run(folder / "imported")
    ledger = Ledger.open(root)
    unknown = dict.fromkeys(("protocol", "image_size"))
    manifest = ledger.read_manifest()
    ledger.write_manifest({**manifest, **unknown, "data": {**manifest["data"], "fingerprint": None}})
    other = setup_of(folder, data_fingerprint="d" * 64)
    assert len(known_trials(read_run(root), TUNED, SAMPLED, other)) == 3


def test_the_lesson_says_what_is_taken(earlier: Run, folder: Path, setup: SearchSetup) -> None:
    same = lesson(known_trials(earlier, TUNED, SAMPLED, setup), earlier)
    assert same == ["Learning from 24 finished points of 'earlier'; none of them runs again"]
    other = lesson(known_trials(earlier, TUNED, SAMPLED, setup_of(folder, data_fingerprint="e" * 64)), earlier)
    assert other == [
        "'earlier' had other images or weights: no score of it is learnt from, but each cell tries its best point first (3 cells)"
    ]


def test_the_lesson_names_damaged_parts(folder: Path, setup: SearchSetup) -> None:
    root = write_tuned_run(folder / "damaged")
    (root / "trials" / "broken.parquet").write_bytes(b"no parquet")
    run = read_run(root)
    known = known_trials(run, TUNED, SAMPLED, setup)
    assert lesson(known, run) == [
        "Learning from 24 finished points of 'damaged'; none of them runs again",
        "Not learnt from, since damaged: trials/broken.parquet",
    ]


SPACE = """
\"\"\"Which rate suits a tiny network?\"\"\"
from tune_lung.space import Arm, Choice, LogUniform, SearchSpace

SPACE = SearchSpace(
    arms=(Arm(model="cnn", depth=3, base_channels=4, batch_size=Choice(16, 32), learning_rate=LogUniform(1e-4, 1e-2)),)
)
"""


def test_search_refuses_an_incompatible_run_in_one_line_before_it_starts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = write_tuned_run(folder / "other_space")
    (tmp_path / "rates.py").write_text(SPACE)
    options = ["--space", str(tmp_path / "rates.py"), "--image-size", "64", "--warm-start", str(earlier)]
    assert main([*options, "--out", str(tmp_path / "runs")]) == 2
    message = "error: --warm-start: the number of arms is 2 in 'other_space' and 1 here."
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_search_goes_on_from_an_earlier_run_and_runs_no_point_of_it_again(
    sampled_search: tuple[Path, str], tmp_path: Path
) -> None:
    cold, _ = sampled_search
    options = (*sampled_options(tmp_path), "--samples", "1", "--no-report", "--name", "warm")
    warm, printed = run_search(tmp_path, *options, "--warm-start", str(cold))
    assert "Learning from 6 finished points of 'cold'; none of them runs again" in printed
    assert (read_run(cold).manifest["warm_start"], read_run(warm).manifest["warm_start"]) == (None, "cold")
    points = pd.concat([pd.read_parquet(cold / "trials"), pd.read_parquet(warm / "trials")])["point_id"]
    assert (len(points), points.nunique()) == (8, 8)
