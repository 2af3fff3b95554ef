"""How a space is searched: what counts, who proposes, who is stopped, how much is spent. Plain values, no framework."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, TypeAlias, TypeVar, get_args

from pydantic import TypeAdapter

from tune_lung.config import TrialConfig, model_of
from tune_lung.errors import InputError, did_you_mean, require_choice, shortened
from tune_lung.families.registry import family_of
from tune_lung.metrics import Direction, class_of, is_on_validation, names_to_choose
from tune_lung.shapes import WrongShapeError, built_from_json
from tune_lung.space import Cell, SearchSpace

_T = TypeVar("_T")
SamplerName: TypeAlias = Literal["tpe", "random", "gp", "nsga2", "exhaustive"]
SchedulerName: TypeAlias = Literal["asha", "median", "none"]

SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)
SCHEDULERS: tuple[SchedulerName, ...] = get_args(SchedulerName)

DEFAULT_GRACE_EPOCHS = 3
DEFAULT_REDUCTION_FACTOR = 2
"""The best of grace 1 to 4 and factor 2 to 4 in `benchmarks.search_quality`. With grace 1, slow learners that end well are
lost; a larger factor stops too many good ones by the noise of small validation sets."""

_COUNTED_COLUMNS = ("total_params", "trainable_params", "mult_adds")
_COST_COLUMNS = (*_COUNTED_COLUMNS, "epoch_seconds_mean")
_DEFAULT_SAMPLES = 32
MOST_TRIALS = 100_000
"""Trials of the largest search."""
_LARGEST_NUMBER = 2**31 - 1


@dataclass(frozen=True)
class Objective:
    """One number of a trial that should be as large, or as small, as it can be."""

    column: str
    """A column of the ledger's `trials` table."""
    direction: Direction
    """Which way is better."""

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.direction == "max" else -1


SELECTION = Objective("selection_score", "max")
"""What a search goes by when no objective is named: the number that also stops, keeps and ranks."""


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """Read objectives as the command line has them, such as `val_recall:COVID:max,trainable_params:min`.

    Returns:
        Two or more objectives.

    Raises:
        InputError: A column is unknown, sealed or named twice, a direction is missing, or there is only one objective.
    """
    objectives = tuple(_objective(part.strip()) for part in _AN_OBJECTIVE.findall(text))
    columns = [objective.column for objective in objectives]
    if len(columns) < 2:
        raise InputError(f"--objective {text}: name two or more. What a single objective is made of is chosen by --select-by.")
    if len(set(columns)) < len(columns):
        raise InputError(f"--objective {text}: a column stands twice.")
    return objectives


_AN_OBJECTIVE = re.compile(r"(?:^|,)(\s*val_recall:.*?:(?:max|min)\s*(?=,|$)|[^,]*)")
"""One of several between commas, but for those in a class's name, which goes on to its direction."""


def _objective(text: str) -> Objective:
    column, separator, direction = text.rpartition(":")
    if not separator or direction not in get_args(Direction):
        _require_objective(text if is_on_validation(text) else text.partition(":")[0])
        raise InputError(f"--objective {text}: write COLUMN:max or COLUMN:min.")
    _require_objective(column)
    return Objective(column, direction)  # type: ignore[arg-type]


