"""What the Optuna studies propose, and what they are told; every sampler passes the same tests."""

from collections import Counter
from typing import Any

import pytest
from optuna.trial import TrialState

from tune_lung.space import Arm, Choice, Grid, IntRange, LogUniform, SearchSpace, Uniform
from tune_lung.space_files import load_space, shipped_space_files
from tune_lung.strategy import SAMPLERS, SELECTION, Objective, Strategy
from tune_lung.tuning.proposals.studies import KnownTrial, Proposal, Studies, sampler_options

TUNED = SearchSpace(
    arms=(Arm(model="resnet18", frozen_blocks=Grid(0, 4), learning_rate=LogUniform(1e-4, 1e-2), batch_size=Choice(16, 32)),)
)
FINITE = SearchSpace(arms=(Arm(model="cnn", depth=IntRange(2, 4), batch_size=Choice(16, 32)),))
PARETO = (Objective("val_macro_recall", "max"), Objective("trainable_params", "min"))
each_sampler = pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "exhaustive"])


def studies_of(space: SearchSpace, *, seed: int = 0, known: tuple[KnownTrial, ...] = (), **strategy: Any) -> Studies:
    return Studies(space, Strategy.for_space(space, **strategy), seed=seed, known=known)


def run_out(studies: Studies, *, num_objectives: int = 1, at_once: int = 3) -> list[Proposal]:
    """Take every proposal, with a few under way at any time; end a third of them as stopped, a few as failed."""
    proposals: list[Proposal] = []
    running: list[Proposal] = []
    while (proposal := studies.propose()) is not None or running:
        if proposal is not None:
            proposals.append(proposal)
            running.append(proposal)
        if proposal is None or len(running) >= at_once:
            end(studies, running.pop(0), num_objectives=num_objectives)
    return proposals


def end(studies: Studies, proposal: Proposal, *, num_objectives: int = 1) -> None:
    state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL)[proposal.number % 4]
    studies.observe(proposal.number, 1, 0.1)
    studies.tell(proposal.number, state, [0.5] * num_objectives if state is TrialState.COMPLETE else None)


def states(studies: Studies) -> Counter[TrialState]:
    return Counter(trial.state for study in studies.studies for trial in study.trials)


@each_sampler
def test_every_cell_gets_exactly_its_samples(sampler: str) -> None:
    proposals = run_out(studies_of(TUNED, sampler=sampler, samples=13))
    assert Counter(proposal.cell.name for proposal in proposals) == {
        "resnet18 frozen_blocks=0": 13,
        "resnet18 frozen_blocks=4": 13,
    }


@each_sampler
def test_cells_take_turns_so_that_a_cut_search_is_still_fair(sampler: str) -> None:
    studies = studies_of(TUNED, sampler=sampler, samples=5)
    first_four = [studies.propose() for _ in range(4)]
    assert Counter(proposal.cell.name for proposal in first_four if proposal) == Counter(
        {"resnet18 frozen_blocks=0": 2, "resnet18 frozen_blocks=4": 2}
    )


@each_sampler
def test_every_proposal_lies_on_its_axes(sampler: str) -> None:
    for proposal in run_out(studies_of(TUNED, sampler=sampler, samples=13)):
        for name, axis in proposal.cell.axes.items():
            assert axis.contains(proposal.point[name])


@each_sampler
def test_no_trial_is_left_running_and_counts_are_those_told(sampler: str) -> None:
    studies = studies_of(TUNED, sampler=sampler, samples=10)
    proposals = run_out(studies)
    told = Counter(("complete", "pruned", "complete", "fail")[proposal.number % 4] for proposal in proposals)
    assert states(studies) == {
        TrialState.COMPLETE: told["complete"],
        TrialState.PRUNED: told["pruned"],
        TrialState.FAIL: told["fail"],
    }


@each_sampler
def test_no_point_is_proposed_twice_and_a_cell_ends_when_it_has_no_other(sampler: str) -> None:
    studies = studies_of(FINITE, sampler=sampler, samples=50)
    points = [tuple(sorted(proposal.point.items())) for proposal in run_out(studies)]
    assert len(points) == len(set(points)) == 6  # 3 depths x 2 batch sizes
    assert TrialState.RUNNING not in states(studies)


@each_sampler
def test_the_same_seed_proposes_the_same_points_one_at_a_time(sampler: str) -> None:
    runs = [run_out(studies_of(TUNED, sampler=sampler, samples=13, seed=7), at_once=1) for _ in range(2)]
    assert [proposal.point for proposal in runs[0]] == [proposal.point for proposal in runs[1]]
    other = run_out(studies_of(TUNED, sampler=sampler, samples=13, seed=8), at_once=1)
    assert [proposal.point for proposal in other] != [proposal.point for proposal in runs[0]]


