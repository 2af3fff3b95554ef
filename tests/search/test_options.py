"""The one list of options says of each what it is, who may say it, and whether a resume may change it."""

import argparse
import re
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Literal, get_origin, get_type_hints

import numpy as np
import pytest

from tune_lung import Run, run_search
from tune_lung.config import RunConfig
from tune_lung.families.family import PointValue
from tune_lung.option_values import (
    AtLeast1,
    Cpus,
    Duration,
    Gpus,
    HangTimeout,
    NameOrPlace,
    Place,
    ReadOption,
    Size,
    Whole,
    Words,
)
from tune_lung.results.manifest import SearchSettings
from tune_lung.search.arguments import read_arguments
from tune_lung.search.command_line import read_command_line, search_parser
from tune_lung.search.options import OPTIONS, Change, Kept, Option, SearchKeywords, SearchOptions, options_kept
from tune_lung.strategy import Strategy

ACTIONS = {action.dest: action for action in search_parser(None)._actions if action.dest != "help"}
FROZEN = {
    "space": (NameOrPlace, "freeze_grid"),
    "list_spaces": (bool, False),
    "set": (tuple[str, ...], ()),
    "protocol": (Literal["strict", "published"] | None, None),
    "select_by": (Words | None, None),
    "objective": (Words | None, None),
    "seed": (Whole, 0),
    "samples": (Whole | None, None),
    "repeats": (Whole, 1),
    "sampler": (Literal["tpe", "random", "gp", "nsga2", "exhaustive"] | None, None),
    "scheduler": (Literal["asha", "median", "none"] | None, None),
    "grace_epochs": (Whole | None, None),
    "reduction_factor": (Whole | None, None),
    "time_budget": (Duration | None, None),
    "warm_start": (Place | None, None),
    "resume": (Place | None, None),
    "allow_other_numbers": (bool, False),
    "dry_run": (bool, False),
    "data": (Place | None, None),
    "image_size": (Whole, 128),
    "limit": (AtLeast1 | None, None),
    "strict_data": (bool, False),
    "follow_links": (bool, False),
    "cache": (Place | None, None),
    "cache_size": (Size, 20 * 10**9),
    "weights": (NameOrPlace | None, None),
    "max_epochs": (Whole | None, None),
    "patience": (Whole | None, None),
    "precision": (Literal["auto", "bf16", "fp32"], "auto"),
    "address": (Words | None, None),
    "cpus_per_trial": (Cpus | None, None),
    "gpus_per_trial": (Gpus | None, None),
    "hang_timeout": (HangTimeout, 1800.0),
    "max_concurrent": (AtLeast1 | None, None),
    "out": (Place, Path("runs")),
    "name": (str | None, None),
    "tracker": (tuple[Literal["tensorboard", "mlflow", "wandb"], ...], ()),
    "keep": (Literal["leaders", "best", "all"], "leaders"),
    "profile": (bool, False),
    "no_report": (bool, False),
}
"""What users' scripts rely on: an option that is renamed, or means something else unsaid, breaks them."""


def test_the_list_of_options_is_what_scripts_rely_on() -> None:
    types, said = get_type_hints(SearchOptions, include_extras=True), vars(SearchOptions())
    assert {name: (types[name], said[name]) for name in types} == FROZEN
    assert {option.name: option.default for option in OPTIONS} == said


def test_help_has_every_option_exactly_once() -> None:
    declared = re.findall(r"^ {2}(--[a-z-]+)", search_parser(None).format_help(), re.MULTILINE)
    assert sorted(declared) == sorted(option.flag for option in OPTIONS)


def test_a_command_line_that_says_nothing_asks_for_the_defaults() -> None:
    given = read_command_line([])
    assert (given.options, given.names) == (SearchOptions(), frozenset())


