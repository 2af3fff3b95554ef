"""The options of `python -m tune_lung.search`, and what they mean: every value that a search is made of."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tune_lung.config import PROTOCOLS, RunConfig, default_select_by, value_from_text
from tune_lung.data.cache import DEFAULT_SIZE_BYTES
from tune_lung.errors import InputError
from tune_lung.families.family import PointValue
from tune_lung.metrics import names_to_choose
from tune_lung.results.layout import DEFAULT_KEEP, KEEPS
from tune_lung.search.option_rules import add_value, rule_of
from tune_lung.space import SearchSpace
from tune_lung.space_files import load_space
from tune_lung.strategy import (
    DEFAULT_GRACE_EPOCHS,
    DEFAULT_REDUCTION_FACTOR,
    SAMPLERS,
    SCHEDULERS,
    SELECTION,
    Strategy,
    parse_objectives,
)

_UNNAMED = object()
_OPTION_BY_FIELD = {
    "max_epochs": "--max-epochs",
    "patience": "--patience",
    "precision": "--precision",
    "weights": "--weights",
}
_PACKAGES_BY_TRACKER = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
_DEFAULT_HANG_SECONDS = 30 * 60.0


def search_parser(description: str | None, *, program: str = "python -m tune_lung.search") -> argparse.ArgumentParser:
    """Make the command's parser.

    Args:
        description: Stands above the options in `--help`.
        program: What the user calls the command.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Not for clinical use. A run's tables are Parquet files that pandas reads; see the README for their columns.",
    )
    _add_what(parser.add_argument_group("what is searched"))
    _add_how(parser.add_argument_group("how it is searched"))
    _add_images(parser.add_argument_group("images"))
    _add_training(parser.add_argument_group("training"))
    _add_where(parser.add_argument_group("where it runs"))
    _add_results(parser.add_argument_group("results"))
    return parser


def _add_what(group: argparse._ArgumentGroup) -> None:
    add_value(group, "space", default="freeze_grid", text="a shipped space or the path of a .py file (default: %(default)s)")
    group.add_argument("--list-spaces", action="store_true", help="name the shipped spaces and the question of each, and stop")
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="fix a field in every arm it applies to; repeatable"
    )
    group.add_argument(
        "--protocol", choices=PROTOCOLS, help="rules of loss, freezing, split and selection (default: the space's)"
    )
    add_value(
        group,
        "select_by",
        metavar="COLUMN",
        text=f"what decides: {', '.join(names_to_choose())} (default: val_macro_recall; published: val_loss)",
    )
    add_value(
        group,
        "objective",
        metavar="COLUMN:max,...",
        text="two or more numbers to trade off, such as val_macro_recall:max,trainable_params:min (default: the selection score)",
    )
    add_value(group, "seed", default=0, text="root of every random choice (default: %(default)s)")


def _add_how(group: argparse._ArgumentGroup) -> None:
    add_value(group, "samples", metavar="N", text="points of each cell where a space samples (default: 32)")
    add_value(group, "repeats", default=1, metavar="N", text="seeds of each point (default: %(default)s)")
    group.add_argument("--sampler", choices=SAMPLERS, help="who proposes points (default: tpe; a grid is run whole)")
    group.add_argument(
        "--scheduler", choices=SCHEDULERS, help="who stops trials early (default: asha where points are sampled, else none)"
    )
    add_value(
        group,
        "grace_epochs",
        metavar="N",
        text=f"epochs before trials are compared (default: {DEFAULT_GRACE_EPOCHS})",
    )
    add_value(
        group,
        "reduction_factor",
        metavar="N",
        text=f"asha lets one trial in N go on (default: {DEFAULT_REDUCTION_FACTOR})",
    )
    add_value(group, "time_budget", metavar="TIME", text="start nothing new after it, such as 30m or 8h (default: no limit)")
    add_value(group, "warm_start", metavar="RUN", text="learn from an earlier run's trials, and repeat none")
    add_value(
        group,
        "resume",
        metavar="RUN",
        text="go on with a run that was stopped; --samples, --repeats, --time-budget and --max-epochs may grow",
    )
    group.add_argument(
        "--allow-other-numbers",
        action="store_true",
        help="with --resume: go on with other threads, or another kind of device, though numbers differ; reports say so",
    )
    group.add_argument("--dry-run", action="store_true", help="say what it would try, take and need, and stop")


