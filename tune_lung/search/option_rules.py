"""The one list of the search's options: what each is, who may say it of a run that goes on, and whether it may change then.

A run's manifest may be a stranger's. What defines the search is read from it as data, part by part, and nothing else is:
no path, no address, no tracker, nothing that takes room, CPUs or GPUs. Those come from the command line that resumes, or
from what the same user said of the same run before (`tune_lung.search.remembered`).
"""

import argparse
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypeAlias

from tune_lung.config import Protocol
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
from tune_lung.results.layout import KeepName
from tune_lung.strategy import SamplerName, SchedulerName

TrackerName: TypeAlias = Literal["tensorboard", "mlflow", "wandb"]


class Kept(Enum):
    """Where a run that goes on finds what was said."""

    SPACE = "space"
    """In the manifest's space, as what it has made of it."""
    STRATEGY = "strategy"
    """In the manifest's strategy."""
    RUN = "run"
    """In the manifest's own fields, those of `RunConfig`."""
    SETTINGS = "settings"
    """In the manifest's `settings`."""
    MEMORY = "memory"
    """In the user's own memory, outside the run: no manifest can say it."""
    NOWHERE = "nowhere"
    """Each command line says it anew."""


class Change(Enum):
    """Whether a run that goes on may be told something else than it was before."""

    NEVER = "never"
    GROW = "may grow"
    FREELY = "freely"


@dataclass(frozen=True)
class OptionRule:
    """One option of the command."""

    name: str
    """As the parser has it, such as `max_epochs`."""
    kind: Any
    """Type of what is said, with its bounds: one of `tune_lung.option_values`, choices, or a switch."""
    kept: Kept
    """Where it is found again."""
    change: Change
    """Whether it may change."""

    @property
    def flag(self) -> str:
        """As the command line has it, such as `--max-epochs`."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def may_a_manifest_say_it(self) -> bool:
        """Whether it is read from a run, whoever made that."""
        return self.kept not in (Kept.MEMORY, Kept.NOWHERE)


OPTION_RULES = (
    OptionRule("space", NameOrPlace, Kept.SPACE, Change.NEVER),
    OptionRule("set", list[str], Kept.SPACE, Change.NEVER),
    OptionRule("max_epochs", Whole, Kept.SPACE, Change.GROW),
    OptionRule("patience", Whole, Kept.SPACE, Change.NEVER),
    OptionRule("precision", Literal["auto", "bf16", "fp32"], Kept.SPACE, Change.NEVER),
    OptionRule("objective", Words, Kept.STRATEGY, Change.NEVER),
    OptionRule("samples", Whole, Kept.STRATEGY, Change.GROW),
    OptionRule("repeats", Whole, Kept.STRATEGY, Change.GROW),
    OptionRule("sampler", SamplerName, Kept.STRATEGY, Change.NEVER),
    OptionRule("scheduler", SchedulerName, Kept.STRATEGY, Change.NEVER),
    OptionRule("grace_epochs", Whole, Kept.STRATEGY, Change.NEVER),
    OptionRule("reduction_factor", Whole, Kept.STRATEGY, Change.NEVER),
    OptionRule("time_budget", Duration, Kept.STRATEGY, Change.GROW),
    OptionRule("protocol", Protocol, Kept.RUN, Change.NEVER),
    OptionRule("image_size", Whole, Kept.RUN, Change.NEVER),
    OptionRule("select_by", Words, Kept.RUN, Change.NEVER),
    OptionRule("seed", Whole, Kept.RUN, Change.NEVER),
    OptionRule("limit", AtLeast1, Kept.SETTINGS, Change.NEVER),
    OptionRule("strict_data", bool, Kept.SETTINGS, Change.FREELY),
    OptionRule("keep", KeepName, Kept.SETTINGS, Change.FREELY),  # goes with the run: elsewhere nothing else is removed
    OptionRule("data", Place, Kept.MEMORY, Change.FREELY),  # the same images, wherever they lie: their digest is compared
    OptionRule("weights", NameOrPlace, Kept.MEMORY, Change.FREELY),  # likewise
    OptionRule("follow_links", bool, Kept.MEMORY, Change.FREELY),
    OptionRule("cache", Place, Kept.MEMORY, Change.FREELY),
    OptionRule("cache_size", Size, Kept.MEMORY, Change.FREELY),
    OptionRule("address", Words, Kept.MEMORY, Change.FREELY),
    OptionRule("cpus_per_trial", Cpus, Kept.MEMORY, Change.FREELY),
    OptionRule("gpus_per_trial", Gpus, Kept.MEMORY, Change.FREELY),
    OptionRule("max_concurrent", AtLeast1, Kept.MEMORY, Change.FREELY),
    OptionRule("hang_timeout", HangTimeout, Kept.MEMORY, Change.FREELY),
    OptionRule("tracker", list[TrackerName], Kept.MEMORY, Change.FREELY),
    OptionRule("profile", bool, Kept.MEMORY, Change.FREELY),
    OptionRule("no_report", bool, Kept.MEMORY, Change.FREELY),
    OptionRule("out", Place, Kept.NOWHERE, Change.NEVER),
    OptionRule("name", str, Kept.NOWHERE, Change.NEVER),
    OptionRule("warm_start", Place, Kept.NOWHERE, Change.NEVER),
    OptionRule("dry_run", bool, Kept.NOWHERE, Change.NEVER),
    OptionRule("list_spaces", bool, Kept.NOWHERE, Change.NEVER),
    OptionRule("resume", Place, Kept.NOWHERE, Change.FREELY),
    OptionRule("allow_other_numbers", bool, Kept.NOWHERE, Change.FREELY),  # each attempt's manifest has what it said
)
"""Every option of `python -m tune_lung.search`, once."""


_RULE_BY_NAME = {rule.name: rule for rule in OPTION_RULES}


def rule_of(name: str) -> OptionRule:
    """Return the rule of one option, by its name as the parser has it."""
    return _RULE_BY_NAME[name]


def rules_of(kept: Kept, change: Change | None = None) -> tuple[OptionRule, ...]:
    """List the options that are kept in one place.

    Args:
        kept: The place.
        change: Only those that may change so; None for all.
    """
    return tuple(rule for rule in OPTION_RULES if rule.kept is kept and change in (None, rule.change))


def add_value(
    group: argparse._ActionsContainer, name: str, *, text: str, metavar: str | None = None, default: object = None
) -> None:
    """Add an option with a value to a command, as the list has it.

    Args:
        group: Of the command's parser.
        name: The option's name in the list.
        text: Its line in `--help`.
        metavar: What the value is called there.
        default: Of its type.
    """
    rule = rule_of(name)
    group.add_argument(rule.flag, action=ReadOption, kind=rule.kind, metavar=metavar, default=default, help=text)