def _require_objective(column: str) -> None:
    """Refuse what no search may go by."""
    if column.startswith("test_"):
        raise InputError(f"--objective {shortened(column)}: the test images stay sealed until the search has ended.")
    if not is_on_validation(column) and column not in _COST_COLUMNS:
        near = did_you_mean(column, (*names_to_choose(), *_COST_COLUMNS))
        raise InputError(f"--objective {shortened(column)}: no such objective. {near}")


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a space is searched."""

    sampler: SamplerName
    """Who proposes points."""
    scheduler: SchedulerName
    """Who stops trials before their own end."""
    samples: int | None
    """Points of each cell, at least 1; None for all there are, as `exhaustive` tries them."""
    repeats: int = 1
    """Seeds that every point is trained with, at least 1."""
    grace_epochs: int = DEFAULT_GRACE_EPOCHS
    """Epochs before a trial is first compared, at least 1."""
    reduction_factor: int = DEFAULT_REDUCTION_FACTOR
    """ASHA lets one trial in this many go on, at least 2."""
    objectives: tuple[Objective, ...] = (SELECTION,)
    """What the sampler is told."""
    time_budget_seconds: float | None = None
    """No trial starts after it, and those that run end with the epoch they are in; None sets no limit."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and a scheduler that would have nothing sound to compare."""
        require_choice("sampler", self.sampler, SamplerName)
        require_choice("scheduler", self.scheduler, SchedulerName)
        least = {"samples": 1, "repeats": 1, "grace_epochs": 1, "reduction_factor": 2}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise InputError(f"--{name.replace('_', '-')} must be at least {lowest}, not {value}.")
            if value is not None and value > _LARGEST_NUMBER:
                raise InputError(f"--{name.replace('_', '-')} must be at most {_LARGEST_NUMBER}, not {value}.")
        if self.time_budget_seconds is not None and not 0 < self.time_budget_seconds < math.inf:
            raise InputError(f"--time-budget must be above 0, not {self.time_budget_seconds:g} s.")
        _require_allowed(self.objectives)
        if self.scheduler != "none" and self.repeats > 1:
            raise InputError(
                f"--repeats {self.repeats} needs --scheduler none: {self.scheduler} would stop some seeds of a point and not"
                " others, and the mean of what is left says nothing of the point."
            )
        if self.scheduler != "none" and len(self.objectives) > 1:
            raise InputError(
                f"Several objectives need --scheduler none: {self.scheduler} compares one number, and a trial that loses on it"
                " may win on another."
            )

    @classmethod
    def for_space(
        cls,
        space: SearchSpace,
        *,
        sampler: SamplerName | None = None,
        scheduler: SchedulerName | None = None,
        samples: int | None = None,
        objectives: tuple[Objective, ...] = (SELECTION,),
        repeats: int = 1,
        **numbers: Any,
    ) -> Self:
        """Choose what the user leaves open, and refuse what the space cannot use.

        A grid is run whole, every cell to its own end; a space with sampled axes by TPE and ASHA.

        Args:
            space: What is tried.
            sampler: The user's wish; None for the default.
            scheduler: The user's wish; None for the default.
            samples: The user's wish; None for the default.
            objectives: What counts.
            repeats: Seeds of each point.
            **numbers: The other fields.

        Raises:
            InputError: The choices do not fit the space or each other.
        """
        if space.is_grid:
            if samples is not None:
                raise InputError(
                    f"--samples: '{space.name}' samples nothing; each of its {len(space.cells())} cells is one point."
                )
            if sampler not in (None, "exhaustive"):
                raise InputError(f"--sampler {sampler}: '{space.name}' samples nothing; every cell is run.")
            sampler = "exhaustive"
        sampler = sampler or "tpe"
        if sampler == "exhaustive":
            if samples is not None:
                raise InputError("--samples: --sampler exhaustive tries every point.")
        elif samples is None:
            samples = _DEFAULT_SAMPLES
        if scheduler is None:
            compares = not space.is_grid and repeats == 1 and len(objectives) == 1
            scheduler = "asha" if compares and space.has_epochs else "none"
        strategy = cls(
            sampler=sampler,
            scheduler=scheduler,
            samples=samples,
            objectives=objectives,
            repeats=repeats,
            **numbers,
        )
        strategy.check_fits(space)
        _require_measurable(objectives, space)
        return strategy

    def compares_in(self, space: SearchSpace) -> bool:
        """Whether any trial of the space runs on after the first epoch at which trials are compared."""
        return self.scheduler != "none" and self.grace_epochs < space.max_epochs()

    def check_fits(self, space: SearchSpace) -> None:
        """Refuse a space that cannot be searched so.

        Raises:
            InputError: Sampler and space do not go together, or there would be too many trials.
        """
        if (self.sampler == "exhaustive") != (self.samples is None):
            raise InputError("--samples says how many points a sampler proposes, and --sampler exhaustive tries every point.")
        if self.sampler == "exhaustive":
            _require_finite(space)
        elif space.is_grid:
            raise InputError(f"--sampler {self.sampler}: '{shortened(space.name)}' samples nothing; every cell is run.")
        num_trials = self.num_trials(space)
        if num_trials > MOST_TRIALS:
            raise InputError(f"{shortened(str(num_trials))} trials are too many: a search has {MOST_TRIALS} at most.")

    def num_points(self, cell: Cell) -> int:
        """Count the points that a cell is given."""
        return self.samples if self.samples is not None else cell.num_values() or 0

    def num_trials(self, space: SearchSpace) -> int:
        """Count the trials of the whole search."""
        return self.repeats * sum(self.num_points(cell) for cell in space.cells())

    @property
    def has_one_objective(self) -> bool:
        """Whether points can be ranked by one number."""
        return len(self.objectives) == 1

    def as_json(self) -> dict[str, Any]:
        """Describe the strategy in plain JSON values, as the manifest keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read a strategy back from a manifest.

        Raises:
            InputError: It holds something that this version does not know.
        """
        return _built(TypeAdapter(cls), content, "strategy")