def _add_images(group: argparse._ArgumentGroup) -> None:
    add_value(group, "data", metavar="DIR", text="one folder per class (default: synthetic X-rays, made here)")
    add_value(group, "image_size", default=128, metavar="PX", text="side in pixels (default: %(default)s)")
    add_value(group, "limit", metavar="N", text="use N images at most, drawn class by class")
    group.add_argument("--strict-data", action="store_true", help="stop at a bad file instead of leaving it out")
    group.add_argument("--follow-links", action="store_true", help="follow links that lead out of the image folder")
    add_value(group, "cache", metavar="DIR", text="where decoded pixels and features lie (default: the user's cache folder)")
    add_value(
        group,
        "cache_size",
        default=DEFAULT_SIZE_BYTES,
        metavar="SIZE",
        text="room for them, such as 5GB (default: 20GB)",
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    add_value(group, "weights", metavar="FROM", text="imagenet (with --data), random (without), a file, or a folder")
    add_value(group, "max_epochs", metavar="N", text="epochs of a trial at most (default: the space's, else 100)")
    add_value(group, "patience", metavar="N", text="epochs without a better score (default: the space's, else 20)")
    group.add_argument(
        "--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: bf16 where it is native, strict only"
    )


def _add_where(group: argparse._ArgumentGroup) -> None:
    add_value(group, "address", text="a running Ray cluster, such as auto (default: Ray on this machine alone)")
    add_value(group, "cpus_per_trial", metavar="N", text="also a trial's torch threads (default: 1)")
    add_value(group, "gpus_per_trial", metavar="N", text="default: 1 where nodes have GPUs, else 0")
    add_value(
        group,
        "hang_timeout",
        default=_DEFAULT_HANG_SECONDS,
        metavar="TIME",
        text="a worker that finishes no batch for so long is ended, and its trial tried again (default: 30m)",
    )
    add_value(group, "max_concurrent", metavar="N", text="trials at once at most (default: as many as fit)")


def _add_results(group: argparse._ArgumentGroup) -> None:
    add_value(group, "out", default=Path("runs"), metavar="DIR", text="parent of runs (default: %(default)s)")
    group.add_argument("--name", help="the run's folder (default: space and UTC time, and a number where that is taken)")
    group.add_argument(
        "--tracker",
        action="append",
        default=[],
        choices=_PACKAGES_BY_TRACKER,
        help="tell another tool of every epoch; repeatable",
    )
    group.add_argument(
        "--keep",
        choices=KEEPS,
        default=DEFAULT_KEEP,
        help="networks that stay: of each cell's best and first point and of the front, of every trial (best), or all with what"
        " training goes on from (default: %(default)s)",
    )
    group.add_argument("--profile", action="store_true", help="write down where each trial's time goes, and draw it")
    group.add_argument("--no-report", action="store_true", help="draw no figures at the end")


def given_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Read only what a command line names, no defaults."""
    parser = search_parser(None)
    unnamed = {name: [] if isinstance(default, list) else _UNNAMED for name, default in vars(parser.parse_args([])).items()}
    found = vars(parser.parse_args(arguments, argparse.Namespace(**unnamed)))
    return {name: value for name, value in found.items() if value not in (_UNNAMED, [])}


def space_of(options: argparse.Namespace) -> SearchSpace:
    """Load the space, with the fields that options fix.

    Raises:
        InputError: The space, or a field, is wrong.
    """
    return with_fixed_fields(load_space(options.space), options)


def with_fixed_fields(space: SearchSpace, options: argparse.Namespace) -> SearchSpace:
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
        if name in _OPTION_BY_FIELD:
            raise InputError(f"--set {name}: use {_OPTION_BY_FIELD[name]} instead.")
        fixed[name] = value_from_text(name, value)
    for name in ("max_epochs", "patience"):
        if getattr(options, name) is not None:
            fixed[name] = getattr(options, name)
    return space.with_fixed(fixed)


def run_config_of(options: argparse.Namespace, space: SearchSpace) -> RunConfig:
    """Read what all trials of the run share.

    Raises:
        InputError: A value is out of range.
    """
    protocol = options.protocol or space.protocol
    select_by = options.select_by or default_select_by(protocol)
    return RunConfig(protocol=protocol, image_size=options.image_size, select_by=select_by, seed=options.seed)


def strategy_of(options: argparse.Namespace, space: SearchSpace) -> Strategy:
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


def notes_on_scheduler(options: argparse.Namespace, space: SearchSpace, strategy: Strategy) -> list[str]:
    """Say in a line each where trials are stopped otherwise than one may expect from the options.

    Args:
        options: Those of a new search.
        space: What is tried.
        strategy: How, as it was chosen.
    """
    if strategy.scheduler == "none":
        notes = []
        if options.scheduler is None and not space.is_grid:
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
    flags = [rule_of(name).flag for name in unused if getattr(options, name) is not None]
    return notes + [f"{flag} changes nothing with --scheduler {strategy.scheduler}" for flag in flags]


def check_trackers(options: argparse.Namespace) -> None:
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
