"""What may be tried: axes, arms and search spaces, as data.

A search space is a file that ends in one constant `SPACE`. It is loaded by path, counted, printed, hashed and checked
before anything is trained; it knows neither Optuna nor Ray.
"""

import ast
import hashlib
import itertools
import json
import runpy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tune_lung.config import CNN_FIELDS, PROTOCOLS, RESNET_FIELDS, Point, PointValue, Protocol, TrialConfig, checked_value
from tune_lung.errors import InputError, did_you_mean

SHIPPED_SPACES = Path(__file__).resolve().parent / "search_spaces"


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
            raise InputError(f"Grid{values} names a value twice.")
        object.__setattr__(self, "values", values)


@dataclass(frozen=True)
class Cell:
    """An arm with one combination of its grid axes."""

    name: str
    """Readable and unique in its space, such as `resnet18 frozen_blocks=2`."""
    point: Mapping[str, PointValue]
    """The value of every field that the arm names."""


@dataclass(frozen=True)
class Arm:
    """One family inside a space: fixed values and axes, by field name."""

    fields: Mapping[str, Any]

    def __init__(self, **named: Any) -> None:
        """Take fixed values and axes, such as `Arm(model="resnet18", frozen_blocks=Grid(0, 1))`."""
        object.__setattr__(self, "fields", named)

    def axes(self) -> dict[str, Grid]:
        """List the axes by field name, in the order they are written."""
        return {name: value for name, value in self.fields.items() if isinstance(value, Grid)}

    def cells(self) -> Iterator[Cell]:
        """Enumerate the combinations of the grid axes, the last axis fastest."""
        axes = self.axes()
        for values in itertools.product(*(axis.values for axis in axes.values())):
            chosen = dict(zip(axes, values, strict=True))
            point = {name: checked_value(name, value) for name, value in (dict(self.fields) | chosen).items()}
            labels = [f"{name}={_label(value)}" for name, value in chosen.items() if name != "model"]
            yield Cell(name=" ".join([str(point.get("model", "cnn")), *labels]), point=point)

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
            raise InputError(f"protocol cannot be {self.protocol!r}. {did_you_mean(str(self.protocol), PROTOCOLS)}")

    def cells(self) -> tuple[Cell, ...]:
        """Enumerate every cell of every arm."""
        return tuple(cell for arm in self.arms for cell in arm.cells())

    def check(self) -> None:
        """Build every cell's trial once, so that a wrong space is refused before anything starts.

        Raises:
            InputError: A cell cannot be built, or two cells have the same name or the same point.
        """
        names: dict[str, int] = {}
        trials: dict[TrialConfig, str] = {}
        for number, arm in enumerate(self.arms, start=1):
            where = f"{self.name}, arm {number}"
            try:
                cells = [(cell, TrialConfig.from_point(cell.point)) for cell in arm.cells()]
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
            for cell, trial in cells:
                if names.setdefault(cell.name, number) != number:
                    raise InputError(f"{where}: cell '{cell.name}' stands in arm {names[cell.name]} too.")
                if trials.setdefault(trial, cell.name) != cell.name:
                    raise InputError(f"{where}: cell '{cell.name}' trains the same as '{trials[trial]}'. Remove one.")

    def models(self) -> tuple[str, ...]:
        """List the networks of the space, each once, in order."""
        return tuple(dict.fromkeys(str(cell.point.get("model", "cnn")) for cell in self.cells()))

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
        return type(self)(arms=arms, protocol=self.protocol, name=self.name)

    def as_json(self) -> dict[str, Any]:
        """Describe the space in plain JSON values, as the manifest keeps it."""
        arms = [{name: _plain(value) for name, value in arm.fields.items()} for arm in self.arms]
        return {"name": self.name, "protocol": self.protocol, "arms": arms}

    def sha256(self) -> str:
        """Hash what may be tried; the file's name plays no part."""
        content = {name: value for name, value in self.as_json().items() if name != "name"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def shipped_space_files() -> dict[str, Path]:
    """List the space files that come with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED_SPACES.glob("*.py")) if not path.stem.startswith("_")}


def load_space(name_or_path: str) -> SearchSpace:
    """Load a shipped space by name, or a user's by path.

    Args:
        name_or_path: `freeze_grid`, or a path that ends in `.py`. A space file is code: load only your own.

    Returns:
        The checked space.

    Raises:
        InputError: There is no such space, or its file is wrong; the text names file and arm.
    """
    path = _space_path(name_or_path)
    try:
        namespace = runpy.run_path(str(path))
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error
    except SyntaxError as error:
        raise InputError(f"{path.name}, line {error.lineno}: {error.msg}.") from error
    except Exception as error:
        raise InputError(f"{path.name} raised {type(error).__name__} when loaded: {error}") from error
    space = namespace.get("SPACE")
    if not isinstance(space, SearchSpace):
        raise InputError(f"{path.name} has no constant SPACE = SearchSpace(...).")
    space = SearchSpace(arms=space.arms, protocol=space.protocol, name=path.stem)
    space.check()
    return space


def space_question(path: Path) -> str:
    """Read the first line of a space file's docstring: the question it answers."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _space_path(name_or_path: str) -> Path:
    shipped = shipped_space_files()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.suffix == ".py":
        if not path.is_file():
            raise InputError(f"There is no space file {name_or_path}.")
        return path
    raise InputError(f"No search space '{name_or_path}'. {did_you_mean(name_or_path, shipped)} Or give the path of a .py file.")


def _fitting_arm(arm: Arm, values: Point) -> Arm | None:
    models = _models_of(arm)
    if "model" in values:
        if values["model"] not in models:
            return None
        models = (str(values["model"]),)
    foreign = RESNET_FIELDS if "cnn" in models else CNN_FIELDS
    return arm.with_fixed(**{name: value for name, value in values.items() if name not in foreign})


def _models_of(arm: Arm) -> tuple[str, ...]:
    own = arm.fields.get("model", "cnn")
    return own.values if isinstance(own, Grid) else (own,)


def _plain(value: Any) -> Any:
    if isinstance(value, Grid):
        return {"grid": _plain(value.values)}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _label(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
