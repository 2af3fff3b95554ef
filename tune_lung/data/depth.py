"""Films of more than 8 bits: which of their numbers is white.

A detector gives 10 to 16 bits, and a file of 16 or 32 bits says of few films how many. So white is the largest number of the
depth that a file declares, or else of the depth that the images of a data set together use: of one, for a dark film must stay
darker than its neighbours. An image of 8 bits has no `Depth`, and is what it is.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from tune_lung.results.pixel_facts import DeclaredWhite, WhiteFacts

WHITE_OF_8_BITS = 255
MIXED_DEPTHS = (
    "reach a quarter of the common white at most, and become dark: the data mix depths, or hold dark films."
    " `python -m tune_lung.data scan DIR` names them."
)
_LEAST_FILM_BITS = 8
"""A mask of two numbers is no film that something is drawn on."""
_FAR_BITS = 2
"""An image that uses so many bits less than its scale has ends below a quarter of white."""


@dataclass(frozen=True, kw_only=True)
class Depth:
    """What a file of more than 8 bits says of its numbers, and what they are."""

    maximum: int
    """Its largest number."""
    film_maximum: int
    """Its largest number but the largest that its file can hold: letters and frames are drawn in that one."""
    declared: tuple[int, ...] = ()
    """What it may mean by white, in rising order; empty where it does not say."""
    is_inverted: bool = False
    """Whether 0 is white, and white black."""


def whites_of(depths: Iterable[Depth | None]) -> "Whites":
    """Settle what is white in each image of a data set.

    A declaration holds where no image that makes the same one goes beyond it: a PNG file of 12 significant bits has them in the
    upper bits, says its standard, and in the lower ones, say some writers. What is drawn onto films in the largest number that a
    file can hold is white, but no part of the films' depth.

    Args:
        depths: Of all its images that are used; None for one of 8 bits.
    """
    found = list(depths)
    deep = [depth for depth in found if depth is not None]
    largest: Counter[tuple[int, ...]] = Counter()
    for depth in deep:
        largest[depth.declared] = max(largest[depth.declared], depth.film_maximum)
    declared = {
        each: white for each, most in largest.items() if (white := next((one for one in each if one >= most), None)) is not None
    }
    others = [depth for depth in deep if depth.declared not in declared]
    bits = max((depth.maximum.bit_length() for depth in others), default=0)
    film_bits = max((depth.film_maximum.bit_length() for depth in others), default=0)
    is_drawn_on = _LEAST_FILM_BITS <= film_bits <= bits - _FAR_BITS
    used = _largest_number(film_bits if is_drawn_on else bits) if others else None
    broken = {} if used is None else {each: used for each in largest if each and each not in declared}
    return Whites(declared=declared | broken, used=used)


@dataclass(frozen=True, kw_only=True)
class Whites:
    """What is white in the images of one data set."""

    declared: Mapping[tuple[int, ...], int]
    """By what files declare: what they mean by it, or, where their images do not keep to it, what is used."""
    used: int | None
    """Where they declare nothing: the largest number of as many bits as such images use; None where there are none."""

    @classmethod
    def from_facts(cls, facts: WhiteFacts) -> Self:
        """Read them back from what `facts` gave."""
        return cls(declared={tuple(each["declared"]): each["white"] for each in facts["declared"]}, used=facts["used"])

    def facts(self) -> WhiteFacts:
        """Write them down in JSON values."""
        declared = [DeclaredWhite(declared=list(says), white=white) for says, white in sorted(self.declared.items())]
        return WhiteFacts(declared=declared, used=self.used)

    def of(self, depth: Depth | None) -> int:
        """Give the number that is white in an image; a new one of a kind that the data set has none of stands for itself."""
        if depth is None:
            return WHITE_OF_8_BITS
        white = self.declared.get(depth.declared) if depth.declared else self.used
        return whites_of([depth]).of(depth) if white is None else white

    def to_8_bits(self, values: npt.NDArray[np.uint8 | np.float32], depth: Depth | None) -> npt.NDArray[np.uint8]:
        """Scale an image's numbers so that its white is 255; those of an image of 8 bits stay."""
        if depth is None:
            return values.astype(np.uint8, copy=False)
        scaled: npt.NDArray[np.float32] = np.clip(np.rint(values * (255 / self.of(depth))), 0, 255)
        return (255 - scaled if depth.is_inverted else scaled).astype(np.uint8)

    def is_far_below(self, depth: Depth | None) -> bool:
        """Whether an image uses little of its scale, as a film of 12 bits among films of 16 does."""
        return depth is not None and depth.film_maximum.bit_length() <= self.of(depth).bit_length() - _FAR_BITS


WHITES_OF_8_BITS = Whites(declared={}, used=None)
"""Of a data set whose images all have 8 bits."""


def count_whites(whites: Whites, depths: Sequence[Depth | None]) -> dict[int, int]:
    """Count images by the number that is white in them, in rising order."""
    return dict(sorted(Counter(whites.of(depth) for depth in depths).items()))


def white_of_depth(value: int) -> tuple[int, ...]:
    """Take a number as the declaration of a depth where it is the largest one of some bits, else as none.

    TIFF's MaxSampleValue is often no more than the brightest pixel of the one image: to scale by that would scale each by itself.
    """
    return (value,) if value > 0 and value == _largest_number(value.bit_length()) else ()


def _largest_number(num_bits: int) -> int:
    return (1 << max(1, num_bits)) - 1
