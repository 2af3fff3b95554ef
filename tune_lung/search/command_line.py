"""The options of `python -m tune_lung.search`, read from its command line: the only place that knows argparse's namespace."""

import argparse
from collections.abc import Sequence
from typing import Any

from tune_lung.option_values import ReadOption
from tune_lung.search.options import OPTIONS, GivenOptions, Group, Option


def search_parser(description: str | None, *, program: str = "python -m tune_lung.search") -> argparse.ArgumentParser:
    """Make the command's parser; what it is not told is not in what it returns.

    Args:
        description: Stands above the options in `--help`.
        program: What the user calls the command.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        epilog="Not for clinical use. A run's tables are Parquet files that pandas reads; see the README for their columns.",
    )
    for group in Group:
        added = parser.add_argument_group(group.value)
        for option in OPTIONS:
            if option.group is group:
                added.add_argument(option.flag, help=option.text.format(default=option.default), **_how_it_is_read(option))
    return parser


def _how_it_is_read(option: Option) -> dict[str, Any]:
    """Lay out what `add_argument` takes beside the flag and its help."""
    if option.kind is bool:
        return {"action": "store_true"}
    told: dict[str, Any] = {"metavar": option.metavar}
    if option.choices:
        told["choices"] = option.choices
    if option.is_repeatable:
        return {**told, "action": "append"}
    if option.choices or option.kind is str:  # the text of a name is checked where it is known what it names
        return told
    return {**told, "action": ReadOption, "kind": option.kind}


def read_command_line(
    arguments: Sequence[str], description: str | None = None, *, program: str = "python -m tune_lung.search"
) -> GivenOptions:
    """Read a command line.

    Args:
        arguments: Without the program's name.
        description: As in `search_parser`.
        program: What the user calls the command.

    Raises:
        InputError: A value is none of its option's.
        SystemExit: argparse refuses a word, or `--help` was asked for.
    """
    found = vars(search_parser(description, program=program).parse_args(arguments))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return GivenOptions.of(values, tuple(arguments))
