"""Search for the network that finds lung disease on chest X-rays with the best recall for its cost.

python -m tune_lung.search --space freeze_grid                # synthetic X-rays, this machine
python -m tune_lung.search --space freeze_grid --data DIR     # your images, one folder per class
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.progress import Progress, TaskID

from tune_lung.config import PROTOCOLS, PointValue, RunConfig, Split, TrialConfig, default_select_by, value_from_text
from tune_lung.errors import InputError, exit_status
from tune_lung.files import shown_path
from tune_lung.space import SearchSpace, load_space, shipped_space_files, space_question

if TYPE_CHECKING:
    from tune_lung.data.cache import Cache
    from tune_lung.data.prepare import PreparedData
    from tune_lung.models.weights import WeightsSource
    from tune_lung.results.ledger import Ledger
    from tune_lung.tuning.cluster import Resources
    from tune_lung.tuning.plan import DataRequest, SearchSetup

_OPTION_BY_FIELD = {
    "max_epochs": "--max-epochs",
    "patience": "--patience",
    "precision": "--precision",
    "weights": "--weights",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line without the program's name; None takes the process's own.

    Returns:
        0 when done; 1 when every trial failed; 2 for what the user can mend; 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, console = _parser().parse_args(given), Console()
    if options.list_spaces:
        return exit_status(lambda: _list_spaces(console))
    return exit_status(lambda: _search(options, given, console))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tune_lung.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Not for clinical use. A run's tables are Parquet files that pandas reads; see the README for their columns.",
    )
    what = parser.add_argument_group("what is searched")
    what.add_argument("--space", default="freeze_grid", help="a shipped space or the path of a .py file (default: %(default)s)")
    what.add_argument("--list-spaces", action="store_true", help="name the shipped spaces and the question of each, and stop")
    what.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="fix a field in every arm it applies to; repeatable"
    )
    what.add_argument("--protocol", choices=PROTOCOLS, help="rules of loss, freezing, split and selection (default: the space's)")
    what.add_argument("--select-by", metavar="COLUMN", help="val_macro_recall (strict), val_micro_recall or val_loss (published)")
    what.add_argument("--seed", type=int, default=0, help="root of every random choice (default: %(default)s)")

    data = parser.add_argument_group("images")
    data.add_argument("--data", type=Path, metavar="DIR", help="one folder per class (default: synthetic X-rays, made here)")
    data.add_argument("--image-size", type=int, default=128, metavar="PX", help="side in pixels (default: %(default)s)")
    data.add_argument("--limit", type=int, metavar="N", help="use N images at most, drawn class by class")
    data.add_argument("--strict-data", action="store_true", help="stop at a bad file instead of leaving it out")
    data.add_argument("--cache", type=Path, metavar="DIR", help="where decoded pixels lie (default: the user's cache folder)")
    data.add_argument("--cache-size", default="20GB", metavar="SIZE", help="room for them, such as 5GB (default: %(default)s)")

    training = parser.add_argument_group("training")
    training.add_argument("--weights", metavar="FROM", help="imagenet (with --data), random (without), a file, or a folder")
    training.add_argument(
        "--max-epochs", type=int, metavar="N", help="epochs of a trial at most (default: the space's, else 100)"
    )
    training.add_argument(
        "--patience", type=int, metavar="N", help="epochs without a better score (default: the space's, else 20)"
    )
    training.add_argument(
        "--precision", choices=("auto", "bf16", "fp32"), default="auto", help="auto: bf16 where it is native, strict only"
    )

    where = parser.add_argument_group("where it runs")
    where.add_argument("--address", help="a running Ray cluster, such as auto (default: Ray on this machine alone)")
    where.add_argument("--cpus-per-trial", type=float, metavar="N", help="also a trial's torch threads (default: 1)")
    where.add_argument("--gpus-per-trial", type=float, metavar="N", help="default: 1 where nodes have GPUs, else 0")
    where.add_argument("--max-concurrent", type=int, metavar="N", help="trials at once at most (default: as many as fit)")

    result = parser.add_argument_group("results")
    result.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="parent of runs (default: %(default)s)")
    result.add_argument("--name", help="the run's folder (default: space and UTC time)")
    result.add_argument("--no-report", action="store_true", help="draw no figures at the end")
    return parser


def _list_spaces(console: Console) -> int:
    files = shipped_space_files()
    width = max(map(len, files))
    for name, path in files.items():
        count = len(load_space(name).cells())
        console.print(f"{name:<{width}}  {count:>3} cells  {space_question(path)}", highlight=False, soft_wrap=True)
    return 0


def _search(options: argparse.Namespace, arguments: list[str], console: Console) -> int:
    space = _space_of(options)
    run = _run_config(options, space)
    for cell in space.cells():
        run.check_fits(TrialConfig.from_point(cell.point))
    _check_resources(options)
    run_root = _new_run_root(options, space)

    # Torch and Ray are imported late: --help, --list-spaces and a wrong option answer at once.
    from tune_lung.models.weights import resolve_weights
    from tune_lung.tuning.cluster import plan_resources, ray_session
    from tune_lung.tuning.plan import SearchSetup

    request = _data_request(options, run)
    request.check()
    origin = options.weights or ("imagenet" if options.data else "random")
    weights = resolve_weights(origin, [model for model in space.models() if model != "cnn"])
    with request.open_cache() as cache:
        prepared = _prepare(request, cache, console)
        _require_masks(space, prepared)
        with ray_session(options.address):
            resources = plan_resources(
                num_trials=len(space.cells()),
                cpus_per_trial=options.cpus_per_trial,
                gpus_per_trial=options.gpus_per_trial,
                max_concurrent=options.max_concurrent,
                is_local=options.address is None,
            )
            space = _with_numerics(space, options, run, weights, on_gpu=resources.gpus_per_trial > 0)
            setup = SearchSetup(
                run=run,
                run_root=run_root,
                data=request,
                store=prepared.store,
                data_fingerprint=prepared.fingerprint,
                weights=weights,
                cpus_per_trial=resources.cpus_per_trial,
                gpus_per_trial=resources.gpus_per_trial,
            )
            ledger = _new_ledger(run_root, arguments, space, setup, prepared)
            console.print(_announcement(space, setup, resources, prepared), highlight=False, soft_wrap=True)
            num_completed = _supervise(space, setup, resources, ledger, console)
    if num_completed is None:
        return 130
    if num_completed and not options.no_report:
        _report(run_root, console)
    console.print(f"Run: {shown_path(run_root)}", highlight=False, soft_wrap=True)
    return 0 if num_completed else 1


def _space_of(options: argparse.Namespace) -> SearchSpace:
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
    space = load_space(options.space).with_fixed(fixed)
    space.check()
    return space


def _run_config(options: argparse.Namespace, space: SearchSpace) -> RunConfig:
    protocol = options.protocol or space.protocol
    select_by = options.select_by or default_select_by(protocol)
    return RunConfig(protocol=protocol, image_size=options.image_size, select_by=select_by, seed=options.seed)


def _check_resources(options: argparse.Namespace) -> None:
    least = {"cpus_per_trial": 0.1, "gpus_per_trial": 0.0, "max_concurrent": 1}
    for name, lowest in least.items():
        value = getattr(options, name)
        if value is not None and not value >= lowest:
            raise InputError(f"--{name.replace('_', '-')} must be at least {lowest:g}, not {value:g}.")


def _new_run_root(options: argparse.Namespace, space: SearchSpace) -> Path:
    run_root = options.out / (options.name or f"{space.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    if run_root.exists():
        raise InputError(f"The run '{run_root.name}' exists already. Choose another --name or remove it.")
    return Path(run_root).resolve()


def _data_request(options: argparse.Namespace, run: RunConfig) -> "DataRequest":
    from tune_lung.tuning.plan import DataRequest

    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit must be at least 1, not {options.limit}.")
    return DataRequest(
        root=None if options.data is None else options.data.expanduser().resolve(),
        run=run,
        limit=options.limit,
        strict_data=options.strict_data,
        cache_root=None if options.cache is None else options.cache.expanduser().resolve(),
        cache_size_bytes=_bytes_of(options.cache_size),
    )


def _bytes_of(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not found:
        raise InputError(f"--cache-size {text}: write a number and a unit, such as 5GB, or 0.")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2].upper() or " "))


def _prepare(request: "DataRequest", cache: "Cache", console: Console) -> "PreparedData":
    with Progress(*Progress.get_default_columns(), console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        return request.prepare(cache, show)


def _require_masks(space: SearchSpace, prepared: "PreparedData") -> None:
    """Refuse a space with masked input where an image has no mask: it would be shown whole, or not at all."""
    from tune_lung.data.store import PixelStore

    inputs = {TrialConfig.from_point(cell.point).input for cell in space.cells()} - {"full"}
    store = PixelStore.open(prepared.store)
    num_missing = sum(store.num_images.values()) - sum(store.num_masks.values())
    if inputs and num_missing:
        raise InputError(
            f"input {' and '.join(sorted(inputs))} needs a lung mask for every image, and {num_missing} of"
            f" {sum(store.num_images.values())} have none. Add masks, or use --set input=full."
        )


def _with_numerics(
    space: SearchSpace, options: argparse.Namespace, run: RunConfig, weights: "Mapping[str, WeightsSource]", *, on_gpu: bool
) -> SearchSpace:
    """Write into every arm how its numbers are computed and where its weights come from."""
    import torch

    from tune_lung.models.precision import supports_bf16

    precision = options.precision
    if precision == "auto":
        is_native = supports_bf16(torch.device("cuda" if on_gpu and torch.cuda.is_available() else "cpu"))
        precision = "bf16" if run.protocol == "strict" and (is_native or on_gpu) else "fp32"
    fixed: dict[str, PointValue] = {"precision": precision}
    if weights:
        fixed["weights"] = next(iter(weights.values())).kind
    return space.with_fixed(fixed)


def _new_ledger(
    run_root: Path, arguments: list[str], space: SearchSpace, setup: "SearchSetup", prepared: "PreparedData"
) -> "Ledger":
    from tune_lung.results.ledger import Ledger
    from tune_lung.results.manifest import DataFacts, new_manifest

    facts = DataFacts(
        fingerprint=prepared.fingerprint,
        synthetic=prepared.synthetic,
        classes=prepared.classes,
        counts={part: int((prepared.images["split"] == part).sum()) for part in get_args(Split)},
    )
    sources = {model: {"kind": s.kind, "name": s.name, "sha256": s.sha256} for model, s in setup.weights.items()}
    manifest = new_manifest(name=run_root.name, arguments=arguments, space=space, run=setup.run, data=facts, weights=sources)
    ledger = Ledger.create(run_root, manifest)
    ledger.write_images(prepared.images)
    return ledger


def _announcement(space: SearchSpace, setup: "SearchSetup", resources: "Resources", prepared: "PreparedData") -> str:
    from tune_lung.data.exclusion import ExclusionReason

    images = prepared.images
    parts = ", ".join(f"{(images['split'] == part).sum()} {part}" for part in get_args(Split))
    lines = [
        f"{'Synthetic X-rays' if prepared.synthetic else 'X-rays'}: {parts}; {len(prepared.classes)} classes;"
        f" {setup.run.image_size} px; protocol {setup.run.protocol}",
        f"{len(space.cells())} trials, {resources.max_concurrent} at once, each with {resources.cpus_per_trial:g} CPU"
        + (f" and {resources.gpus_per_trial:g} GPU" if resources.gpus_per_trial else ""),
    ]
    reasons = images["excluded_reason"].dropna()
    left_out = reasons[[ExclusionReason(reason).is_bad for reason in reasons]].value_counts()
    if len(left_out):
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        lines.insert(1, f"{left_out.sum()} files left out ({counts}); the run's table images names them")
    return "\n".join(lines)


def _supervise(
    space: SearchSpace, setup: "SearchSetup", resources: "Resources", ledger: "Ledger", console: Console
) -> int | None:
    """Run the search and write its outcome into the manifest.

    Returns:
        The number of completed trials; None after Ctrl-C.
    """
    from tune_lung.results.manifest import ended
    from tune_lung.results.schema import TrialStatus
    from tune_lung.tuning.search_run import run_search

    try:
        records = run_search(space, setup, resources, ledger, console=console)
    except KeyboardInterrupt:
        ledger.write_manifest(ended(ledger.read_manifest(), "interrupted"))
        console.print(
            f"Stopped. All that was reported lies in {shown_path(setup.run_root)}. Going on where it stopped (--resume)"
            " is not there yet: start the command again under another --name.",
            highlight=False,
            soft_wrap=True,
        )
        return None
    except BaseException:
        ledger.write_manifest(ended(ledger.read_manifest(), "failed"))
        raise
    num_completed = sum(record.status is TrialStatus.COMPLETED for record in records)
    ledger.write_manifest(ended(ledger.read_manifest(), "completed" if num_completed else "failed"))
    return num_completed


def _report(run_root: Path, console: Console) -> None:
    from tune_lung.analysis.report import print_report

    print_report([run_root], console=console)


if __name__ == "__main__":
    sys.exit(main())
