"""The options of a search, read from the arguments of a call of `tune_lung.run_search`."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tune_lung.errors import did_you_mean, require, require_choice
from tune_lung.option_values import Duration, HangTimeout, NameOrPlace, Place, Size, checked
from tune_lung.results.reader import Run
from tune_lung.search.options import OPTION_BY_NAME, OPTIONS, GivenOptions, Option, SearchOptions
from tune_lung.space import SearchSpace

_UNIT_BY_KIND = {Duration: "s", HangTimeout: "s", Size: "B"}
_NAME_OF_A_SPACE = "space"
"""Of one that was given as a value, and has none."""


def read_arguments(arguments: Mapping[str, object]) -> GivenOptions:
    """Read the arguments of a call.

    Args:
        arguments: By name; what is None was not said, and neither was the default of `out`.

    Raises:
        InputError: A value is none of its option's.
        TypeError: There is no such argument.
    """
    known = {option.name for option in OPTIONS if not option.of_commands_only}
    for name in arguments:
        if name not in known:
            raise TypeError(f"run_search() has no argument '{name}'. {did_you_mean(name, known)}")
    said = {name: value for name, value in arguments.items() if value is not None}
    if str(said.get("out")) == str(SearchOptions().out):
        del said["out"]
    space = said.get("space")
    if isinstance(space, SearchSpace):
        said["space"] = space.name or _NAME_OF_A_SPACE
    values = {name: _read(OPTION_BY_NAME[name], value) for name, value in said.items()}
    words = [word for name, value in values.items() for word in _words(OPTION_BY_NAME[name], value)]
    given = GivenOptions.of(values, tuple(words))
    return replace(given, space=space) if isinstance(space, SearchSpace) else given


def _read(option: Option, value: object) -> Any:
    if not option.is_repeatable:
        return _read_one(option, value)
    if isinstance(value, Mapping):  # of `set`: fields and their values
        value = [f"{name}={_text(each)}" for name, each in value.items()]
    several = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    return tuple(_read_one(option, each) for each in several)


def _read_one(option: Option, value: object) -> Any:
    name = option.name
    if option.choices:
        require_choice(name, value, option.kind)  # type: ignore[arg-type] # whatever it is
        return value
    if option.kind is bool:
        require(isinstance(value, bool), f"{name} must be True or False, not {value!r}.")
        return value
    if option.kind is Place and isinstance(value, Run):
        return value.path
    if option.kind is NameOrPlace and isinstance(value, Path):
        value = str(value)
    require(not isinstance(value, bool), f"{name} cannot be {value!r}.")
    return checked(option.kind, value, name=name)


def _words(option: Option, value: Any) -> list[str]:
    """Write a value as on a command line."""
    if option.kind is bool:
        return [option.flag] if value else []
    several = value if option.is_repeatable else (value,)
    return [word for each in several for word in (option.flag, f"{each}{_UNIT_BY_KIND.get(option.kind, '')}")]


def _text(value: object) -> str:
    """Write a field's value as `--set` has it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
