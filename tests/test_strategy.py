"""How a space is searched: defaults, and combinations that are refused."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tune_lung.errors import InputError
from tune_lung.space import Arm, Choice, SearchSpace
from tune_lung.space_files import load_space
from tune_lung.strategy import SELECTION, Objective, Strategy, parse_objectives, recorded_objectives

GRID, TUNED = load_space("freeze_grid"), load_space("freeze_tuned")
FRONT = "val_macro_recall:max,trainable_params:min"


def test_a_grid_runs_every_cell_to_its_end() -> None:
    strategy = Strategy.for_space(GRID)
    assert (strategy.sampler, strategy.scheduler, strategy.num_trials(GRID)) == ("exhaustive", "none", 11)


def test_a_sampled_space_is_searched_by_tpe_and_asha() -> None:
    strategy = Strategy.for_space(TUNED, samples=3)
    assert (strategy.sampler, strategy.scheduler, strategy.num_trials(TUNED)) == ("tpe", "asha", 33)


def test_what_has_no_epochs_is_stopped_by_nobody() -> None:
    assert Strategy.for_space(load_space("representations")).scheduler == "none"
    mixed = SearchSpace(arms=(Arm(model="svm", c=Choice(1.0, 2.0)), Arm(model="cnn", batch_size=Choice(8, 16))))
    assert Strategy.for_space(mixed).scheduler == "asha"


@pytest.mark.parametrize(
    ("model", "objective", "is_refused"),
    [
        ("svm", "val_macro_recall:max,trainable_params:min", True),
        ("random_forest", "val_macro_recall:max,mult_adds:min", True),
        ("logistic", "val_macro_recall:max,trainable_params:min", False),
        ("svm", "val_macro_recall:max,epoch_seconds_mean:min", False),
    ],
)
def test_an_objective_that_nobody_can_count_is_refused(model: str, objective: str, is_refused: bool) -> None:
    arm = Arm(model=model, components=Choice(4, 8))
    if not is_refused:
        assert Strategy.for_space(SearchSpace(arms=(arm,)), objectives=parse_objectives(objective)).objectives
        return
    with pytest.raises(InputError, match=r"^--objective \w+: of trials of cell '\w+' it is not known\. Choose another"):
        Strategy.for_space(SearchSpace(arms=(arm,)), objectives=parse_objectives(objective))


def test_repeats_multiply_trials_and_stop_none() -> None:
    strategy = Strategy.for_space(TUNED, samples=3, repeats=4)
    assert (strategy.scheduler, strategy.num_trials(TUNED)) == ("none", 132)


def test_asha_runs_over_a_grid_when_asked_for() -> None:
    assert Strategy.for_space(GRID, scheduler="asha").scheduler == "asha"


def test_exhaustive_counts_every_point_of_every_cell() -> None:
    space = SearchSpace(arms=(Arm(model="cnn", batch_size=Choice(16, 32, 64)), Arm(model="resnet18")), name="mine")
    assert Strategy.for_space(space, sampler="exhaustive").num_trials(space) == 4


@pytest.mark.parametrize(
    ("space", "choices", "message"),
    [
        (GRID, {"samples": 3}, r"--samples: 'freeze_grid' samples nothing; each of its 11 cells is one point"),
        (GRID, {"sampler": "tpe"}, "--sampler tpe: 'freeze_grid' samples nothing"),
        (TUNED, {"sampler": "exhaustive"}, r"learning_rate of cell 'cnn' has no end of values.*--set learning_rate=VALUE"),
        (TUNED, {"samples": 0}, "--samples must be at least 1, not 0"),
        (TUNED, {"repeats": 0}, "--repeats must be at least 1, not 0"),
        (TUNED, {"grace_epochs": 0}, "--grace-epochs must be at least 1, not 0"),
        (TUNED, {"reduction_factor": 1}, "--reduction-factor must be at least 2, not 1"),
        (TUNED, {"time_budget_seconds": 0.0}, "--time-budget must be above 0"),
        (TUNED, {"repeats": 3, "scheduler": "asha"}, "--repeats 3 needs --scheduler none: asha would stop some seeds"),
        (
            TUNED,
            {"objectives": parse_objectives(FRONT), "scheduler": "median"},
            "Several objectives need --scheduler none: median compares one number",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(space: SearchSpace, choices: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Strategy.for_space(space, **choices)


def test_objectives_name_column_and_direction() -> None:
    assert parse_objectives(FRONT) == (Objective("val_macro_recall", "max"), Objective("trainable_params", "min"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("test_macro_recall:max,mult_adds:min", "the test images stay sealed"),
        ("val_macro_recal:max,mult_adds:min", "Did you mean 'val_macro_recall'"),
        ("val_macro_recall,mult_adds:min", "write COLUMN:max or COLUMN:min"),
        ("mult_adds:min,val_recall:COVID", "write COLUMN:max or COLUMN:min"),
        ("mult_adds:min,val_recall:COVID:up", "write COLUMN:max or COLUMN:min"),
        ("val_recall::max,mult_adds:min", "Did you mean 'val_recall:CLASS'"),
        ("val_macro_recall:up,mult_adds:min", "write COLUMN:max or COLUMN:min"),
        ("val_macro_recall:max", "name two or more.*--select-by"),
        ("val_loss:min,val_loss:max", "a column stands twice"),
    ],
)
def test_a_wrong_objective_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_objectives(text)


def test_an_objective_may_be_the_recall_of_a_class_whatever_its_name() -> None:
    objectives = parse_objectives("val_recall:Lung, left:max, val_loss:min,val_recall:a:b:max")
    assert [(one.column, one.direction) for one in objectives] == [
        ("val_recall:Lung, left", "max"),
        ("val_loss", "min"),
        ("val_recall:a:b", "max"),
    ]


def test_a_recorded_objective_is_the_recall_of_a_class_that_the_run_has() -> None:
    objectives = [{"column": "val_recall:COVID", "direction": "max"}, {"column": "mult_adds", "direction": "min"}]
    manifest = {"strategy": {"objectives": objectives}, "data": {"classes": ["COVID"]}}
    assert recorded_objectives(manifest)[0] == Objective("val_recall:COVID", "max")
    with pytest.raises(InputError, match="objective 'val_recall:COVID', and no such class"):
        recorded_objectives(manifest | {"data": {"classes": ["covid"]}})


@pytest.mark.parametrize("objectives", [(SELECTION,), parse_objectives(FRONT)])
def test_a_strategy_survives_the_manifest(objectives: tuple[Objective, ...]) -> None:
    strategy = Strategy.for_space(TUNED, objectives=objectives, samples=5, time_budget_seconds=60.0)
    content = json.loads(json.dumps({**strategy.as_json(), "sampler_options": {"seed": 1}}))
    assert Strategy.from_json(content) == strategy


@pytest.mark.parametrize("change", [{"sampler": "tpee"}, {"scheduler": "hyperband"}])
def test_an_unknown_sampler_or_scheduler_becomes_no_other(change):
    (name,) = change
    with pytest.raises(InputError, match=rf"^{name} cannot be '{change[name]}'\. .*Allowed: "):
        replace(Strategy.for_space(TUNED), **change)
