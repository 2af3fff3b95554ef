"""What of a run's images must be known to bring a new one to the form in which its networks saw them: plain JSON values.

A manifest holds them, for the images and their store may be gone when a network is asked.
"""

from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from tune_lung.shapes import ListOf

_White = Annotated[int, Field(ge=1, lt=2**32)]
_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class DeclaredWhite(TypedDict):
    """What is white in images that make one declaration."""

    declared: Annotated[ListOf[_White], Field(min_length=1, max_length=8)]
    """What their files say that white may be, in rising order."""
    white: _White
    """The number that is white in them."""


class WhiteFacts(TypedDict):
    """What is white in images of more than 8 bits; `tune_lung.data.depth` says how that is settled."""

    declared: Annotated[ListOf[DeclaredWhite], Field(max_length=1000)]
    """By what files declare."""
    used: _White | None
    """Where they declare nothing; null where there is none of more than 8 bits."""


class PixelFacts(TypedDict):
    """How the pixels of a run's images were made, and what they are like."""

    train_mean: _Share
    """Mean of the training pixels / 255, before any masking."""
    train_deviation: _Share
    """Standard deviation of the same."""
    whites: WhiteFacts
    """Of the images."""
    mask_whites: WhiteFacts
    """Of their lung masks."""
