"""The one list of options says of each what it is, who may say it, and whether a resume may change it."""

import argparse
import re
from pathlib import Path
from typing import Literal, get_origin, get_type_hints

import pytest

from tune_lung.config import RunConfig
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
from tune_lung.search.command_line import read_command_line, search_parser
from tune_lung.search.options import OPTIONS, Change, Kept, Option, SearchOptions, options_kept
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
