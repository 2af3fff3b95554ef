"""The one list of the search's options: of each its type, default and help, where it is kept, and whether a resume may change it.

The command line, the keywords of `tune_lung.run_search`, what a run's manifest may say, what is remembered of a run, and what a
resume may change are all made from it. A new option is a field of `SearchOptions`, a key of `SearchKeywords` if Python may say
it, and the place that uses it.

A run's manifest may be a stranger's. What defines the search is read from it as data, part by part, and nothing else is:
no path, no address, no tracker, nothing that takes room, CPUs or GPUs. Those come from the command line that resumes, or
from what the same user said of the same run before (`tune_lung.search.remembered`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypedDict, TypeVar, get_args, get_origin, get_type_hints

from tune_lung.config import Protocol
from tune_lung.data.cache import DEFAULT_SIZE_BYTES
from tune_lung.families.family import PointValue
from tune_lung.metrics import names_to_choose
from tune_lung.option_values import (
    AtLeast1,
    Cpus,
    Duration,
    Gpus,
    HangTimeout,
    NameOrPlace,
    Place,
    Size,
    Whole,
    Words,
)
from tune_lung.results.layout import DEFAULT_KEEP, KeepName
from tune_lung.space import SearchSpace
from tune_lung.strategy import DEFAULT_GRACE_EPOCHS, DEFAULT_REDUCTION_FACTOR, SamplerName, SchedulerName

if TYPE_CHECKING:
    from tune_lung.results.reader import Run

_T = TypeVar("_T")
TrackerName: TypeAlias = Literal["tensorboard", "mlflow", "wandb"]
WishedPrecision: TypeAlias = Literal["auto", "bf16", "fp32"]


class Group(Enum):
    """Headings of `--help`, in its order."""

    WHAT = "what is searched"
    HOW = "how it is searched"
    IMAGES = "images"
    TRAINING = "training"
    WHERE = "where it runs"
    RESULTS = "results"


class Kept(Enum):
    """Where a run that goes on finds what was said."""

    SPACE = "space"
    """In the manifest's space, as what it has made of it."""
    STRATEGY = "strategy"
    """In the manifest's strategy."""
    RUN = "run"
    """In the manifest's own fields, those of `RunConfig`."""
    SETTINGS = "settings"
    """In the manifest's `settings`."""
    MEMORY = "memory"
    """In the user's own memory, outside the run: no manifest can say it."""
    NOWHERE = "nowhere"
    """Each command line says it anew."""


class Change(Enum):
    """Whether a run that goes on may be told something else than it was before."""

    NEVER = "never"
    GROW = "may grow"
    FREELY = "freely"


