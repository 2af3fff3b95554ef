"""TrialConfig: everything that defines one trial, and RunConfig: what all trials of a run share.

Both are plain values that cannot be built in a wrong state. A *point* is the flat form of a TrialConfig, one value
for each field by name, as search spaces, samplers and the ledger's `trials` table hold it.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, TypeAlias, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from tune_lung.errors import InputError, did_you_mean, shortened
from tune_lung.shapes import WrongShapeError, built_from_json

PointValue: TypeAlias = str | int | float | tuple[int, ...]
"""A value that one field of a trial can take."""
Point: TypeAlias = Mapping[str, PointValue]
"""One choice for every field that differs from its default, by field name."""

Protocol: TypeAlias = Literal["strict", "published"]
ResNetName: TypeAlias = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
WeightsKind: TypeAlias = Literal["imagenet", "random", "file"]
Padding: TypeAlias = Literal["valid", "same"]
Optimizer: TypeAlias = Literal["adam", "adamw", "sgd"]
LearningRateSchedule: TypeAlias = Literal["constant", "cosine"]
BatchSampling: TypeAlias = Literal["balanced", "shuffled"]
InputPart: TypeAlias = Literal["full", "lungs", "background"]
Augmentation: TypeAlias = Literal["none", "light", "strong"]
Precision: TypeAlias = Literal["fp32", "bf16"]
DeviceKind: TypeAlias = Literal["cpu", "cuda"]
SelectBy: TypeAlias = Literal["val_macro_recall", "val_micro_recall", "val_loss"]
Split: TypeAlias = Literal["train", "validation", "test"]

MODELS: tuple[str, ...] = ("cnn", *get_args(ResNetName))
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
MOST_EPOCHS = 1_000_000
"""Epochs that a trial may ask for."""
_LARGEST_COUNT = 2**31 - 1  # what a column of the tables can hold
_MOST_STAGES = 64
_MOST_CHANNELS = 2**18
_LARGEST_KERNEL = 1023
BUDGET_FIELDS = ("max_epochs", "patience")
"""Fields that say how long a trial may train, not what is trained: they are no part of a point's identity."""


DEFAULT_CPUS_PER_TRIAL = 1.0


def torch_threads(cpus: float) -> int:
    """Count the threads that torch computes with in a trial of so many CPUs; in which order it adds numbers hangs on them."""
    return max(1, math.floor(cpus))


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise InputError(text)


