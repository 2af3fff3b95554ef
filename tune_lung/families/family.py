"""What a kind of model is, said as data: nothing here builds or trains one, or knows torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeAlias, get_origin, get_type_hints

PointValue: TypeAlias = str | int | float | tuple[int, ...]
"""A value that one field of a trial can take."""


LearnerName: TypeAlias = Literal["network", "classical"]
"""What trains a family's models: `network` by gradient descent, in epochs; `classical` in one fit on features."""


class ModelConfig(Protocol):
    """One model's own part of a trial: a plain value that cannot be built in a wrong state."""

    def __hash__(self) -> int:
        """Hash it: what is counted of a network is remembered by it."""

    @property
    def model(self) -> str:
        """The model's name in the ledger."""

    @property
    def frozen_blocks(self) -> int:
        """How many of its first blocks stay as loaded; 0 where nothing can be frozen."""

    @property
    def starts_from(self) -> str | None:
        """The network whose weights, trained by others, it may start from; None where it starts from nothing."""

    @classmethod
    def from_fields(cls, model: str, own: Mapping[str, PointValue]) -> Self:
        """Build it from fields of its family, by name, each of the right type; defaults stand for the others.

        Raises:
            InputError: Values are out of range or do not go together.
        """

    def own_fields(self) -> dict[str, PointValue]:
        """Give what `from_fields` read, by name."""

    def with_nothing_frozen(self) -> Self:
        """Give the same model, trained from its first layer on."""

    def check_image_size(self, image_size: int) -> None:
        """Refuse images that are too small for its layers; sides in pixels.

        Raises:
            InputError: They are; the text says what the least is.
        """


@dataclass(frozen=True, kw_only=True)
class Look:
    """How figures show a model."""

    label: str
    """Its name for readers."""
    colour: str
    """As `#rrggbb`; no two models share one, and colour-blind readers can tell them apart."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Models that have the same fields."""

    name: str
    """One word."""
    models: Mapping[str, Look]
    """Its models, by the names that spaces and the ledger give them."""
    config: type[ModelConfig]
    """What holds the fields of one."""
    field_types: Mapping[str, type]
    """Plain type (str, int, float or tuple) of each of its own fields of a point."""
    in_channels: Literal[1, 3]
    """Channels of the images that it reads: grey, or grey three times over for what was trained on colour."""
    num_blocks: int
    """Blocks that can be frozen, from the first on; 0 for none."""
    learner: LearnerName = "network"
    """What trains its models."""
    takes_weights: bool
    """Whether it may start from weights that others have trained, on images normalised as ImageNet's are."""
    is_counted: bool = True
    """Whether parameters and multiply-adds are known before the images are; of what grows with them they never are."""

    @property
    def has_epochs(self) -> bool:
        """Whether its models are trained in epochs, or once and for all."""
        return self.learner == "network"


def plain_types(owner: type, *, without: tuple[str, ...] = ()) -> dict[str, type]:
    """Name the plain type (str, int, float or tuple) of each field of a dataclass, but for some."""
    return {name: _plain_type(hint) for name, hint in get_type_hints(owner).items() if name not in without}


def _plain_type(annotation: Any) -> type:
    origin = get_origin(annotation)
    if origin is Literal:
        return str
    return annotation if origin is None else origin  # type: ignore[no-any-return]