def _option(
    default: _T,
    text: str,
    group: Group,
    kept: Kept,
    change: Change,
    *,
    metavar: str | None = None,
    of_commands_only: bool = False,
) -> _T:
    """Declare a field of `SearchOptions`; the arguments are those of `Option`."""
    told = {"text": text, "group": group, "kept": kept, "change": change, "metavar": metavar}
    return field(default=default, metadata={**told, "of_commands_only": of_commands_only})


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What a search is asked for, by whatever door: None stands for what the space, the data or the machine decides."""

    space: NameOrPlace = _option(
        "freeze_grid", "a shipped space or the path of a .py file (default: {default})", Group.WHAT, Kept.SPACE, Change.NEVER
    )
    list_spaces: bool = _option(
        False,
        "name the shipped spaces and the question of each, and stop",
        Group.WHAT,
        Kept.NOWHERE,
        Change.NEVER,
        of_commands_only=True,
    )
    set: tuple[str, ...] = _option(
        (), "fix a field in every arm it applies to; repeatable", Group.WHAT, Kept.SPACE, Change.NEVER, metavar="KEY=VALUE"
    )
    protocol: Protocol | None = _option(
        None, "rules of loss, freezing, split and selection (default: the space's)", Group.WHAT, Kept.RUN, Change.NEVER
    )
    select_by: Words | None = _option(
        None,
        f"what decides: {', '.join(names_to_choose())} (default: val_macro_recall; published: val_loss)",
        Group.WHAT,
        Kept.RUN,
        Change.NEVER,
        metavar="COLUMN",
    )
    objective: Words | None = _option(
        None,
        "two or more numbers to trade off, such as val_macro_recall:max,trainable_params:min (default: the selection score)",
        Group.WHAT,
        Kept.STRATEGY,
        Change.NEVER,
        metavar="COLUMN:max,...",
    )
    seed: Whole = _option(0, "root of every random choice (default: {default})", Group.WHAT, Kept.RUN, Change.NEVER)

    samples: Whole | None = _option(
        None, "points of each cell where a space samples (default: 32)", Group.HOW, Kept.STRATEGY, Change.GROW, metavar="N"
    )
    repeats: Whole = _option(1, "seeds of each point (default: {default})", Group.HOW, Kept.STRATEGY, Change.GROW, metavar="N")
    sampler: SamplerName | None = _option(
        None, "who proposes points (default: tpe; a grid is run whole)", Group.HOW, Kept.STRATEGY, Change.NEVER
    )
    scheduler: SchedulerName | None = _option(
        None,
        "who stops trials early (default: asha where points are sampled, else none)",
        Group.HOW,
        Kept.STRATEGY,
        Change.NEVER,
    )
    grace_epochs: Whole | None = _option(
        None,
        f"epochs before trials are compared (default: {DEFAULT_GRACE_EPOCHS})",
        Group.HOW,
        Kept.STRATEGY,
        Change.NEVER,
        metavar="N",
    )
    reduction_factor: Whole | None = _option(
        None,
        f"asha lets one trial in N go on (default: {DEFAULT_REDUCTION_FACTOR})",
        Group.HOW,
        Kept.STRATEGY,
        Change.NEVER,
        metavar="N",
    )
    time_budget: Duration | None = _option(
        None,
        "start nothing new after it, such as 30m or 8h (default: no limit)",
        Group.HOW,
        Kept.STRATEGY,
        Change.GROW,
        metavar="TIME",
    )
    warm_start: Place | None = _option(
        None, "learn from an earlier run's trials, and repeat none", Group.HOW, Kept.NOWHERE, Change.NEVER, metavar="RUN"
    )
    resume: Place | None = _option(
        None,
        "go on with a run that was stopped; --samples, --repeats, --time-budget and --max-epochs may grow",
        Group.HOW,
        Kept.NOWHERE,
        Change.FREELY,
        metavar="RUN",
    )
    allow_other_numbers: bool = _option(  # each attempt's manifest has what it said
        False,
        "with --resume: go on with other threads, or another kind of device, though numbers differ; reports say so",
        Group.HOW,
        Kept.NOWHERE,
        Change.FREELY,
    )
    dry_run: bool = _option(
        False,
        "say what it would try, take and need, and stop",
        Group.HOW,
        Kept.NOWHERE,
        Change.NEVER,
        of_commands_only=True,
    )

    data: Place | None = _option(  # the same images, wherever they lie: their digest is compared
        None,
        "one folder per class (default: synthetic X-rays, made here)",
        Group.IMAGES,
        Kept.MEMORY,
        Change.FREELY,
        metavar="DIR",
    )
    image_size: Whole = _option(128, "side in pixels (default: {default})", Group.IMAGES, Kept.RUN, Change.NEVER, metavar="PX")
    limit: AtLeast1 | None = _option(
        None, "use N images at most, drawn class by class", Group.IMAGES, Kept.SETTINGS, Change.NEVER, metavar="N"
    )
    strict_data: bool = _option(False, "stop at a bad file instead of leaving it out", Group.IMAGES, Kept.SETTINGS, Change.FREELY)
    follow_links: bool = _option(
        False, "follow links that lead out of the image folder", Group.IMAGES, Kept.MEMORY, Change.FREELY
    )
    cache: Place | None = _option(
        None,
        "where decoded pixels and features lie (default: the user's cache folder)",
        Group.IMAGES,
        Kept.MEMORY,
        Change.FREELY,
        metavar="DIR",
    )
    cache_size: Size = _option(
        DEFAULT_SIZE_BYTES,
        "room for them, such as 5GB (default: 20GB)",
        Group.IMAGES,
        Kept.MEMORY,
        Change.FREELY,
        metavar="SIZE",
    )

    weights: NameOrPlace | None = _option(  # the same, wherever they lie: their digest is compared
        None,
        "imagenet (with --data), random (without), a file, or a folder",
        Group.TRAINING,
        Kept.MEMORY,
        Change.FREELY,
        metavar="FROM",
    )
    max_epochs: Whole | None = _option(
        None,
        "epochs of a trial at most (default: the space's, else 100)",
        Group.TRAINING,
        Kept.SPACE,
        Change.GROW,
        metavar="N",
    )
    patience: Whole | None = _option(
        None,
        "epochs without a better score (default: the space's, else 20)",
        Group.TRAINING,
        Kept.SPACE,
        Change.NEVER,
        metavar="N",
    )
    precision: WishedPrecision = _option(
        "auto", "auto: bf16 where it is native, strict only", Group.TRAINING, Kept.SPACE, Change.NEVER
    )

    address: Words | None = _option(
        None,
        "a running Ray cluster, such as auto (default: Ray on this machine alone)",
        Group.WHERE,
        Kept.MEMORY,
        Change.FREELY,
    )
    cpus_per_trial: Cpus | None = _option(
        None, "also a trial's torch threads (default: 1)", Group.WHERE, Kept.MEMORY, Change.FREELY, metavar="N"
    )
    gpus_per_trial: Gpus | None = _option(
        None, "default: 1 where nodes have GPUs, else 0", Group.WHERE, Kept.MEMORY, Change.FREELY, metavar="N"
    )
    hang_timeout: HangTimeout = _option(
        30 * 60.0,
        "a worker that finishes no batch for so long is ended, and its trial tried again (default: 30m)",
        Group.WHERE,
        Kept.MEMORY,
        Change.FREELY,
        metavar="TIME",
    )
    max_concurrent: AtLeast1 | None = _option(
        None, "trials at once at most (default: as many as fit)", Group.WHERE, Kept.MEMORY, Change.FREELY, metavar="N"
    )

    out: Place = _option(
        Path("runs"), "parent of runs (default: {default})", Group.RESULTS, Kept.NOWHERE, Change.NEVER, metavar="DIR"
    )
    name: str | None = _option(
        None,
        "the run's folder (default: space and UTC time, and a number where that is taken)",
        Group.RESULTS,
        Kept.NOWHERE,
        Change.NEVER,
    )
    tracker: tuple[TrackerName, ...] = _option(
        (), "tell another tool of every epoch; repeatable", Group.RESULTS, Kept.MEMORY, Change.FREELY
    )
    keep: KeepName = _option(  # goes with the run: elsewhere nothing else is removed
        DEFAULT_KEEP,
        "networks that stay: of each cell's best and first point and of the front, of every trial (best), or all with what"
        " training goes on from (default: {default})",
        Group.RESULTS,
        Kept.SETTINGS,
        Change.FREELY,
    )
    profile: bool = _option(
        False, "write down where each trial's time goes, and draw it", Group.RESULTS, Kept.MEMORY, Change.FREELY
    )
    no_report: bool = _option(
        False, "draw no figures at the end", Group.RESULTS, Kept.MEMORY, Change.FREELY, of_commands_only=True
    )


class SearchKeywords(TypedDict, total=False):
    """The options that `tune_lung.run_search` takes by keyword; None leaves one out."""

    set: Mapping[str, PointValue] | Sequence[str]
    protocol: Protocol | None
    select_by: str | None
    objective: str | None
    seed: int
    samples: int | None
    repeats: int
    sampler: SamplerName | None
    scheduler: SchedulerName | None
    grace_epochs: int | None
    reduction_factor: int | None
    time_budget: float | str | None
    warm_start: "str | Path | Run | None"
    resume: "str | Path | Run | None"
    allow_other_numbers: bool
    image_size: int
    limit: int | None
    strict_data: bool
    follow_links: bool
    cache: str | Path | None
    cache_size: int | str
    weights: str | Path | None
    max_epochs: int | None
    patience: int | None
    precision: WishedPrecision
    address: str | None
    cpus_per_trial: float | None
    gpus_per_trial: float | None
    hang_timeout: float | str
    max_concurrent: int | None
    tracker: TrackerName | Sequence[TrackerName]
    keep: KeepName
    profile: bool


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option, as its field of `SearchOptions` declares it."""

    name: str
    """The field, such as `max_epochs`."""
    kind: Any
    """Type of what is said, with its bounds: one of `tune_lung.option_values`, choices, a text or a switch."""
    is_repeatable: bool
    """Whether several can be said, each of that type."""
    default: object
    """When nothing is said."""
    text: str
    """Its line of help."""
    group: Group
    """The heading above it."""
    kept: Kept
    """Where it is found again."""
    change: Change
    """Whether it may change."""
    metavar: str | None
    """What the value is called in the help."""
    of_commands_only: bool
    """Whether `run_search` lacks it."""

    @property
    def flag(self) -> str:
        """As the command line has it, such as `--max-epochs`."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def choices(self) -> tuple[str, ...]:
        """What may be said, where that is one of a few words; else nothing."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def may_a_manifest_say_it(self) -> bool:
        """Whether it is read from a run, whoever made that."""
        return self.kept not in (Kept.MEMORY, Kept.NOWHERE)


