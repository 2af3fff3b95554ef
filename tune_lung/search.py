"""Search for the network that finds lung disease on chest X-rays with the best recall for its cost.

python -m tune_lung.search --space freeze_grid                # synthetic X-rays, this machine
python -m tune_lung.search --space freeze_grid --data DIR     # your images, one folder per class
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.progress import Progress, TaskID

from tune_lung.config import PointValue, RunConfig, Split, TrialConfig
from tune_lung.errors import InputError, exit_status
from tune_lung.files import shown_path
from tune_lung.search_options import (
    bytes_of,
    check_resources,
    check_trackers,
    run_config_of,
    search_parser,
    space_of,
    strategy_of,
)
from tune_lung.space import SearchSpace
from tune_lung.space_files import load_space, shipped_space_files, space_question
from tune_lung.strategy import Strategy

if TYPE_CHECKING:
    from tune_lung.data.cache import Cache
    from tune_lung.data.prepare import PreparedData
    from tune_lung.models.weights import WeightsSource
    from tune_lung.results.ledger import Ledger
    from tune_lung.results.reader import Run
    from tune_lung.results.schema import TimePart
    from tune_lung.tuning.cluster import Resources
    from tune_lung.tuning.plan import DataRequest, SearchSetup
    from tune_lung.tuning.proposals.studies import KnownTrial


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line without the program's name; None takes the process's own.

    Returns:
        0 when done; 1 when every trial failed; 2 for what the user can mend; 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, console = search_parser(__doc__).parse_args(given), Console()
    if options.list_spaces:
        return exit_status(lambda: _list_spaces(console))
    return exit_status(lambda: _search(options, given, console))


def _list_spaces(console: Console) -> int:
    files = shipped_space_files()
    width = max(map(len, files))
    for name, path in files.items():
        count = len(load_space(name).cells())
        console.print(f"{name:<{width}}  {count:>3} cells  {space_question(path)}", highlight=False, soft_wrap=True)
    return 0


def _search(options: argparse.Namespace, arguments: list[str], console: Console) -> int:
    started = time.monotonic()
    space = space_of(options)
    run = run_config_of(options, space)
    space.check(run)
    strategy = strategy_of(options, space)
    check_resources(options)
    check_trackers(options)
    earlier = _earlier_run(options, space, strategy, run)
    run_root = _new_run_root(options, space)

    # Torch and Ray are imported late: --help, --list-spaces and a wrong option answer at once.
    from tune_lung.models.weights import resolve_weights
    from tune_lung.results.schema import TimePart
    from tune_lung.tuning.cluster import plan_resources, ray_session
    from tune_lung.tuning.forecasting.dry_run import dry_run
    from tune_lung.tuning.plan import SearchSetup
    from tune_lung.tuning.scheduler import judged_epochs

    request = _data_request(options, run)
    request.check()
    origin = options.weights or ("imagenet" if options.data else "random")
    weights = resolve_weights(origin, [model for model in space.models() if model != "cnn"])
    with request.open_cache() as cache:
        asked = time.monotonic()
        prepared = _prepare(request, cache, console)
        store_seconds = time.monotonic() - asked
        _require_masks(space, prepared)
        with ray_session(options.address):
            resources = plan_resources(
                num_trials=strategy.num_trials(space),
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
                judged_epochs=judged_epochs(strategy, max_epochs=space.max_epochs()),
                profile=options.profile,
            )
            announcement = _announcement(space, strategy, setup, resources, prepared)
            console.print(announcement, highlight=False, soft_wrap=True)
            known = _known_trials(earlier, space, strategy, setup, console)
            if options.dry_run:
                dry_run(space, strategy, setup, resources, console=console)
                return 0
            ledger = _new_ledger(run_root, arguments, space, strategy, setup, prepared, earlier)
            start_seconds = time.monotonic() - started - store_seconds
            before = {TimePart.START: start_seconds, TimePart.STORE: store_seconds}
            num_completed = _supervise(space, strategy, setup, resources, ledger, console, known, options.tracker, before)
    if num_completed is None:
        return 130
    if num_completed and not options.no_report:
        _report(run_root, console)
    console.print(f"Run: {shown_path(run_root)}", highlight=False, soft_wrap=True)
    return 0 if num_completed else 1


def _new_run_root(options: argparse.Namespace, space: SearchSpace) -> Path:
    run_root = options.out / (options.name or f"{space.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    if run_root.exists():
        raise InputError(f"The run '{run_root.name}' exists already. Choose another --name or remove it.")
    return Path(run_root).resolve()


def _earlier_run(options: argparse.Namespace, space: SearchSpace, strategy: Strategy, run: RunConfig) -> "Run | None":
    """Read the run to learn from, and refuse one that cannot be learnt from before anything is decoded."""
    if options.warm_start is None:
        return None
    from tune_lung.results.reader import read_run
    from tune_lung.tuning.proposals.warm_start import require_compatible

    earlier = read_run(options.warm_start, only=("trials", "epochs"))
    require_compatible(earlier, space, strategy, run)
    return earlier


def _known_trials(
    earlier: "Run | None", space: SearchSpace, strategy: Strategy, setup: "SearchSetup", console: Console
) -> "list[KnownTrial]":
    from tune_lung.tuning.proposals.warm_start import known_trials, lesson

    if earlier is None:
        return []
    known = known_trials(earlier, space, strategy, setup)
    console.print(lesson(known, earlier), markup=False, highlight=False, soft_wrap=True)
    return known


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
        cache_size_bytes=bytes_of(options.cache_size),
    )


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

    inputs = {TrialConfig.from_point(point).input for cell in space.cells() for point in cell.probes()} - {"full"}
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
    run_root: Path,
    arguments: list[str],
    space: SearchSpace,
    strategy: Strategy,
    setup: "SearchSetup",
    prepared: "PreparedData",
    earlier: "Run | None",
) -> "Ledger":
    from tune_lung.results.ledger import Ledger
    from tune_lung.results.manifest import DataFacts, new_manifest
    from tune_lung.tuning.proposals.studies import sampler_options

    facts = DataFacts(
        fingerprint=prepared.fingerprint,
        synthetic=prepared.synthetic,
        classes=prepared.classes,
        counts={part: int((prepared.images["split"] == part).sum()) for part in get_args(Split)},
    )
    sources = {model: {"kind": s.kind, "name": s.name, "sha256": s.sha256} for model, s in setup.weights.items()}
    manifest = new_manifest(
        name=run_root.name,
        arguments=arguments,
        space=space,
        strategy=strategy,
        sampler_options=sampler_options(strategy),
        run=setup.run,
        data=facts,
        weights=sources,
    )
    ledger = Ledger.create(run_root, {**manifest, "warm_start": earlier.name if earlier else None})
    ledger.write_images(prepared.images)
    return ledger


def _announcement(
    space: SearchSpace, strategy: Strategy, setup: "SearchSetup", resources: "Resources", prepared: "PreparedData"
) -> str:
    from tune_lung.data.exclusion import ExclusionReason

    images = prepared.images
    parts = ", ".join(f"{(images['split'] == part).sum()} {part}" for part in get_args(Split))
    lines = [
        f"{'Synthetic X-rays' if prepared.synthetic else 'X-rays'}: {parts}; {len(prepared.classes)} classes;"
        f" {setup.run.image_size} px; protocol {setup.run.protocol}",
        f"{strategy.num_trials(space)} trials, {resources.max_concurrent} at once, each with {resources.cpus_per_trial:g} CPU"
        + (f" and {resources.gpus_per_trial:g} GPU" if resources.gpus_per_trial else ""),
    ]
    reasons = images["excluded_reason"].dropna()
    left_out = reasons[[ExclusionReason(reason).is_bad for reason in reasons]].value_counts()
    if len(left_out):
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        lines.insert(1, f"{left_out.sum()} files left out ({counts}); the run's table images names them")
    return "\n".join(lines)


def _supervise(
    space: SearchSpace,
    strategy: Strategy,
    setup: "SearchSetup",
    resources: "Resources",
    ledger: "Ledger",
    console: Console,
    known: "Sequence[KnownTrial]",
    trackers: Sequence[str],
    before: "Mapping[TimePart, float]",
) -> int | None:
    """Run the search and write its outcome into the manifest.

    Returns:
        The number of completed trials; None after Ctrl-C.
    """
    from tune_lung.results.manifest import ended
    from tune_lung.results.schema import TrialStatus
    from tune_lung.tuning.search_run import run_search

    try:
        records = run_search(
            space, strategy, setup, resources, ledger, console=console, known=known, trackers=trackers, before=before
        )
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