def _require_allowed(objectives: tuple[Objective, ...]) -> None:
    """Refuse what a search must not know, or does not."""
    columns = [objective.column for objective in objectives]
    if len(set(columns)) < max(1, len(columns)):
        raise InputError("A search has one objective or more, each once.")
    for column in columns:
        if column != SELECTION.column:
            _require_objective(column)


def _require_measurable(objectives: tuple[Objective, ...], space: SearchSpace) -> None:
    """Refuse an objective that some trials can never have.

    The mean time of an epoch leaves the first one out, and nothing is counted of a model whose size the data decide.
    """
    counted = [objective.column for objective in objectives if objective.column in _COUNTED_COLUMNS]
    is_timed = "epoch_seconds_mean" in [objective.column for objective in objectives]
    if not counted and not is_timed:
        return
    for cell in space.cells():
        family = family_of(model_of(cell.point))
        if counted and not family.is_counted:
            raise InputError(
                f"--objective {counted[0]}: of trials of cell '{shortened(cell.name)}' it is not known. Choose another"
                " objective, such as epoch_seconds_mean, or --set model=..."
            )
        if is_timed and family.has_epochs and any(TrialConfig.from_point(point).max_epochs < 2 for point in cell.probes()):
            raise InputError(
                f"--objective epoch_seconds_mean: trials of cell '{shortened(cell.name)}' run one epoch, and the first is left"
                " out of the mean. Raise --max-epochs, or choose another objective, such as mult_adds."
            )


def recorded_objectives(manifest: Mapping[str, Any]) -> tuple[Objective, ...]:
    """Read the objectives alone of a run: an imported one does not know who proposed and who was stopped.

    Args:
        manifest: The run's.

    Raises:
        InputError: One of them is none, or the recall of a class that the run does not have.
    """
    objectives = _built(_OBJECTIVES, manifest["strategy"].get("objectives"), "objectives")
    _require_allowed(objectives)
    for objective in objectives:
        name = class_of(objective.column)
        if name is not None and name not in manifest["data"]["classes"]:
            raise InputError(f"The run has an objective {shortened(repr(objective.column))}, and no such class.")
    return objectives


_OBJECTIVES = TypeAdapter(tuple[Objective, ...])


def _built(shape: TypeAdapter[_T], content: object, what: str) -> _T:
    try:
        return built_from_json(shape, content)
    except WrongShapeError as error:
        raise InputError(f"This is no {what} of this version of tune_lung: {error}") from error


def _require_finite(space: SearchSpace) -> None:
    for cell in space.cells():
        for name, axis in cell.axes.items():
            if axis.all_values() is None:
                raise InputError(
                    f"--sampler exhaustive: {name} of cell '{cell.name}' has no end of values. Give it a Choice or a Grid, or fix"
                    f" it with --set {name}=VALUE."
                )