def _listed() -> tuple[Option, ...]:
    types = get_type_hints(SearchOptions, include_extras=True)
    found = []
    for one in fields(SearchOptions):
        kinds = [kind for kind in get_args(types[one.name]) if kind is not NoneType]
        is_repeatable = get_origin(types[one.name]) is tuple
        is_optional = NoneType in get_args(types[one.name])
        kind = kinds[0] if is_repeatable or is_optional else types[one.name]
        found.append(Option(name=one.name, kind=kind, is_repeatable=is_repeatable, default=one.default, **one.metadata))
    return tuple(found)


OPTIONS = _listed()
"""Every option, once, in the order of `--help`."""
OPTION_BY_NAME: Mapping[str, Option] = {option.name: option for option in OPTIONS}


def options_kept(kept: Kept, change: Change | None = None) -> tuple[Option, ...]:
    """List the options that are kept in one place.

    Args:
        kept: The place.
        change: Only those that may change so; None for all.
    """
    return tuple(option for option in OPTIONS if option.kept is kept and change in (None, option.change))


@dataclass(frozen=True, kw_only=True)
class GivenOptions:
    """What a caller said, and no more: what a run that goes on is not told stays as it was."""

    options: SearchOptions
    """What was said, with defaults for the rest."""
    names: frozenset[str]
    """Fields that were said."""
    words: tuple[str, ...]
    """The same as a command line, for the run's manifest."""
    space: SearchSpace | None = None
    """The space, where it was given as a value, not by its name or path."""

    @classmethod
    def of(cls, values: Mapping[str, Any], words: tuple[str, ...]) -> Self:
        """Take values, each of its option's type, by name."""
        return cls(options=SearchOptions(**values), names=frozenset(values), words=words)

    def among(self, *kept: Kept, change: Change | None = None) -> dict[str, Any]:
        """List what was said of options that are kept in these places, by name.

        Args:
            *kept: The places.
            change: Only options that may change so; None for all.
        """
        of_them = [option.name for place in kept for option in options_kept(place, change)]
        return {name: getattr(self.options, name) for name in of_them if name in self.names}
