"""The one list of options says of each what it is, who may say it, and whether a resume may change it."""

import argparse
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from tune_lung.config import RunConfig
from tune_lung.option_values import Place, ReadOption
from tune_lung.results.manifest import SearchSettings
from tune_lung.search.option_rules import OPTION_RULES, Change, Kept, rules_of
from tune_lung.search.options import search_parser
from tune_lung.strategy import Strategy

ACTIONS = {action.dest: action for action in search_parser(None)._actions if action.dest != "help"}


def test_every_option_of_the_command_stands_in_the_list_once() -> None:
    assert sorted(rule.name for rule in OPTION_RULES) == sorted(ACTIONS)


@pytest.mark.parametrize("rule", OPTION_RULES, ids=lambda rule: rule.name)
def test_an_option_is_of_the_kind_that_the_parser_makes(rule) -> None:
    action = ACTIONS[rule.name]
    kind = get_args(rule.kind)[0] if get_origin(rule.kind) is list else rule.kind
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    assert rule.flag in action.option_strings
    assert isinstance(action, argparse._AppendAction) == (get_origin(rule.kind) is list)
    assert isinstance(action, argparse._StoreTrueAction) == (rule.kind is bool)
    assert tuple(action.choices or ()) == choices
    if rule.kind is not bool and not choices and rule.name not in ("set", "name"):
        assert isinstance(action, ReadOption)
        assert action.kind is rule.kind


def test_a_manifest_says_what_defines_the_search_and_nothing_else() -> None:
    """Whoever adds an option has to say here that a stranger's run may give it, or that it may not."""
    assert {rule.name for rule in OPTION_RULES if rule.may_a_manifest_say_it} == {
        *("space", "set", "max_epochs", "patience", "precision"),
        *("objective", "samples", "repeats", "sampler", "scheduler", "grace_epochs", "reduction_factor", "time_budget"),
        *("protocol", "image_size", "select_by", "seed"),
        *("limit", "strict_data", "keep"),
    }
    assert not [rule.name for rule in OPTION_RULES if rule.kind is Place and rule.may_a_manifest_say_it]


def test_a_resume_may_change_where_and_how_it_runs_and_let_the_search_grow() -> None:
    grows = {rule.name for rule in OPTION_RULES if rule.change is Change.GROW}
    assert grows == {"max_epochs", "samples", "repeats", "time_budget"}
    assert {rule.name for rule in rules_of(Kept.NOWHERE, Change.NEVER)} == {"out", "name", "warm_start", "dry_run", "list_spaces"}
    assert all(rule.change is Change.FREELY for rule in rules_of(Kept.MEMORY))


def test_what_a_manifest_keeps_has_a_place_there() -> None:
    assert {rule.name for rule in rules_of(Kept.RUN)} == set(get_type_hints(RunConfig))
    assert {rule.name for rule in rules_of(Kept.SETTINGS)} == set(get_type_hints(SearchSettings))
    names = {"objective": "objectives", "time_budget": "time_budget_seconds"}
    assert {names.get(rule.name, rule.name) for rule in rules_of(Kept.STRATEGY)} == set(get_type_hints(Strategy))