def _require_choice(name: str, value: str, alias: Any) -> None:
    _require(value in get_args(alias), f"{name} cannot be {shortened(repr(value))}. {did_you_mean(str(value), get_args(alias))}")


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
        _require(2 <= self.depth <= 7, f"depth must be 2 to 7, not {self.depth}.")
        _require(4 <= self.base_channels <= 256, f"base_channels must be 4 to 256, not {self.base_channels}.")
        _require(1 <= self.channel_growth <= 3, f"channel_growth must be 1 to 3, not {self.channel_growth}.")
        _require(
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
        _require_choice("padding", self.padding, Padding)
        _require(
            1 <= len(self.channels) == len(self.kernel_sizes),
            f"channels and kernel_sizes must have one value per stage, not {len(self.channels)} and {len(self.kernel_sizes)}.",
        )
        _require(len(self.channels) <= _MOST_STAGES, f"channels must be at most {_MOST_STAGES}, one for each stage.")
        _require(all(channels >= 1 for channels in self.channels), f"channels must be at least 1, not {self.channels}.")
        _require(max(self.channels) <= _MOST_CHANNELS, f"channels must be at most {_MOST_CHANNELS}, not {self.channels}.")
        _require(
            all(1 <= size <= _LARGEST_KERNEL and size % 2 == 1 for size in self.kernel_sizes),
            f"kernel_sizes must be odd and positive, at most {_LARGEST_KERNEL}, not {self.kernel_sizes}.",
        )
        layers = (self.channels, self.kernel_sizes, self.padding)
        _require(
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


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A torchvision ResNet with a new head, the first blocks frozen."""

    model: ResNetName = "resnet18"
    """Which ResNet."""
    frozen_blocks: int = 0
    """How many residual blocks (layer1, layer2, ...) stay as loaded, from the first on: 0 to 4."""
    weights: WeightsKind = "imagenet"
    """Where the backbone starts: torchvision's ImageNet weights, a random start, or the user's file."""

    def __post_init__(self) -> None:
        """Refuse an unknown network or depth."""
        _require_choice("model", self.model, ResNetName)
        _require_choice("weights", self.weights, WeightsKind)
        _require(0 <= self.frozen_blocks <= 4, f"frozen_blocks must be 0 to 4, not {self.frozen_blocks}.")


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Everything that defines one trial; the defaults are Lykos (2022)'s values."""

    network: CnnConfig | ResNetConfig = field(default_factory=CnnConfig)
    """What is trained."""
    batch_size: int = 128
    """Images of one optimizer step, at least 2 (batch norm)."""
    learning_rate: float = 5e-4
    """Step size of the optimizer, above 0."""
    optimizer: Optimizer = "adam"
    """Update rule; `sgd` has momentum 0.9."""
    weight_decay: float = 0.0
    """L2 penalty (adam, sgd) or decoupled decay (adamw), at least 0."""
    learning_rate_schedule: LearningRateSchedule = "constant"
    """`cosine` falls to 0 over max_epochs."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes, 0 to under 1."""
    batch_sampling: BatchSampling = "balanced"
    """`balanced` draws every class equally often, with replacement; `shuffled` takes each image once an epoch."""
    input: InputPart = "full"
    """Which pixels the network sees: all, those inside the lung mask, or those outside it."""
    augmentation: Augmentation = "none"
    """Random changes of the training images: none; small shifts and flips; those, turns and contrast."""
    max_epochs: int = 100
    """Epochs at most, at least 1."""
    patience: int = 20
    """Epochs without a better selection score after which the trial ends, at least 1."""
    precision: Precision = "fp32"
    """Number format of the network's arithmetic."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _require(self.batch_size >= 2, f"batch_size must be at least 2, not {self.batch_size}.")
        _require(0 < self.learning_rate <= 10, f"learning_rate must be above 0 and at most 10, not {self.learning_rate}.")
        _require(0 <= self.weight_decay <= 10, f"weight_decay must be 0 to 10, not {self.weight_decay}.")
        _require(0 <= self.label_smoothing < 1, f"label_smoothing must be 0 to under 1, not {self.label_smoothing}.")
        _require(self.max_epochs >= 1, f"max_epochs must be at least 1, not {self.max_epochs}.")
        _require(self.max_epochs <= MOST_EPOCHS, f"max_epochs must be at most {MOST_EPOCHS}, not {self.max_epochs}.")
        _require(self.patience >= 1, f"patience must be at least 1, not {self.patience}.")
        for name, alias in _CHOICE_FIELDS.items():
            _require_choice(name, getattr(self, name), alias)

    @classmethod
    def from_point(cls, point: Point) -> Self:
        """Build a trial from the flat form, with defaults for the fields it does not name.

        Args:
            point: Values by field name; `model` decides which network fields are allowed.

        Returns:
            The trial.

        Raises:
            InputError: A field is unknown, does not belong to the model, has the wrong type or is out of range.
        """
        values = {name: checked_value(name, value) for name, value in point.items()}
        model = str(values.pop("model", "cnn"))
        _require(model in MODELS, f"model cannot be {model!r}. {did_you_mean(model, MODELS)}")
        foreign = RESNET_FIELDS if model == "cnn" else CNN_FIELDS
        for name in values:
            _require(name not in foreign, f"{name} does not apply to {model}.")
        own = {name: values.pop(name) for name in list(values) if name in CNN_FIELDS or name in RESNET_FIELDS}
        network = _cnn_from_fields(own) if model == "cnn" else ResNetConfig(model=model, **own)  # type: ignore[arg-type]
        return cls(network=network, **values)  # type: ignore[arg-type]

    def columns(self) -> dict[str, PointValue | None]:
        """Flatten the trial into the columns of the ledger's `trials` table.

        Returns:
            Every field by name, in the table's order; None where it does not apply to the model.
        """
        row: dict[str, PointValue | None] = dict.fromkeys(FIELD_TYPES)
        row["model"] = self.network.model
        if isinstance(self.network, CnnConfig):
            row |= {name: getattr(self.network, name) for name in ("channels", "kernel_sizes", "padding")}
            if self.network.shape is not None:
                row |= {f.name: getattr(self.network.shape, f.name) for f in fields(CnnShape)}
        else:
            row |= {"frozen_blocks": self.network.frozen_blocks, "weights": self.network.weights}
        return row | {f.name: getattr(self, f.name) for f in fields(self) if f.name != "network"}

    def with_fields(self, **changes: Any) -> Self:
        """Return the same trial with some of its non-network fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every trial of a run shares."""

    protocol: Protocol = "strict"
    """The rules of loss, freezing, normalisation and selection: the paper's program's, or sound ones."""
    image_size: int = 128
    """Side of the square images in pixels, 16 to 1024."""
    select_by: SelectBy = "val_macro_recall"
    """Validation column that the selection score is made of."""
    seed: int = 0
    """Root of every derived seed, 0 to 2**63 - 1."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _require_choice("protocol", self.protocol, Protocol)
        _require(
            not self.select_by.startswith("test_"),
            f"select_by cannot be {self.select_by!r}: the test images stay sealed until the search has ended.",
        )
        _require_choice("select_by", self.select_by, SelectBy)
        _require(16 <= self.image_size <= 1024, f"image_size must be 16 to 1024 pixels, not {self.image_size}.")
        _require(0 <= self.seed < 2**63, f"seed must be 0 to 2**63 - 1, not {self.seed}.")

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read what all trials share back from a manifest.

        Raises:
            InputError: It holds something that this version does not know.
        """
        try:
            return built_from_json(TypeAdapter(cls), content)
        except WrongShapeError as error:
            raise InputError(str(error)) from error

    def check_fits(self, trial: TrialConfig) -> None:
        """Refuse a network whose layers need a larger image.

        Raises:
            InputError: The images are too small for the network.
        """
        network = trial.network
        if isinstance(network, CnnConfig) and network.output_size(self.image_size) < 1:
            hint = "" if network.padding == "same" else ", or --set padding=same"
            raise InputError(
                f"--image-size {self.image_size} is too small for this CNN: its {len(network.channels)} stages need at least"
                f" {network.smallest_image_size()} pixels. Raise --image-size{hint}."
            )


def default_select_by(protocol: Protocol) -> SelectBy:
    """Name the column that a protocol selects by: the paper's program kept the lowest validation loss."""
    return "val_loss" if protocol == "published" else "val_macro_recall"


def point_id(trial: TrialConfig, run: RunConfig, *, weights_sha256: str | None, data_fingerprint: str) -> str:
    """Hash what is trained: same id, same training, whatever its budget.

    Args:
        trial: The trial.
        run: Its run; the root seed is no part of the point.
        weights_sha256: Digest of the backbone's weights; None for a random start or the CNN.
        data_fingerprint: Digest of pixels, labels and split.

    Returns:
        16 hexadecimal digits.
    """
    content = {name: value for name, value in trial.columns().items() if name not in BUDGET_FIELDS}
    if trial.learning_rate_schedule != "constant":
        content["max_epochs"] = trial.max_epochs  # the schedule's length is part of what is trained
    content |= {
        "protocol": run.protocol,
        "image_size": run.image_size,
        "weights_sha256": weights_sha256,
        "data_fingerprint": data_fingerprint,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


_CHOICE_FIELDS: dict[str, Any] = {
    "optimizer": Optimizer,
    "learning_rate_schedule": LearningRateSchedule,
    "batch_sampling": BatchSampling,
    "input": InputPart,
    "augmentation": Augmentation,
    "precision": Precision,
}
_CNN_SHAPE_FIELDS = tuple(f.name for f in fields(CnnShape))
CNN_FIELDS = ("channels", "kernel_sizes", "padding", *_CNN_SHAPE_FIELDS)
RESNET_FIELDS = ("frozen_blocks", "weights")


def _cnn_from_fields(own: dict[str, PointValue]) -> CnnConfig:
    explicit = {name: value for name, value in own.items() if name not in _CNN_SHAPE_FIELDS}
    derived = {name: value for name, value in own.items() if name in _CNN_SHAPE_FIELDS}
    if not derived:
        return CnnConfig(**explicit)  # type: ignore[arg-type]
    _require(not explicit, f"{', '.join(explicit)} cannot stand beside {', '.join(derived)}: layers are given or derived.")
    shape = CnnShape(**derived)  # type: ignore[arg-type]
    return CnnConfig(channels=shape.channels, kernel_sizes=shape.kernel_sizes, padding="same", shape=shape)


def _plain_type(annotation: Any) -> type:
    origin = get_origin(annotation)
    if origin is Literal:
        return str
    return annotation if origin is None else origin  # type: ignore[no-any-return]


def _field_types() -> dict[str, type]:
    types: dict[str, type] = {"model": str}
    for owner in (CnnConfig, CnnShape, ResNetConfig, TrialConfig):
        hints = get_type_hints(owner)
        types |= {f.name: _plain_type(hints[f.name]) for f in fields(owner) if f.name not in ("shape", "network", "model")}
    return types


FIELD_TYPES: dict[str, type] = _field_types()
"""Plain type (str, int, float or tuple) of every field of a point, in the order of the `trials` table."""


def checked_value(name: str, value: object) -> PointValue:
    """Check one field's name and type.

    Args:
        name: The field.
        value: A value as a space file, JSON or Parquet gives it; a list stands for a tuple, a whole number for a float.

    Returns:
        The value in the field's own type.

    Raises:
        InputError: There is no such field, or the value has another type.
    """
    if name not in FIELD_TYPES:
        raise InputError(f"There is no field '{shortened(name)}'. {did_you_mean(name, FIELD_TYPES)}")
    kind = FIELD_TYPES[name]
    if type(value) is int and abs(value) > _LARGEST_COUNT:
        raise InputError(f"{name} cannot be a whole number of more than 31 bits.")
    if kind is tuple and isinstance(value, list | tuple) and all(_is_count(item) for item in value):
        return tuple(value)
    if kind is float and type(value) in (int, float):
        return float(value)  # type: ignore[arg-type]
    if kind is not tuple and type(value) is kind:
        return value  # type: ignore[return-value]
    expected = {str: "a text", int: "a whole number", float: "a number", tuple: "a list of whole numbers"}[kind]
    raise InputError(f"{name} must be {expected}, not {shortened(repr(value))}.")


def _is_count(value: object) -> bool:
    return type(value) is int and abs(value) <= _LARGEST_COUNT


def value_from_text(name: str, text: str) -> PointValue:
    """Read one field's value from the command line, as in `--set batch_size=32` or `--set channels=16,32,64`.

    Raises:
        InputError: There is no such field, or the text does not read as its type.
    """
    kind = FIELD_TYPES.get(name, str)
    try:
        if kind is tuple:
            return checked_value(name, [int(part) for part in text.split(",")])
        return checked_value(name, kind(text))
    except InputError:
        raise
    except ValueError:
        return checked_value(name, text)
