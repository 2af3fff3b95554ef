"""The options of `python -m tune_lung.search`, and what they mean: every value that a search is made of."""

import argparse
import math
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tune_lung.config import PROTOCOLS, PointValue, RunConfig, default_select_by, value_from_text
from tune_lung.errors import InputError
from tune_lung.results.layout import DEFAULT_KEEP, KEEPS
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
_LEAST_GPU_SHARE = 0.0001
"""What Ray divides a GPU into."""
_SECONDS_BY_UNIT = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


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
    group.add_argument("--space", default="freeze_grid", help="a shipped space or the path of a .py file (default: %(default)s)")
    group.add_argument("--list-spaces", action="store_true", help="name the shipped spaces and the question of each, and stop")
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="fix a field in every arm it applies to; repeatable"
    )
    group.add_argument(
        "--protocol", choices=PROTOCOLS, help="rules of loss, freezing, split and selection (default: the space's)"
    )
    group.add_argument(
        "--select-by", metavar="COLUMN", help="val_macro_recall (strict), val_micro_recall or val_loss (published)"
    )
    group.add_argument(
        "--objective",
        metavar="COLUMN:max,...",
        help="two or more numbers to trade off, such as val_macro_recall:max,trainable_params:min (default: the selection score)",
    )
    group.add_argument("--seed", type=int, default=0, help="root of every random choice (default: %(default)s)")


def _add_how(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--samples", type=int, metavar="N", help="points of each cell where a space samples (default: 32)")
    group.add_argument("--repeats", type=int, default=1, metavar="N", help="seeds of each point (default: %(default)s)")
    group.add_argument("--sampler", choices=SAMPLERS, help="who proposes points (default: tpe; a grid is run whole)")
    group.add_argument(
        "--scheduler", choices=SCHEDULERS, help="who stops trials early (default: asha where points are sampled, else none)"
    )
    group.add_argument(
        "--grace-epochs",
        type=int,
        default=DEFAULT_GRACE_EPOCHS,
        metavar="N",
        help="epochs before trials are compared (default: %(default)s)",
    )
    group.add_argument(
        "--reduction-factor",
        type=int,
        default=DEFAULT_REDUCTION_FACTOR,
        metavar="N",
        help="asha lets one trial in N go on (default: %(default)s)",
    )
    group.add_argument("--time-budget", metavar="TIME", help="start nothing new after it, such as 30m or 8h (default: no limit)")
    group.add_argument("--warm-start", type=Path, metavar="RUN", help="learn from an earlier run's trials, and repeat none")
    group.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with a run that was stopped; --samples, --repeats, --time-budget and --max-epochs may grow",
    )
    group.add_argument(
        "--allow-other-numbers",
        action="store_true",
        help="with --resume: go on with other threads, or another kind of device, though numbers differ; reports say so",
    )
    group.add_argument("--dry-run", action="store_true", help="say what it would try, take and need, and stop")


def _add_images(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data", type=Path, metavar="DIR", help="one folder per class (default: synthetic X-rays, made here)")
    group.add_argument("--image-size", type=int, default=128, metavar="PX", help="side in pixels (default: %(default)s)")
    group.add_argument("--limit", type=int, metavar="N", help="use N images at most, drawn class by class")
    group.add_argument("--strict-data", action="store_true", help="stop at a bad file instead of leaving it out")
    group.add_argument("--follow-links", action="store_true", help="follow links that lead out of the image folder")
    group.add_argument(
        "--cache", type=Path, metavar="DIR", help="where decoded pixels and features lie (default: the user's cache folder)"
    )
    group.add_argument("--cache-size", default="20GB", metavar="SIZE", help="room for them, such as 5GB (default: %(default)s)")


def _add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--weights", metavar="FROM", help="imagenet (with --data), random (without), a file, or a folder")
    group.add_argument("--max-epochs", type=int, metavar="N", help="epochs of a trial at most (default: the space's, else 100)")
    group.add_argument("--patience", type=int, metavar="N", help="epochs without a better score (default: the space's, else 20)")
    group.add_argument(
        "--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: bf16 where it is native, strict only"
    )


def _add_where(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--address", help="a running Ray cluster, such as auto (default: Ray on this machine alone)")
    group.add_argument("--cpus-per-trial", type=float, metavar="N", help="also a trial's torch threads (default: 1)")
    group.add_argument("--gpus-per-trial", type=float, metavar="N", help="default: 1 where nodes have GPUs, else 0")
    group.add_argument(
        "--hang-timeout",
        default="30m",
        metavar="TIME",
        help="a worker that finishes no batch for so long is ended, and its trial tried again (default: %(default)s)",
    )
    group.add_argument("--max-concurrent", type=int, metavar="N", help="trials at once at most (default: as many as fit)")


def _add_results(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="parent of runs (default: %(default)s)")
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
    return Strategy.for_space(
        space,
        sampler=options.sampler,
        scheduler=options.scheduler,
        samples=options.samples,
        objectives=(SELECTION,) if options.objective is None else parse_objectives(options.objective),
        repeats=options.repeats,
        grace_epochs=options.grace_epochs,
        reduction_factor=options.reduction_factor,
        time_budget_seconds=None if options.time_budget is None else seconds_of(options.time_budget),
    )


def check_resources(options: argparse.Namespace) -> None:
    """Refuse resources that no machine can give.

    Raises:
        InputError: A number is too small.
    """
    least = {"cpus_per_trial": 0.1, "gpus_per_trial": 0.0, "max_concurrent": 1}
    for name, lowest in least.items():
        value = getattr(options, name)
        if value is not None and not lowest <= value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} must be at least {lowest:g}, not {value:g}.")
    _check_gpus(options.gpus_per_trial)


def _check_gpus(wanted: float | None) -> None:
    """Refuse a share of GPUs that Ray never gives: it would be waited for without an end."""
    if wanted is None or _LEAST_GPU_SHARE <= wanted <= 1 or wanted == int(wanted):
        return
    raise InputError(
        f"--gpus-per-trial {wanted:g}: a trial takes a share of one GPU, {_LEAST_GPU_SHARE:g} to 1, or whole ones, such as 2."
    )


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


def bytes_of(text: str) -> int:
    """Read a size such as `5GB`.

    Raises:
        InputError: It is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not found:
        raise InputError(f"--cache-size {text}: write a number and a unit, such as 5GB, or 0.")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))


def seconds_of(text: str, option: str = "--time-budget") -> float:
    """Read a time such as `30m`.

    Raises:
        InputError: It is no time.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip(), re.IGNORECASE)
    if not found:
        raise InputError(f"{option} {text}: write a number and a unit, such as 90s, 30m, 8h or 2d.")
    return float(found[1]) * _SECONDS_BY_UNIT[found[2].lower()]
