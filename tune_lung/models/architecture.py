"""How a family's networks are built: one interface, so that nothing else asks which family a network is of."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import ClassVar, Generic, TypeVar

from torch import nn

from tune_lung.families.family import ModelConfig

_C = TypeVar("_C", bound=ModelConfig)


class Architecture(ABC, Generic[_C]):
    """Builds the networks of a family: a row of named stages, in the order in which an image passes them, and a head."""

    stem: ClassVar[tuple[str, ...]] = ()
    """Names of the stages before the first block."""
    blocks: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Names of the stages of each block that can be frozen, from the first on."""

    @abstractmethod
    def stages(self, config: _C) -> OrderedDict[str, nn.Module]:
        """Build the stages at a random start, drawn from torch's global generator.

        Args:
            config: The model.

        Returns:
            The stages by name, in order.
        """

    @abstractmethod
    def head(self, config: _C, *, num_classes: int, image_size: int) -> OrderedDict[str, nn.Module]:
        """Build what turns the last stage's map into logits, at a random start.

        Args:
            config: The model.
            num_classes: Number of logits, at least 2.
            image_size: Side of the square images in pixels.

        Returns:
            The layers by name, in order.

        Raises:
            ValueError: The images are too small for the model.
        """

    def prefix_stages(self, frozen_blocks: int) -> tuple[str, ...]:
        """Name the stages up to the end of so many blocks, the stem included; none for 0 blocks.

        Raises:
            ValueError: There are fewer blocks.
        """
        if not 0 <= frozen_blocks <= len(self.blocks):
            raise ValueError(f"frozen_blocks must be 0 to {len(self.blocks)}, not {frozen_blocks}.")
        if not frozen_blocks:
            return ()
        return (*self.stem, *(name for block in self.blocks[:frozen_blocks] for name in block))
