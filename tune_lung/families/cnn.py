"""The handcrafted CNN of Lykos (2022), and the deeper, wider or narrower ones derived from it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, Self, TypeAlias

from tune_lung.errors import InputError, require, require_choice
from tune_lung.families.family import Family, Look, PointValue, plain_types

Padding: TypeAlias = Literal["valid", "same"]

_MOST_STAGES = 64
_MOST_CHANNELS = 2**18
_LARGEST_KERNEL = 1023


@dataclass(frozen=True, kw_only=True)
class CnnShape:
    """Depth and width of a handcrafted CNN, from which its layers follow (padding `same`, global average pool)."""

    depth: int = 5
    """Number of stages, 2 to 7; each halves the image's side."""
    base_channels: int = 32
    """Channels of the first stage, 4 to 256."""
    channel_growth: float = 2.0
    """Factor from one stage's channels to the next one's, 1 to 3."""
    first_kernel_size: int = 5
    """Side of the first two stages' kernels in pixels: 3, 5, 7, 9 or 11; the others have 3."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(2 <= self.depth <= 7, f"depth must be 2 to 7, not {self.depth}.")
        require(4 <= self.base_channels <= 256, f"base_channels must be 4 to 256, not {self.base_channels}.")
        require(1 <= self.channel_growth <= 3, f"channel_growth must be 1 to 3, not {self.channel_growth}.")
        require(
            self.first_kernel_size in (3, 5, 7, 9, 11),
            f"first_kernel_size must be 3, 5, 7, 9 or 11, not {self.first_kernel_size}.",
        )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage, rounded to a whole number."""
        return tuple(round(self.base_channels * self.channel_growth**stage) for stage in range(self.depth))

    @property
    def kernel_sizes(self) -> tuple[int, ...]:
        """Kernel side of each stage in pixels."""
        return tuple(self.first_kernel_size if stage < 2 else 3 for stage in range(self.depth))


@dataclass(frozen=True, kw_only=True)
class CnnConfig:
    """The handcrafted CNN; the defaults are Lykos (2022)'s network."""

    channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Output channels of each stage."""
    kernel_sizes: tuple[int, ...] = (5, 5, 3, 3, 3)
    """Odd side of each stage's square kernel, in pixels."""
    padding: Padding = "valid"
    """`valid`: none, and the last stage's map is flattened; `same`: the map keeps its side and is averaged at the end."""
    shape: CnnShape | None = None
    """Depth and width that the layers were derived from; None where they were given explicitly."""

    def __post_init__(self) -> None:
        """Refuse layers that do not fit together."""
        require_choice("padding", self.padding, Padding)
        require(
            1 <= len(self.channels) == len(self.kernel_sizes),
            f"channels and kernel_sizes must have one value per stage, not {len(self.channels)} and {len(self.kernel_sizes)}.",
        )
        require(len(self.channels) <= _MOST_STAGES, f"channels must be at most {_MOST_STAGES}, one for each stage.")
        require(all(channels >= 1 for channels in self.channels), f"channels must be at least 1, not {self.channels}.")
        require(max(self.channels) <= _MOST_CHANNELS, f"channels must be at most {_MOST_CHANNELS}, not {self.channels}.")
        require(
            all(1 <= size <= _LARGEST_KERNEL and size % 2 == 1 for size in self.kernel_sizes),
            f"kernel_sizes must be odd and positive, at most {_LARGEST_KERNEL}, not {self.kernel_sizes}.",
        )
        layers = (self.channels, self.kernel_sizes, self.padding)
        require(
            self.shape is None or layers == (self.shape.channels, self.shape.kernel_sizes, "same"),
            "channels, kernel_sizes and padding must be those that follow from shape.",
        )

    @property
    def model(self) -> str:
        """The network's name in the ledger."""
        return "cnn"

    def output_size(self, image_size: int) -> int:
        """Compute the side of the last stage's map.

        Args:
            image_size: Side of the square input in pixels.

        Returns:
            The side in pixels; 0 or less where the image is too small for the layers.
        """
        size = image_size
        for kernel_size in self.kernel_sizes:
            size = (size - kernel_size + 1 if self.padding == "valid" else size) // 2
        return size

    def smallest_image_size(self) -> int:
        """Compute the smallest image side, in pixels, that leaves the last stage a map of 1 pixel."""
        size = 1
        for kernel_size in reversed(self.kernel_sizes):
            size = 2 * size + (kernel_size - 1 if self.padding == "valid" else 0)
        return size

    @property
    def frozen_blocks(self) -> int:
        """Nothing of it is frozen: it has no start that is worth keeping."""
        return 0

    @property
    def starts_from(self) -> None:
        """Nobody has trained it before."""
        return

    @classmethod
    def from_fields(cls, model: str, own: Mapping[str, PointValue]) -> Self:  # noqa: ARG003 - its family has one model
        """Build it from layers, from the depth and width that they follow from, or from both where they agree."""
        explicit = {name: value for name, value in own.items() if name not in _SHAPE_TYPES}
        derived = {name: value for name, value in own.items() if name in _SHAPE_TYPES}
        if not derived:
            return cls(**explicit)  # type: ignore[arg-type]
        shape = CnnShape(**derived)  # type: ignore[arg-type]
        built = cls(channels=shape.channels, kernel_sizes=shape.kernel_sizes, padding="same", shape=shape)
        others = [name for name, value in explicit.items() if value != getattr(built, name)]
        require(not others, f"{', '.join(others)} cannot stand beside {', '.join(derived)}: layers are given or derived.")
        return built

    def own_fields(self) -> dict[str, PointValue]:
        """Name its layers, and the depth and width where they follow from those."""
        layers: dict[str, PointValue] = {"channels": self.channels, "kernel_sizes": self.kernel_sizes, "padding": self.padding}
        return layers if self.shape is None else layers | asdict(self.shape)

    def with_nothing_frozen(self) -> Self:
        """Give itself."""
        return self

    def check_image_size(self, image_size: int) -> None:
        """Refuse images that leave the last stage no map; see `ModelConfig`."""
        if self.output_size(image_size) < 1:
            hint = "" if self.padding == "same" else ", or --set padding=same"
            raise InputError(
                f"--image-size {image_size} is too small for this CNN: its {len(self.channels)} stages need at least"
                f" {self.smallest_image_size()} pixels. Raise --image-size{hint}."
            )


_SHAPE_TYPES = plain_types(CnnShape)

CNN = Family(
    name="cnn",
    models={"cnn": Look(label="CNN", colour="#5a5a5a")},
    config=CnnConfig,
    field_types=plain_types(CnnConfig, without=("shape",)) | _SHAPE_TYPES,
    in_channels=1,
    num_blocks=0,
    takes_weights=False,
)
