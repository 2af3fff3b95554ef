"""What may be tried: axes, arms and search spaces, as data.

A space is counted, printed, hashed and checked before anything is trained; it knows neither Optuna nor Ray.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self, TypeAlias, get_args

from tune_lung.config import PROTOCOLS, Point, Precision, Protocol, RunConfig, TrialConfig, applies_to, checked_value, model_of
from tune_lung.errors import InputError, did_you_mean, shortened
from tune_lung.families.family import PointValue
from tune_lung.families.registry import DEFAULT_MODEL, MODELS, family_of

MOST_CELLS = 10_000
"""Cells of the largest space."""
_MOST_PROBES = 50_000
_MOST_FIRST_VALUES = 100_000


@dataclass(frozen=True)
class Grid:
    """An axis whose values are all tried."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        """Take the values in the order they are tried.

        Raises:
            InputError: There is no value, or one stands twice.
        """
        if not values:
            raise InputError("Grid() is empty: give it at least one value.")
        if len({json.dumps(value) for value in values}) < len(values):
            raise InputError(f"Grid{shortened(str(values))} names a value twice.")
        object.__setattr__(self, "values", values)


@dataclass(frozen=True)
class Choice:
    """An axis of which a value is sampled, all equal at first."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        """Take the values.

        Raises:
            InputError: There are fewer than two, or one stands twice.
        """
        if len(values) < 2:
            raise InputError(f"Choice{values} leaves nothing to choose: give it two values or more, or write the value itself.")
        if len({json.dumps(value) for value in values}) < len(values):
            raise InputError(f"Choice{shortened(str(values))} names a value twice.")
        object.__setattr__(self, "values", values)

    def ends(self) -> tuple[Any, ...]:
        """List what must be checked: every value."""
        return self.values

    def all_values(self) -> tuple[Any, ...]:
        """List every value."""
        return self.values

    def contains(self, value: object) -> bool:
        """Whether a value may be sampled."""
        return json.dumps(value) in {json.dumps(own) for own in self.values}


@dataclass(frozen=True)
class IntRange:
    """An axis of whole numbers, bounds inclusive."""

    low: int
    """Smallest."""
    high: int
    """Largest."""
    step: int = 1
    """Distance of neighbours; `high` must be reached by it."""

    def __post_init__(self) -> None:
        """Refuse a range without room.

        Raises:
            InputError: The numbers are not whole, not rising, or the step misses the upper bound.
        """
        if not all(type(number) is int for number in (self.low, self.high, self.step)):
            raise InputError(f"{self} must have whole numbers.")
        if self.low >= self.high or self.step < 1 or (self.high - self.low) % self.step:
            raise InputError(f"{self} must rise from low to high in whole steps.")

    def ends(self) -> tuple[int, int]:
        """List what must be checked: both bounds."""
        return self.low, self.high

    def all_values(self) -> Sequence[int]:
        """List every value."""
        return range(self.low, self.high + 1, self.step)

    def contains(self, value: object) -> bool:
        """Whether a value may be sampled."""
        return type(value) is int and self.low <= value <= self.high and (value - self.low) % self.step == 0


@dataclass(frozen=True)
class Uniform:
    """An axis of real numbers, bounds inclusive, each part as likely as another of its length."""

    low: float
    """Smallest."""
    high: float
    """Largest."""

    def __post_init__(self) -> None:
        """Refuse a range without room.

        Raises:
            InputError: The bounds are not finite or not rising.
        """
        if not all(type(bound) in (int, float) and math.isfinite(bound) for bound in (self.low, self.high)):
            raise InputError(f"{self} must have finite numbers.")
        if self.low >= self.high:
            raise InputError(f"{self} must rise from low to high.")

    def ends(self) -> tuple[float, float]:
        """List what must be checked: both bounds."""
        return self.low, self.high

    def all_values(self) -> None:
        """Say that the values cannot be listed."""
        return

    def contains(self, value: object) -> bool:
        """Whether a value may be sampled."""
        return type(value) in (int, float) and self.low <= value <= self.high  # type: ignore[operator]


@dataclass(frozen=True)
class LogUniform(Uniform):
    """An axis of positive numbers, bounds inclusive, each factor as likely as another: for rates and penalties."""

    def __post_init__(self) -> None:
        """Refuse a range without room, and one that reaches 0.

        Raises:
            InputError: The bounds are not finite, not rising or not above 0.
        """
        super().__post_init__()
        if self.low <= 0:
            raise InputError(f"{self} must lie above 0.")


SampledAxis: TypeAlias = Choice | IntRange | Uniform | LogUniform
"""An axis whose values a sampler proposes."""
StudyScope: TypeAlias = Literal["cell", "arm"]
"""Whose trials a sampler learns from: those of the same cell, or of the same arm."""

_SAMPLED = get_args(SampledAxis)


@dataclass(frozen=True)
class Cell:
    """An arm with one combination of its grid axes."""

    name: str
    """Readable and unique in its space, such as `resnet18 frozen_blocks=2`."""
    point: Mapping[str, PointValue]
    """The value of every field that the arm fixes or the grid chooses."""
    arm: int = 0
    """Number of its arm in the space, from 0."""
    axes: Mapping[str, SampledAxis] = field(default_factory=dict)
    """The axes sampled inside the cell, by field name."""
    grid: Mapping[str, PointValue] = field(default_factory=dict)
    """The part of the point that the grid chose."""

    def with_values(self, values: Mapping[str, Any]) -> dict[str, PointValue]:
        """Complete the cell's point with a value for each sampled axis."""
        return dict(self.point) | {name: checked_value(name, values[name]) for name in self.axes}

    def may_sample(self, values: Mapping[str, PointValue]) -> bool:
        """Whether values, each in its field's own type, are one for each axis and lie on it."""
        return self.axes.keys() == values.keys() and all(_is_on(axis, name, values[name]) for name, axis in self.axes.items())

    def num_values(self) -> int | None:
        """Count the combinations of its axes' values; None where an axis is continuous."""
        listed = [axis.all_values() for axis in self.axes.values()]
        return None if any(values is None for values in listed) else math.prod(len(values or ()) for values in listed)

    def all_values(self) -> tuple[dict[str, PointValue], ...] | None:
        """List every combination of its axes' values, the last axis fastest; None where an axis is continuous."""
        listed = {name: axis.all_values() for name, axis in self.axes.items()}
        if any(values is None for values in listed.values()):
            return None
        combinations = itertools.product(*(values or () for values in listed.values()))
        return tuple(dict(zip(listed, values, strict=True)) for values in combinations)

    def probes(self) -> Iterator[dict[str, PointValue]]:
        """Give the points that show whether the cell can be built.

        Yields:
            Each axis at its ends with the others at their lows, then all at their highs.
        """
        ends = {name: axis.ends() for name, axis in self.axes.items()}
        lows = {name: values[0] for name, values in ends.items()}
        yield self.with_values(lows)
        for name, values in ends.items():
            yield from (self.with_values(lows | {name: value}) for value in values[1:])
        if len(ends) > 1:
            yield self.with_values({name: values[-1] for name, values in ends.items()})


