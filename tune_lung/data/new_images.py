"""Images that no run has seen, brought to the form in which a run's own were stored, by the very steps that stored those.

Shapes: N images, H rows, W columns.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from tune_lung.config import Protocol
from tune_lung.data.cache import num_workers
from tune_lung.data.decode import BadImageError, squash, squash_mask, without_pillow_warnings
from tune_lung.data.depth import Whites
from tune_lung.data.exclusion import NotReadError
from tune_lung.data.reading import GreyReader, memory_needed
from tune_lung.data.store import Pixels
from tune_lung.errors import InputError
from tune_lung.printable import in_one_line
from tune_lung.results.pixel_facts import PixelFacts
from tune_lung.threads import Threads


class ImageWithMask(NamedTuple):
    """The files of one image."""

    image: Path
    """The image."""
    mask: Path | None
    """Its lung mask; None where none is wanted."""


@dataclass(frozen=True, kw_only=True)
class StoredForm:
    """The form of a run's stored images."""

    image_size: int
    """Side of the squares in pixels."""
    protocol: Protocol
    """Its rule for masks."""
    whites: Whites
    """What is white in an image."""
    mask_whites: Whites
    """The same of masks."""

    @classmethod
    def from_facts(cls, facts: PixelFacts, *, image_size: int, protocol: Protocol) -> Self:
        """Read it from what a run says of its pixels."""
        whites, mask_whites = (Whites.from_facts(each) for each in (facts["whites"], facts["mask_whites"]))
        return cls(image_size=image_size, protocol=protocol, whites=whites, mask_whites=mask_whites)

    def read(self, files: Sequence[ImageWithMask], *, at_once: int) -> Iterator[Pixels]:
        """Decode files, so many at once, and give them in their order.

        Args:
            files: The images; all with masks, or none.
            at_once: Images of each part that is given.

        Yields:
            The next images.

        Raises:
            InputError: A file cannot be read, or used as an image; the text names it.
        """
        with without_pillow_warnings(), memory_needed(), Threads(num_workers()) as threads, GreyReader() as reader:
            for start in range(0, len(files), at_once):
                together = list(threads.map(partial(self._read_one, reader), files[start : start + at_once]))
                masks = [mask_HW for _, mask_HW in together if mask_HW is not None]
                yield Pixels(
                    pixels_NHW=np.stack([pixels_HW for pixels_HW, _ in together]), masks_NHW=np.stack(masks) if masks else None
                )

    def _read_one(self, reader: GreyReader, files: ImageWithMask) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]:
        with _naming("image", files.image), reader.read(files.image) as grey:
            width, height = grey.image.size
            pixels_HW = self.whites.to_8_bits(squash(grey.image, self.image_size), grey.depth)
        if files.mask is None:
            return pixels_HW, None
        with _naming("mask", files.mask), reader.read(files.mask, beside_bytes=width * height) as mask:
            values_HW = squash_mask(
                mask.image, image_width=width, image_height=height, size=self.image_size, protocol=self.protocol
            )
            return pixels_HW, self.mask_whites.to_8_bits(values_HW, mask.depth)


@contextmanager
def _naming(what: str, path: Path) -> Iterator[None]:
    """Name the file that cannot be read: it was given by its name, unlike those of a data folder."""
    try:
        yield
    except BadImageError as error:
        reason = error.reason.value.replace("_", " ")
        raise InputError(f"The {what} '{in_one_line(path)}' cannot be used ({reason}). Mend it, or leave it out.") from error
    except NotReadError as error:
        raise InputError(f"The {what} '{in_one_line(path)}' cannot be read: {error.cause.rstrip('.')}.") from error
