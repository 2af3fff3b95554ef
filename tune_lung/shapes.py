"""The shapes of what is read back: a file that anybody may have written is checked by them before anything is done with it.

Shapes are types, checked by pydantic: what a file holds is taken as it stands, nothing is converted, and what a shape does
not name is left alone, for newer versions add to what they write.
"""

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, TypeAlias, TypeVar

from pydantic import AfterValidator, BeforeValidator, FailFast, Field, TypeAdapter, ValidationError

FIRST_MOMENT, LAST_MOMENT = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Between them lie the moments that are read back."""
_T = TypeVar("_T")
_MOST_SHOWN = 60


class WrongShapeError(ValueError):
    """What was read has not the shape that it must have; the text says where, on one line."""

    def __init__(self, where: str, problem: str, *, is_lacking: bool = False) -> None:
        """Say what is wrong.

        Args:
            where: The place inside the file, such as `data.classes`; empty for the whole.
            problem: What is wrong with it.
            is_lacking: Whether there is nothing at that place.
        """
        super().__init__(f"{where}: {problem}" if where else problem)
        self.where, self.is_lacking = where, is_lacking


def require_shape(shape: TypeAdapter[_T], content: object) -> _T:
    """Check what was read.

    Args:
        shape: What it must be.
        content: JSON values, or what another reader gives.

    Returns:
        What the shape names of it.

    Raises:
        WrongShapeError: It is something else.
    """
    try:
        return shape.validate_python(content, strict=True)
    except ValidationError as error:
        raise _wrong(error) from error


def built_from_json(shape: TypeAdapter[_T], content: object) -> _T:
    """Build a plain value of ours, such as a dataclass, from JSON values; lists stand for tuples.

    Raises:
        WrongShapeError: It is something else, or the value refuses to be so; the text is the value's own then.
    """
    try:
        return shape.validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise _wrong(error) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise WrongShapeError("", f"It is no JSON ({type(error).__name__}).") from error


def _wrong(error: ValidationError) -> WrongShapeError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = "".join(sign if sign.isprintable() else "?" for sign in ".".join(map(str, first["loc"])))
    shown = where if len(where) <= _MOST_SHOWN else f"{where[:_MOST_SHOWN]}..."
    return WrongShapeError(shown, first["msg"].removeprefix("Value error, "), is_lacking=first["type"] == "missing")


def _encodable(text: str) -> str:
    text.encode()  # a lone half of a pair raises a ValueError
    return text


def _moment(text: object) -> datetime:
    moment = None
    if isinstance(text, str):
        with suppress(ValueError):
            moment = datetime.fromisoformat(text)
    if moment is None or moment.tzinfo is None or not FIRST_MOMENT <= moment < LAST_MOMENT:
        raise ValueError("It is no moment of a search.")
    return moment.astimezone(UTC)


def _distinct(values: list[str]) -> list[str]:
    if len(set(values)) < len(values):
        raise ValueError("A value stands twice.")
    return values


Text: TypeAlias = Annotated[str, Field(max_length=1000), AfterValidator(_encodable)]
"""A text of a line or two."""
Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]
"""A whole number that a table can hold."""
AttemptNumber: TypeAlias = Annotated[int, Field(ge=1, lt=2**31)]
"""Number of an attempt at a run."""
Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
"""A finite number."""
Amount: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number that is not negative."""
Moment: TypeAlias = Annotated[datetime, BeforeValidator(_moment)]
"""A moment with its time zone, written as in ISO 8601; it is given back in UTC."""
ListOf: TypeAlias = Annotated[list[_T], FailFast()]
"""A list that is given up at its first wrong item, however many there are."""
DISTINCT = AfterValidator(_distinct)
"""Marks a list of which no item stands twice."""