@dataclass(frozen=True)
class Arm:
    """One family inside a space: fixed values and axes, by field name."""

    fields: Mapping[str, Any]

    def __init__(self, **named: Any) -> None:
        """Take fixed values and axes, such as `Arm(model="resnet18", frozen_blocks=Grid(0, 1))`."""
        object.__setattr__(self, "fields", named)

    def grid_axes(self) -> dict[str, Grid]:
        """List the enumerated axes by field name, in the order they are written."""
        return {name: value for name, value in self.fields.items() if isinstance(value, Grid)}

    def sampled_axes(self) -> dict[str, SampledAxis]:
        """List the sampled axes by field name, in the order they are written."""
        return {name: value for name, value in self.fields.items() if isinstance(value, _SAMPLED)}

    def cells(self, number: int = 0) -> Iterator[Cell]:
        """Enumerate the combinations of the grid axes, the last axis fastest.

        Args:
            number: The arm's number in its space.

        Raises:
            InputError: A field is unknown, or `model` is sampled.
        """
        grid, sampled = self.grid_axes(), self.sampled_axes()
        if "model" in sampled:
            raise InputError("model cannot be sampled, for each network has fields of its own: use Grid, or one arm each.")
        if "max_epochs" in sampled:
            raise InputError("max_epochs cannot be sampled: it is what a trial may cost, not what is tried. Use Grid, or fix it.")
        fixed = {name: value for name, value in self.fields.items() if name not in sampled}
        for values in itertools.product(*(axis.values for axis in grid.values())):
            chosen = dict(zip(grid, values, strict=True))
            point = {name: checked_value(name, value) for name, value in (fixed | chosen).items()}
            labels = [f"{name}={_label(value)}" for name, value in chosen.items() if name != "model"]
            yield Cell(
                name=" ".join([model_of(point), *labels]),
                point=point,
                arm=number,
                axes=sampled,
                grid={name: point[name] for name in grid},
            )

    def with_fixed(self, **fixed: PointValue) -> Self:
        """Return the arm with some fields set to one value."""
        return type(self)(**(dict(self.fields) | fixed))


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """One or more arms, and the protocol they are meant for."""

    arms: tuple[Arm, ...]
    """The families."""
    protocol: Protocol = "strict"
    """The protocol when `--protocol` is not given."""
    study: StudyScope = "cell"
    """Whose trials a sampler learns from."""
    first_points: tuple[Point, ...] = ()
    """Values to try before a sampler proposes its own: those of a cell's grid pick the cell, those of its axes are tried."""
    name: str = field(default="", compare=False)
    """The file's name without its ending; set on loading."""

    def __post_init__(self) -> None:
        """Refuse what is no sequence of arms, and an unknown protocol.

        Raises:
            InputError: The space cannot be meant this way; the text says how to write it.
        """
        if not isinstance(self.arms, tuple) or not all(isinstance(arm, Arm) for arm in self.arms):
            raise InputError("arms must be a tuple of Arm(...). A single one needs a comma: arms=(Arm(...),).")
        if not self.arms:
            raise InputError("the space has no arm.")
        if self.protocol not in PROTOCOLS:
            raise InputError(
                f"protocol cannot be {shortened(repr(self.protocol))}. {did_you_mean(str(self.protocol), PROTOCOLS)}"
            )
        if self.study not in get_args(StudyScope):
            raise InputError(
                f"study cannot be {shortened(repr(self.study))}. {did_you_mean(str(self.study), get_args(StudyScope))}"
            )
        self._require_bounds()

    def _require_bounds(self) -> None:
        """Refuse, before any of it is listed, what nobody could search."""
        num_cells = num_probes = 0
        for arm in self.arms:
            own = math.prod(len(axis.values) for axis in arm.grid_axes().values())
            num_cells += own
            num_probes += own * sum(len(axis.ends()) for axis in arm.sampled_axes().values())
        if num_cells > MOST_CELLS:
            raise InputError(
                f"the space has {_counted(num_cells)} cells. At most {MOST_CELLS} can be searched: give fewer values."
            )
        if num_probes > _MOST_PROBES or num_cells * len(self.first_points) > _MOST_FIRST_VALUES:
            raise InputError("the space names too many values: give fewer in Choice(...), or fewer first_points.")

    def cells(self) -> tuple[Cell, ...]:
        """Enumerate every cell of every arm."""
        return tuple(cell for number, arm in enumerate(self.arms) for cell in arm.cells(number))

    @property
    def is_grid(self) -> bool:
        """Whether nothing is sampled: each cell is one point."""
        return not any(arm.sampled_axes() for arm in self.arms)

    @property
    def has_epochs(self) -> bool:
        """Whether anything of it is trained in epochs, so that a trial may be stopped early."""
        return any(family_of(model).has_epochs for model in self.models() if model in MODELS)

    def check(self, run: RunConfig | None = None) -> None:
        """Build every cell's trials at both ends of every axis, so that a wrong space is refused before anything starts.

        Args:
            run: Whose image size the networks must fit too; None checks the space alone.

        Raises:
            InputError: A cell cannot be built, two cells have the same name or the same point, or a first point lies
                in no cell.
        """
        names: dict[str, int] = {}
        trials: dict[Any, str] = {}
        for number, arm in enumerate(self.arms, start=1):
            where = f"arm {number}"
            try:
                cells = [(cell, [TrialConfig.from_point(point) for point in cell.probes()]) for cell in arm.cells()]
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
            for cell, built in cells:
                if names.setdefault(cell.name, number) != number:
                    raise InputError(f"{where}: cell '{cell.name}' stands in arm {names[cell.name]} too.")
                if trials.setdefault(tuple(built), cell.name) != cell.name:
                    raise InputError(f"{where}: cell '{cell.name}' trains the same as '{trials[tuple(built)]}'. Remove one.")
                for trial in built if run is not None else ():
                    run.check_fits(trial)  # type: ignore[union-attr]
        all_cells = self.cells() if self.first_points else ()
        for point in self.first_points:
            if not any(first_values(cell, point) is not None for cell in all_cells):
                raise InputError(f"the first point {dict(point)} lies in no cell.")

    def max_epochs(self) -> int:
        """Return the most epochs that any trial may run."""
        trials = [TrialConfig.from_point(point) for cell in self.cells() for point in cell.probes()]
        return max(trial.max_epochs for trial in trials)

    def precision(self) -> Precision:
        """Return the number format of its trials; a search has set one for all."""
        return TrialConfig.from_point(next(point for cell in self.cells() for point in cell.probes())).precision

    def models(self) -> tuple[str, ...]:
        """List the networks of the space, each once, in order."""
        return tuple(dict.fromkeys(model_of(cell.point) for cell in self.cells()))

    def backbones(self) -> tuple[str, ...]:
        """List the networks whose weights its trials may start from, each once, in order."""
        trials = (TrialConfig.from_point(point) for cell in self.cells() for point in cell.probes())
        return tuple(dict.fromkeys(name for trial in trials if (name := trial.network.starts_from) is not None))

    def with_fixed(self, values: Point) -> Self:
        """Set fields to one value in every arm that they apply to (`--set`).

        A fixed `model` drops the arms that do not offer it. A field that applies to only some arms is set
        there and left out elsewhere.

        Raises:
            InputError: A field applies to no arm.
        """
        fitting = [_fitting_arm(arm, values) for arm in self.arms]
        arms = tuple(arm for arm in fitting if arm is not None)
        if not arms:
            offered = ", ".join(self.models())
            raise InputError(f"--set model={values['model']}: no arm of '{self.name}' offers it. Offered: {offered}.")
        for name in values:
            if not any(name in arm.fields for arm in arms):
                raise InputError(f"--set {name}: it applies to no arm of '{self.name}'.")
        first = tuple({name: value for name, value in point.items() if name not in values} for point in self.first_points)
        return replace(self, arms=arms, first_points=tuple(point for point in first if point))

    def as_json(self) -> dict[str, Any]:
        """Describe the space in plain JSON values, as the manifest keeps it."""
        arms = [{name: _plain(value) for name, value in arm.fields.items()} for arm in self.arms]
        first = [{name: _plain(value) for name, value in point.items()} for point in self.first_points]
        return {"name": self.name, "protocol": self.protocol, "study": self.study, "first_points": first, "arms": arms}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read back what `as_json` wrote.

        Raises:
            InputError: It holds something that this version does not know.
        """
        try:
            first = content["first_points"]
            if not isinstance(content["name"], str):
                raise InputError("its name is no text.")
            return cls(
                arms=tuple(Arm(**{name: _from_plain(value) for name, value in arm.items()}) for arm in content["arms"]),
                protocol=content["protocol"],
                study=content["study"],
                first_points=tuple({name: _from_plain(value) for name, value in point.items()} for point in first),
                name=content["name"],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"This is no search space of this version of tune_lung: {shortened(str(error))}") from error

    def sha256(self) -> str:
        """Hash what may be tried; the file's name plays no part."""
        content = {name: value for name, value in self.as_json().items() if name != "name"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def first_values(cell: Cell, point: Point) -> dict[str, PointValue] | None:
    """Read a first point as values of a cell's sampled axes.

    Returns:
        The values it names; None where it names none of the cell's axes, contradicts the cell or lies outside an axis.
    """
    names_fixed = [name for name in point if name not in cell.axes]
    if any(name not in cell.point or cell.point[name] != checked_value(name, point[name]) for name in names_fixed):
        return None
    values = {name: checked_value(name, point[name]) for name in point if name in cell.axes}
    return values if values and all(cell.axes[name].contains(_plain(value)) for name, value in values.items()) else None


_AXIS_NAMES: dict[type, str] = {
    Grid: "grid",
    Choice: "choice",
    IntRange: "int_range",
    Uniform: "uniform",
    LogUniform: "log_uniform",
}


def _fitting_arm(arm: Arm, values: Point) -> Arm | None:
    models = _models_of(arm)
    if "model" in values:
        if values["model"] not in models:
            return None
        models = (str(values["model"]),)
    families = [family_of(model) for model in models if model in MODELS]  # one that there is not is told of later
    fitting = {name: value for name, value in values.items() if all(applies_to(name, family) for family in families)}
    return arm.with_fixed(**fitting)


def _models_of(arm: Arm) -> tuple[str, ...]:
    own = arm.fields.get("model", DEFAULT_MODEL)
    return own.values if isinstance(own, Grid) else (own,)


def _plain(value: Any) -> Any:
    name = _AXIS_NAMES.get(type(value))
    if name is not None:
        return {name: _plain(value.values) if isinstance(value, Grid | Choice) else asdict(value)}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _from_plain(content: Any) -> Any:
    if isinstance(content, dict):
        ((name, inner),) = content.items()
        kinds: dict[str, Any] = {own: kind for kind, own in _AXIS_NAMES.items()}
        if name not in kinds:
            raise InputError(f"There is no axis of the kind '{name}'. {did_you_mean(name, kinds)}")
        return kinds[name](*map(_from_plain, inner)) if isinstance(inner, list) else kinds[name](**inner)
    return tuple(map(_from_plain, content)) if isinstance(content, list) else content


def _is_on(axis: SampledAxis, name: str, value: PointValue) -> bool:
    if isinstance(axis, Choice):
        return any(checked_value(name, own) == value for own in axis.values)
    if isinstance(axis, IntRange) and isinstance(value, float) and value.is_integer():  # a field of real numbers
        return axis.contains(int(value))
    return axis.contains(value)


def _counted(number: int) -> str:
    return str(number) if number < 10**12 else "more than 10^12"


def _label(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
