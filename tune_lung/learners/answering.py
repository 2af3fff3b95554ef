"""What every trained thing that answers for images has in common, whatever it is: tests and predictions ask no more.

Shapes: N images, K classes.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from tune_lung.data.store import Pixels

BATCH_SIZE = 128
"""Images of one pass."""


class Answering(Protocol):
    """Gives each class's probability for images in the form in which a run's were stored."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of its answers."""

    def answer(self, images: Pixels) -> npt.NDArray[np.float64]:
        """Answer for images.

        Args:
            images: Their pixels, and their masks where it sees a part of an image alone.

        Returns:
            probabilities_NK, each row of which sums to 1.
        """