def test_a_default_that_is_said_is_said_all_the_same() -> None:
    """A resume compares what is said with what was."""
    given = read_command_line(["--seed", "0", "--set", "batch_size=8", "--set", "padding=same"])
    assert given.names == {"seed", "set"}
    assert given.among(Kept.SPACE) == {"set": ("batch_size=8", "padding=same")}
    assert given.among(Kept.RUN, change=Change.NEVER) == {"seed": 0}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_an_option_is_of_the_kind_that_the_parser_makes(option: Option) -> None:
    action = ACTIONS[option.name]
    assert option.flag in action.option_strings
    assert isinstance(action, argparse._AppendAction) == option.is_repeatable
    assert isinstance(action, argparse._StoreTrueAction) == (option.kind is bool)
    assert tuple(action.choices or ()) == option.choices
    assert bool(option.choices) == (get_origin(option.kind) is Literal)
    if option.kind is not bool and not option.choices and option.name not in ("set", "name"):
        assert isinstance(action, ReadOption)
        assert action.kind is option.kind


def test_a_manifest_says_what_defines_the_search_and_nothing_else() -> None:
    """Whoever adds an option has to say here that a stranger's run may give it, or that it may not."""
    assert {option.name for option in OPTIONS if option.may_a_manifest_say_it} == {
        *("space", "set", "max_epochs", "patience", "precision"),
        *("objective", "samples", "repeats", "sampler", "scheduler", "grace_epochs", "reduction_factor", "time_budget"),
        *("protocol", "image_size", "select_by", "seed"),
        *("limit", "strict_data", "keep"),
    }
    assert not [option.name for option in OPTIONS if option.kind is Place and option.may_a_manifest_say_it]


def test_a_resume_may_change_where_and_how_it_runs_and_let_the_search_grow() -> None:
    grows = {option.name for option in OPTIONS if option.change is Change.GROW}
    assert grows == {"max_epochs", "samples", "repeats", "time_budget"}
    never = {option.name for option in options_kept(Kept.NOWHERE, Change.NEVER)}
    assert never == {"out", "name", "warm_start", "dry_run", "list_spaces"}
    assert all(option.change is Change.FREELY for option in options_kept(Kept.MEMORY))


def test_what_a_manifest_keeps_has_a_place_there() -> None:
    assert {option.name for option in options_kept(Kept.RUN)} == set(get_type_hints(RunConfig))
    assert {option.name for option in options_kept(Kept.SETTINGS)} == set(get_type_hints(SearchSettings))
    names = {"objective": "objectives", "time_budget": "time_budget_seconds"}
    assert {names.get(option.name, option.name) for option in options_kept(Kept.STRATEGY)} == set(get_type_hints(Strategy))


TOLD_IN_PYTHON = {
    Whole: int,
    AtLeast1: int,
    Cpus: float,
    Gpus: float,
    Duration: float | str,
    HangTimeout: float | str,
    Size: int | str,
    Words: str,
    NameOrPlace: str | Path,
    Place: str | Path,
}
"""What Python may say of each kind."""
OWN_PARAMETERS = {"space", "data", "out", "name"}


def test_the_keywords_of_python_are_the_options() -> None:
    keywords = get_type_hints(SearchKeywords, localns={"Run": Run})
    expected: dict[str, object] = {}
    for option in OPTIONS:
        if not option.of_commands_only and option.name not in OWN_PARAMETERS:
            kind = TOLD_IN_PYTHON.get(option.kind, option.kind)
            kind = kind | Sequence[kind] if option.is_repeatable else kind
            kind = kind | Run if option.name in ("resume", "warm_start") else kind
            expected[option.name] = kind | None if option.default is None else kind
    expected["set"] = Mapping[str, PointValue] | Sequence[str]  # a field's value may be more than a text
    assert keywords == expected
    assert set(signature(run_search).parameters) == {*OWN_PARAMETERS, "options"}


def test_what_python_says_is_written_as_the_command_line_that_says_the_same() -> None:
    given = read_arguments(
        {
            "space": "freeze_tuned",
            "data": "images",
            "out": "runs",
            "name": None,
            "set": {"channels": (8, 16), "padding": "same"},
            "time_budget": "30m",
            "cache_size": "5GB",
            "tracker": "mlflow",
            "strict_data": True,
            "profile": False,
            "resume": None,
            "seed": np.int64(3),
        }
    )
    again = read_command_line(given.words)
    assert given.options == again.options
    assert given.names == again.names | {"profile"}
    assert given.options == SearchOptions(
        space="freeze_tuned",
        data=Path("images"),
        set=("channels=8,16", "padding=same"),
        time_budget=1800.0,
        cache_size=5 * 10**9,
        tracker=("mlflow",),
        strict_data=True,
        seed=3,
    )
