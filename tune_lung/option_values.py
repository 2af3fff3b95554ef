"""What the options of all commands may be: each kind of value is read from a text in one way, and refused in one line.

A kind is a type with its bounds, as pydantic checks it: the same of what a command line says and of what was remembered of it.
"""

import argparse
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from tune_lung.errors import InputError, shortened

_SECONDS_BY_UNIT = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MOST_SECONDS = 1000 * 86400.0
_MOST_BYTES = 2**63 - 1
_MOST_THINGS = 2**31 - 1
_MOST_CPUS = 100_000
_LEAST_HANG_SECONDS = 3.0
"""A worker is asked once a second whether it goes on; a batch, or the start of a network, may take another."""
_LEAST_GPU_SHARE = 0.0001
"""What Ray divides a GPU into."""


def _seconds(value: object) -> object:
    """Read a time such as `30m`; a number is one of seconds already."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*([smhd])\s*", value, re.IGNORECASE)
    if not found:
        raise ValueError("write a number and a unit, such as 90s, 30m, 8h or 2d.")
    return float(found[1]) * _SECONDS_BY_UNIT[found[2].lower()]


def _bytes(value: object) -> object:
    """Read a size such as `5GB`; a number is one of bytes already, but a text needs its unit."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*(B|[KMGT]B?)?\s*", value, re.IGNORECASE)
    if not found or (found[2] is None and float(found[1]) > 0):
        raise ValueError("write a number and a unit, such as 5GB or 500MB, or 0.")
    size = float(found[1]) * 1000.0 ** "BKMGT".index((found[2] or "B")[0].upper())
    return math.ceil(min(max(size, -1.0), 2.0 * _MOST_BYTES))  # in bounds for an int, of which 0 alone means none


def _expanded(value: object) -> object:
    """Write out the home folder that a path begins with, as a shell does only where the path is a word of its own."""
    if not isinstance(value, str | Path):
        return value
    text = os.path.expanduser(value)  # noqa: PTH111 - that of pathlib gives up where it does not know the user
    if not text.strip() or "\0" in text:
        raise ValueError("write the path of a file or folder.")
    if text.startswith("~"):
        user = text.partition(os.sep)[0]
        raise ValueError(f"there is no user '{user[1:]}' here. Write ./{user} for what is called so.")
    return type(value)(text)


def _path(value: object) -> object:
    value = _expanded(value)
    return Path(value) if isinstance(value, str) else value


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("write something, or leave the option out.")
    return text


def _gpu_share(wanted: float) -> float:
    """Refuse a share of GPUs that Ray never gives: it would be waited for without an end."""
    if wanted and not _LEAST_GPU_SHARE <= wanted <= 1 and wanted != int(wanted):
        raise ValueError(f"a trial takes a share of one GPU, {_LEAST_GPU_SHARE:g} to 1, or whole ones, such as 2.")
    return wanted


Whole: TypeAlias = Annotated[int, Field(le=2**64)]
"""A whole number; what it counts has bounds of its own."""
AtLeast1: TypeAlias = Annotated[int, Field(ge=1, le=_MOST_THINGS)]
"""A number of things."""
Cpus: TypeAlias = Annotated[float, Field(ge=0.1, le=_MOST_CPUS)]
"""CPUs of a trial."""
Gpus: TypeAlias = Annotated[float, Field(ge=0, le=_MOST_CPUS), AfterValidator(_gpu_share)]
"""GPUs of a trial, or a share of one."""
Duration: TypeAlias = Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=_MOST_SECONDS)]
"""Seconds, written with a unit, such as `30m`."""
HangTimeout: TypeAlias = Annotated[float, BeforeValidator(_seconds), Field(ge=_LEAST_HANG_SECONDS, le=_MOST_SECONDS)]
"""Likewise; no shorter than what any worker needs for a batch."""
Size: TypeAlias = Annotated[int, BeforeValidator(_bytes), Field(ge=0, le=_MOST_BYTES)]
"""Bytes, written with a unit, such as `5GB`, or 0."""
Place: TypeAlias = Annotated[Path, BeforeValidator(_path)]
"""A file or folder; `~` is the user's home."""
Words: TypeAlias = Annotated[str, AfterValidator(_not_empty)]
"""A text that is not empty."""
NameOrPlace: TypeAlias = Annotated[str, BeforeValidator(_expanded)]
"""A name that the command knows, or a path."""


def checked(kind: Any, value: object, *, name: str) -> Any:
    """Check one option's value.

    Args:
        kind: Its type, one of those above or another that pydantic knows.
        value: As a command line gives it, or of its type already.
        name: What the user calls the option, such as `--limit`.

    Returns:
        The value, of its type.

    Raises:
        InputError: It is none; the text names the option, the value and what is allowed.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        unit = {Duration: " s", HangTimeout: " s", Size: " bytes"}.get(kind, "") if value not in ("0", 0) else ""
        raise InputError(_sentence(error, shortened(str(value)), name, unit)) from error


def _sentence(error: ValidationError, shown: str, name: str, unit: str) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    limits = first.get("ctx", {})
    for limit, words in (("ge", "at least"), ("gt", "above"), ("le", "at most")):
        if limit in limits:
            return f"{name} must be {words} {limits[limit]:.12g}{unit}, not {shown}."
    if "error" in limits:
        return f"{name} {shown or repr(shown)}: {limits['error']}"
    wanted = {"int": "a whole number", "string": "a text", "path": "a path"}.get(first["type"].partition("_")[0], "a number")
    return f"{name} must be {wanted}, not {shown or repr(shown)}."


class ReadOption(argparse.Action):
    """Reads an option by its kind; of one that is given twice the last counts."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, kind: Any, **keywords: Any) -> None:
        """Take what `add_argument` takes, and the kind.

        Args:
            option_strings: The option's flags; none of what stands without.
            dest: Its name among the options.
            kind: One of the kinds of this module; of what may be named several times, that of each.
            **keywords: What `argparse.Action` takes.
        """
        super().__init__(option_strings, dest, **keywords)
        self.kind = kind

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse gives it
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Read what was given.

        Raises:
            InputError: It is not of its kind; argparse lets that through.
        """
        name = option_string or str(self.metavar or self.dest)
        read = [self._read(each, name) for each in values] if isinstance(values, list) else self._read(values, name)
        setattr(namespace, self.dest, read)

    def _read(self, value: object, name: str) -> Any:
        return checked(self.kind, value, name=name)