@each_sampler
def test_two_objectives_are_told_whole(sampler: str) -> None:
    studies = studies_of(TUNED, sampler=sampler, samples=12, objectives=PARETO)
    run_out(studies, num_objectives=2)
    assert all(len(study.directions) == 2 for study in studies.studies)
    assert TrialState.RUNNING not in states(studies)


@each_sampler
def test_every_option_of_the_sampler_is_recorded(sampler: str) -> None:
    strategy = Strategy.for_space(TUNED, sampler=sampler)  # type: ignore[arg-type]
    assert (sampler_options(strategy) != {}) == (sampler != "random")


def test_exhaustive_tries_every_point_once() -> None:
    points = [tuple(proposal.point.items()) for proposal in run_out(studies_of(FINITE, sampler="exhaustive"))]
    assert len(points) == len(set(points)) == 6


@pytest.mark.parametrize("name", sorted(shipped_space_files()))
def test_every_shipped_space_can_be_proposed(name: str) -> None:
    space = load_space(name)
    strategy = Strategy.for_space(space, samples=None if space.is_grid else 2)
    proposals = run_out(Studies(space, strategy, seed=0))
    assert len(proposals) == strategy.num_trials(space)


def test_a_pure_grid_proposes_its_cells_in_order() -> None:
    space = load_space("freeze_grid")
    proposals = run_out(studies_of(space))
    assert [(proposal.cell.name, dict(proposal.point)) for proposal in proposals] == [
        (cell.name, dict(cell.point)) for cell in space.cells()
    ]


def test_first_points_are_tried_first_in_every_cell_they_fit() -> None:
    space = load_space("freeze_tuned")
    proposals = run_out(studies_of(space, samples=2))
    for proposal in proposals[:11]:
        assert (proposal.point["learning_rate"], proposal.point["batch_size"]) == (5e-4, 128)


@pytest.mark.parametrize(("scope", "num_studies"), [("cell", 2), ("arm", 1)])
def test_a_space_says_whether_cells_learn_from_each_other(scope: str, num_studies: int) -> None:
    space = SearchSpace(arms=TUNED.arms, study=scope)  # type: ignore[arg-type]
    studies = studies_of(space, samples=3)
    run_out(studies)
    assert len(studies.studies) == num_studies
    assert ("frozen_blocks" in studies.studies[0].trials[0].params) == (scope == "arm")


def test_a_pruned_trial_keeps_its_intermediate_values() -> None:
    studies = studies_of(TUNED, samples=2)
    proposal = studies.propose()
    assert proposal is not None
    for epoch, score in ((1, 0.6), (2, 0.5)):
        studies.observe(proposal.number, epoch, score)
    studies.tell(proposal.number, TrialState.PRUNED)
    (trial,) = studies.studies[0].trials
    assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, {1: 0.6, 2: 0.5})


def test_known_trials_are_learnt_from_and_not_proposed_again() -> None:
    cell = FINITE.cells()[0]
    known = tuple(
        KnownTrial(
            cell=cell,
            values={"depth": depth, "batch_size": 16},
            state=TrialState.COMPLETE,
            objective_values=(0.1 * depth,),
            scores={1: 0.1},
        )
        for depth in (2, 3, 4)
    )
    studies = studies_of(FINITE, samples=50, known=known)
    points = {(proposal.point["depth"], proposal.point["batch_size"]) for proposal in run_out(studies)}
    assert points == {(2, 32), (3, 32), (4, 32)}


def test_lists_of_whole_numbers_can_be_chosen() -> None:
    space = SearchSpace(arms=(Arm(model="cnn", channels=Choice((4, 8), (8, 16)), kernel_sizes=(3, 3), padding="same"),))
    assert {proposal.point["channels"] for proposal in run_out(studies_of(space, samples=2))} == {(4, 8), (8, 16)}


def test_uniform_axes_stay_inside_their_bounds() -> None:
    space = SearchSpace(arms=(Arm(model="cnn", label_smoothing=Uniform(0.1, 0.2)),))
    values = [proposal.point["label_smoothing"] for proposal in run_out(studies_of(space, samples=30))]
    assert all(0.1 <= value <= 0.2 for value in values)  # type: ignore[operator]
    assert len(set(values)) == 30


def test_the_default_objective_is_the_selection_score() -> None:
    assert Strategy.for_space(TUNED).objectives == (SELECTION,)
