"""TrialConfig: everything that defines one trial, and RunConfig: what all trials of a run share.

Both are plain values that cannot be built in a wrong state. A *point* is the flat form of a TrialConfig, one value
for each field by name, as search spaces, samplers and the ledger's `trials` table hold it.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, TypeAlias, get_args

from pydantic import TypeAdapter

from tune_lung.errors import InputError, did_you_mean, require, require_choice, shortened
from tune_lung.families.family import Family, ModelConfig, PointValue, plain_types
from tune_lung.families.networks import FIRST_FIELDS
from tune_lung.families.registry import DEFAULT_MODEL, FAMILY_FIELDS, family_of
from tune_lung.metrics import is_on_validation, names_to_choose
from tune_lung.shapes import WrongShapeError, built_from_json

Point: TypeAlias = Mapping[str, PointValue]
"""One choice for every field that differs from its default, by field name."""

Protocol: TypeAlias = Literal["strict", "published"]
Optimizer: TypeAlias = Literal["adam", "adamw", "sgd"]
LearningRateSchedule: TypeAlias = Literal["constant", "cosine"]
BatchSampling: TypeAlias = Literal["balanced", "shuffled"]
InputPart: TypeAlias = Literal["full", "lungs", "background"]
Augmentation: TypeAlias = Literal["none", "light", "strong"]
Precision: TypeAlias = Literal["fp32", "bf16"]
DeviceKind: TypeAlias = Literal["cpu", "cuda"]
Split: TypeAlias = Literal["train", "validation", "test"]

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
MOST_EPOCHS = 1_000_000
"""Epochs that a trial may ask for."""
_LARGEST_COUNT = 2**31 - 1  # what a column of the tables can hold
EPOCH_FIELDS = (
    "batch_size",
    "learning_rate",
    "optimizer",
    "weight_decay",
    "learning_rate_schedule",
    "label_smoothing",
    "batch_sampling",
    "augmentation",
    "max_epochs",
    "patience",
)
"""Fields of training in epochs; what is trained once and for all has none of them."""
BUDGET_FIELDS = ("max_epochs", "patience")
"""Fields that say how long a trial may train, not what is trained: they are no part of a point's identity."""


DEFAULT_CPUS_PER_TRIAL = 1.0


def torch_threads(cpus: float) -> int:
    """Count the threads that torch computes with in a trial of so many CPUs; in which order it adds numbers hangs on them."""
    return max(1, math.floor(cpus))


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Everything that defines one trial; the defaults are Lykos (2022)'s values."""

    network: ModelConfig = field(default_factory=lambda: family_of(DEFAULT_MODEL).config.from_fields(DEFAULT_MODEL, {}))
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
        require(self.batch_size >= 2, f"batch_size must be at least 2, not {self.batch_size}.")
        require(0 < self.learning_rate <= 10, f"learning_rate must be above 0 and at most 10, not {self.learning_rate}.")
        require(0 <= self.weight_decay <= 10, f"weight_decay must be 0 to 10, not {self.weight_decay}.")
        require(0 <= self.label_smoothing < 1, f"label_smoothing must be 0 to under 1, not {self.label_smoothing}.")
        require(self.max_epochs >= 1, f"max_epochs must be at least 1, not {self.max_epochs}.")
        require(self.max_epochs <= MOST_EPOCHS, f"max_epochs must be at most {MOST_EPOCHS}, not {self.max_epochs}.")
        require(self.patience >= 1, f"patience must be at least 1, not {self.patience}.")
        for name, alias in _CHOICE_FIELDS.items():
            require_choice(name, getattr(self, name), alias)

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
        model = model_of(values)
        family = family_of(model)
        for name in values:
            require(applies_to(name, family), f"{name} does not apply to {model}.")
        own = {name: value for name, value in values.items() if name in family.field_types}
        shared = {name: value for name, value in values.items() if name not in own and name != "model"}
        if not family.has_epochs:
            shared |= dict.fromkeys(BUDGET_FIELDS, 1)
        return cls(network=family.config.from_fields(model, own), **shared)  # type: ignore[arg-type]

    def columns(self) -> dict[str, PointValue | None]:
        """Flatten the trial into the columns of the ledger's `trials` table.

        Returns:
            Every field by name, in the table's order; None where it does not apply to the model.
        """
        row: dict[str, PointValue | None] = dict.fromkeys(FIELD_TYPES)
        row |= {"model": self.network.model, **self.network.own_fields()}
        family = family_of(self.network.model)
        return row | {f.name: getattr(self, f.name) for f in fields(self) if f.name != "network" and applies_to(f.name, family)}

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
    select_by: str = "val_macro_recall"
    """Column on validation that the selection score is made of, such as `val_recall:COVID`."""
    seed: int = 0
    """Root of every derived seed, 0 to 2**63 - 1."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require_choice("protocol", self.protocol, Protocol)
        require(
            not self.select_by.startswith("test_"),
            f"select_by cannot be {shortened(repr(self.select_by))}: the test images stay sealed until the search has ended.",
        )
        require(
            is_on_validation(self.select_by),
            f"select_by cannot be {shortened(repr(self.select_by))}. {did_you_mean(self.select_by, names_to_choose())}",
        )
        require(16 <= self.image_size <= 1024, f"image_size must be 16 to 1024 pixels, not {self.image_size}.")
        require(0 <= self.seed < 2**63, f"seed must be 0 to 2**63 - 1, not {self.seed}.")

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
        """Refuse a model that needs larger images, and one that the paper's program has no rules for.

        Raises:
            InputError: The images are too small for it, or the protocol is the program's.
        """
        model = trial.network.model
        require(
            self.protocol == "strict" or family_of(model).has_epochs,
            f"protocol {self.protocol} has no rules for {model}, which the paper's program had not. Use --protocol strict.",
        )
        trial.network.check_image_size(self.image_size)


def model_of(point: Point) -> str:
    """Name a point's model; where it names none, the default."""
    return str(point.get("model", DEFAULT_MODEL))


def applies_to(name: str, family: Family) -> bool:
    """Whether a field of a point means something for a family's models: it is theirs, every trial's, or of training in epochs."""
    if name in FAMILY_FIELDS:
        return name in family.field_types
    return family.has_epochs or name not in EPOCH_FIELDS


def default_select_by(protocol: Protocol) -> str:
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
    columns = trial.columns()
    content = {name: columns[name] for name in columns if name not in BUDGET_FIELDS and _is_hashed(name, columns[name])}
    if trial.learning_rate_schedule != "constant":
        content["max_epochs"] = trial.max_epochs  # the schedule's length is part of what is trained
    content |= {
        "protocol": run.protocol,
        "image_size": run.image_size,
        "weights_sha256": weights_sha256,
        "data_fingerprint": data_fingerprint,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _is_hashed(name: str, value: PointValue | None) -> bool:
    """Whether a field is part of a point's identity: fields that came later are none of points that lack them."""
    return value is not None or name in FIRST_FIELDS


_CHOICE_FIELDS: dict[str, Any] = {
    "optimizer": Optimizer,
    "learning_rate_schedule": LearningRateSchedule,
    "batch_sampling": BatchSampling,
    "input": InputPart,
    "augmentation": Augmentation,
    "precision": Precision,
}
FIELD_TYPES: dict[str, type] = {"model": str} | FAMILY_FIELDS | plain_types(TrialConfig, without=("network",))
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
