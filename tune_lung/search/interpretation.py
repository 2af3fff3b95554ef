"""What options mean: the space, the run's settings and the strategy that they ask for."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec

from tune_lung.config import FIELD_TYPES, RunConfig, default_select_by, value_from_text
from tune_lung.errors import InputError
from tune_lung.families.family import PointValue
from tune_lung.search.options import OPTION_BY_NAME, GivenOptions, SearchOptions, TrackerName
from tune_lung.space import SearchSpace
from tune_lung.space_files import load_space
from tune_lung.strategy import DEFAULT_GRACE_EPOCHS, DEFAULT_REDUCTION_FACTOR, SELECTION, Strategy, parse_objectives

_PACKAGES_BY_TRACKER: Mapping[TrackerName, str] = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


def space_of(given: GivenOptions) -> SearchSpace:
    """Find the space, with the fields that options fix.

    Raises:
        InputError: The space, or a field, is wrong.
    """
    if given.space is None:
        return with_fixed_fields(load_space(given.options.space), given.options)
    space = replace(given.space, name=given.options.space)
    space.check()
    return with_fixed_fields(space, given.options)


def with_fixed_fields(space: SearchSpace, options: SearchOptions) -> SearchSpace:
    """Return a space with the fields that options fix.

    Raises:
        InputError: A field is wrong.
    """
    fixed: dict[str, PointValue] = {}
    for text in options.set:
        name, separator, value = text.partition("=")
        if not separator:
            raise InputError(f"--set {text}: write KEY=VALUE, such as --set batch_size=32.")
        if name in fixed and fixed[name] != value_from_text(name, value):
            raise InputError(f"--set {name} is given twice, with two values. Give it once.")
        if name in OPTION_BY_NAME and name in FIELD_TYPES:
            raise InputError(f"--set {name}: use {OPTION_BY_NAME[name].flag} instead.")
        fixed[name] = value_from_text(name, value)
    for name in ("max_epochs", "patience"):
        if getattr(options, name) is not None:
            fixed[name] = getattr(options, name)
    return space.with_fixed(fixed)


def run_config_of(options: SearchOptions, space: SearchSpace) -> RunConfig:
    """Read what all trials of the run share.

    Raises:
        InputError: A value is out of range.
    """
    protocol = options.protocol or space.protocol
    select_by = options.select_by or default_select_by(protocol)
    return RunConfig(
        protocol=protocol,
        image_size=options.image_size,
        select_by=select_by,
        seed=options.seed,
    )


def strategy_of(options: SearchOptions, space: SearchSpace) -> Strategy:
    """Read how the space is searched.

    Raises:
        InputError: The options do not fit the space or each other.
    """
    strategy = Strategy.for_space(
        space,
        sampler=options.sampler,
        scheduler=options.scheduler,
        samples=options.samples,
        objectives=(SELECTION,) if options.objective is None else parse_objectives(options.objective),
        repeats=options.repeats,
        grace_epochs=DEFAULT_GRACE_EPOCHS if options.grace_epochs is None else options.grace_epochs,
        reduction_factor=DEFAULT_REDUCTION_FACTOR if options.reduction_factor is None else options.reduction_factor,
        time_budget_seconds=options.time_budget,
    )
    is_wish = options.scheduler is not None or options.grace_epochs is not None
    if is_wish and strategy.scheduler != "none" and not strategy.compares_in(space):
        raise InputError(
            f"--grace-epochs {strategy.grace_epochs}: trials run {space.max_epochs()} epochs at most (--max-epochs), so"
            f" {strategy.scheduler} would compare none. Lower it, or choose --scheduler none."
        )
    return strategy


def notes_on_scheduler(options: SearchOptions, space: SearchSpace, strategy: Strategy) -> list[str]:
    """Say in a line each where trials are stopped otherwise than one may expect from the options.

    Args:
        options: Those of a new search.
        space: What is tried.
        strategy: How, as it was chosen.
    """
    if strategy.scheduler == "none":
        notes = []
        if options.scheduler is None and not space.is_grid and space.has_epochs:
            reason = "several objectives" if not strategy.has_one_objective else "the seeds of a point (--repeats)"
            notes.append(f"Scheduler none: with {reason}, no trial is stopped early")
        unused = ["grace_epochs", "reduction_factor"]
    else:
        notes = []
        if not strategy.compares_in(space):
            notes.append(
                f"Scheduler {strategy.scheduler} stops no trial: trials are compared after {strategy.grace_epochs} epochs"
                f" (--grace-epochs), and none runs longer than {space.max_epochs()}"
            )
        unused = [] if strategy.scheduler == "asha" else ["reduction_factor"]
    flags = [OPTION_BY_NAME[name].flag for name in unused if getattr(options, name) is not None]
    return notes + [f"{flag} changes nothing with --scheduler {strategy.scheduler}" for flag in flags]


def check_trackers(options: SearchOptions) -> None:
    """Refuse a tracker whose package is not there.

    Raises:
        InputError: It has to be installed first.
    """
    for name in options.tracker:
        spec = find_spec(_PACKAGES_BY_TRACKER[name])
        if spec is None or spec.origin is None:  # no package, or only a folder of its name, such as W&B leaves behind
            raise InputError(
                f"--tracker {name} needs a package that is not installed. Install it: pip install 'tune-lung[{name}]'."
            )
