"""Search for the network that finds lung disease on chest X-rays with the best recall for its cost.

python -m tune_lung.search --space freeze_grid                # synthetic X-rays, this machine
python -m tune_lung.search --space freeze_grid --data DIR     # your images, one folder per class
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.progress import Progress, TaskID

from tune_lung.config import PointValue, RunConfig, Split, TrialConfig
from tune_lung.errors import InputError, NoRoomError, exit_status
from tune_lung.files import shown_path
from tune_lung.search_options import (
    bytes_of,
    check_resources,
    check_trackers,
    run_config_of,
    search_parser,
    seconds_of,
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
    from tune_lung.results.manifest import Outcome
    from tune_lung.results.ownership import Ownership
    from tune_lung.results.reader import Run
    from tune_lung.resume_options import ResumedSearch
    from tune_lung.tuning.cluster import Resources
    from tune_lung.tuning.plan import DataRequest, SearchSetup
    from tune_lung.tuning.proposals.studies import KnownTrial
    from tune_lung.tuning.trial_record import EarlierAttempts, TrialRecord


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line without the program's name; None takes the process's own.

    Returns:
        0 when done; 1 when every trial failed, or the first ones with a bug; 2 for what the user can mend; 130 after Ctrl-C;
        143 when the system ended it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, console = search_parser(__doc__).parse_args(given), Console()
    if options.list_spaces:
        return exit_status(lambda: _list_spaces(console))
    if options.resume is not None:
        return exit_status(lambda: _resume(options.resume, given, console))
    return exit_status(lambda: _search(_new_search(options, given), console))


def _list_spaces(console: Console) -> int:
    files = shipped_space_files()
    width = max(map(len, files))
    for name, path in files.items():
        count = len(load_space(name).cells())
        console.print(f"{name:<{width}}  {count:>3} cells  {space_question(path)}", highlight=False, soft_wrap=True)
    return 0


@dataclass(frozen=True, kw_only=True)
class _Search:
    """What the command was asked for."""

    options: argparse.Namespace
    arguments: list[str]
    root: Path
    space: SearchSpace
    run: RunConfig
    strategy: Strategy
    teacher: "Run | None" = None
    """The run to learn from."""
    resumed: "ResumedSearch | None" = None
    """What goes on; None for a new run."""
    ownership: "Ownership | None" = None
    """Of the run that goes on."""


def _new_search(options: argparse.Namespace, arguments: list[str]) -> _Search:
    space = space_of(options)
    run = run_config_of(options, space)
    space.check(run)
    strategy = strategy_of(options, space)
    teacher = _teacher(options, space, strategy, run)
    root = _new_run_root(options, space)
    return _Search(options=options, arguments=arguments, root=root, space=space, run=run, strategy=strategy, teacher=teacher)


def _resume(root: Path, arguments: list[str], console: Console) -> int:
    from tune_lung.results.ownership import Ownership
    from tune_lung.resume_options import resumed_search

    resumed = resumed_search(root, arguments)
    with Ownership.claim(resumed.root, at_least=resumed.manifest["attempt"] + 1) as ownership:
        search = _Search(
            options=resumed.options,
            arguments=resumed.arguments,
            root=resumed.root,
            space=resumed.space,
            run=resumed.run,
            strategy=resumed.strategy,
            resumed=resumed,
            ownership=ownership,
        )
        return _search(search, console)


def _search(search: _Search, console: Console) -> int:
    started = time.monotonic()
    options = search.options
    check_resources(options)
    check_trackers(options)

    # Torch and Ray are imported late: --help, --list-spaces and a wrong option answer at once.
    from tune_lung.models.weights import resolve_weights
    from tune_lung.tuning.cluster import ray_session

    request = _data_request(options, search.run)
    request.check()
    origin = options.weights or ("imagenet" if options.data else "random")
    weights = resolve_weights(origin, [model for model in search.space.models() if model != "cnn"])
    with request.open_cache() as cache:
        asked = time.monotonic()
        prepared = _prepare(request, cache, console)
        store_seconds = time.monotonic() - asked
        _require_masks(search.space, prepared)
        with ray_session(options.address):
            search, setup, resources = _with_resources(search, request, prepared, weights)
            announcement = _announcement(search.space, search.strategy, setup, resources, prepared)
            _say(console, announcement)
            known = _known_trials(search, setup, console)
            if options.dry_run:
                return _dry_run(search, setup, resources, console)
            _warn_of_room(search, resources, len(prepared.classes), console)
            with _opened_ledger(search, setup, prepared, known) as (ledger, ownership, found):
                supervised = _Supervised(
                    search=search,
                    setup=replace(setup, attempt=ownership.attempt),
                    resources=resources,
                    ledger=ledger,
                    ownership=ownership,
                    known=known,
                    found=found,
                    seconds_before=(time.monotonic() - started - store_seconds, store_seconds),
                )
                status = _supervise(supervised, console)
    if status is not None:
        return status
    if not options.no_report:
        _report(search.root, console)
    _say(console, f"Run: {shown_path(search.root)}")
    return 0


def _with_resources(
    search: _Search, request: "DataRequest", prepared: "PreparedData", weights: "Mapping[str, WeightsSource]"
) -> "tuple[_Search, SearchSetup, Resources]":
    """Divide what Ray's nodes offer, and complete the search by what depends on that."""
    from tune_lung.tuning.cluster import plan_resources

    options = search.options
    resources = plan_resources(
        num_trials=search.strategy.num_trials(search.space),
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
        max_concurrent=options.max_concurrent,
        is_local=options.address is None,
    )
    if search.resumed is None:  # else the run's space has them
        on_gpu = resources.gpus_per_trial > 0
        search = replace(search, space=_with_numerics(search.space, options, search.run, weights, on_gpu=on_gpu))
    return search, _setup_of(search, request, prepared, weights, resources), resources


def _dry_run(search: _Search, setup: "SearchSetup", resources: "Resources", console: Console) -> int:
    from tune_lung.tuning.forecasting.dry_run import dry_run

    dry_run(search.space, search.strategy, setup, resources, console=console)
    return 0


def _warn_of_room(search: _Search, resources: "Resources", num_classes: int, console: Console) -> None:
    from tune_lung.tuning.cluster import node_offers
    from tune_lung.tuning.forecasting.room import warnings_of_room

    offers = node_offers(cpus_per_trial=resources.cpus_per_trial, gpus_per_trial=resources.gpus_per_trial)
    out = search.root.parent
    for warning in warnings_of_room(
        search.space, search.strategy, search.run, resources, offers, num_classes=num_classes, out=out
    ):
        _say(console, warning)


def _setup_of(
    search: _Search,
    request: "DataRequest",
    prepared: "PreparedData",
    weights: "Mapping[str, WeightsSource]",
    resources: "Resources",
) -> "SearchSetup":
    from tune_lung.tuning.plan import SearchSetup
    from tune_lung.tuning.scheduler import judged_epochs

    return SearchSetup(
        run=search.run,
        run_root=search.root,
        data=request,
        store=prepared.store,
        data_fingerprint=prepared.fingerprint,
        weights=weights,
        cpus_per_trial=resources.cpus_per_trial,
        gpus_per_trial=resources.gpus_per_trial,
        judged_epochs=judged_epochs(search.strategy, max_epochs=search.space.max_epochs()),
        profile=search.options.profile,
        has_time_budget=search.strategy.time_budget_seconds is not None,
        hang_seconds=seconds_of(search.options.hang_timeout, "--hang-timeout"),
    )


def _new_run_root(options: argparse.Namespace, space: SearchSpace) -> Path:
    run_root = options.out / (options.name or f"{space.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    if run_root.exists():
        raise InputError(
            f"The run '{run_root.name}' exists already. Go on with it (--resume), choose another --name, or remove it."
        )
    return Path(run_root).resolve()


def _teacher(options: argparse.Namespace, space: SearchSpace, strategy: Strategy, run: RunConfig) -> "Run | None":
    """Read the run to learn from, and refuse one that cannot be learnt from before anything is decoded."""
    if options.warm_start is None:
        return None
    from tune_lung.results.reader import read_run
    from tune_lung.tuning.proposals.warm_start import require_compatible

    teacher = read_run(options.warm_start, only=("trials", "epochs"))
    require_compatible(teacher, space, strategy, run)
    return teacher


def _known_trials(search: _Search, setup: "SearchSetup", console: Console) -> "list[KnownTrial]":
    """Say what the studies are taught before they propose: by another run, or by what this run was taught at its beginning."""
    from tune_lung.files import DamagedFileError, read_json_with_digest
    from tune_lung.results.layout import RunPaths
    from tune_lung.tuning.proposals.warm_start import known_trials, lesson, lessons_from_json

    if search.teacher is not None:
        known = known_trials(search.teacher, search.space, search.strategy, setup)
        console.print(lesson(known, search.teacher), markup=False, highlight=False, soft_wrap=True)
        return known
    try:
        return lessons_from_json(read_json_with_digest(RunPaths(search.root).lessons), search.space)
    except FileNotFoundError:
        return []
    except (DamagedFileError, OSError, KeyError):
        console.print("warm_start.json is damaged: going on without what the earlier run taught", highlight=False)
        return []


def _data_request(options: argparse.Namespace, run: RunConfig) -> "DataRequest":
    from tune_lung.tuning.plan import DataRequest

    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit must be at least 1, not {options.limit}.")
    return DataRequest(
        root=None if options.data is None else options.data.expanduser().resolve(),
        run=run,
        limit=options.limit,
        strict_data=options.strict_data,
        follow_links=options.follow_links,
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


@contextmanager
def _opened_ledger(
    search: _Search, setup: "SearchSetup", prepared: "PreparedData", known: "Sequence[KnownTrial]"
) -> "Iterator[tuple[Ledger, Ownership, Run | None]]":
    """Begin a run's ledger, or go on with it, as its one owner; give what earlier attempts left too."""
    from tune_lung.results.ledger import Ledger
    from tune_lung.results.manifest import resumed
    from tune_lung.results.ownership import Ownership
    from tune_lung.results.reader import read_run
    from tune_lung.resume_options import check_same_data, check_same_weights, remember_command

    sources = {model: {"kind": s.kind, "name": s.name, "sha256": s.sha256} for model, s in setup.weights.items()}
    if search.resumed is None or search.ownership is None:
        ledger = _new_ledger(search, setup, prepared, known, sources)
        remember_command(search.root, search.arguments, search.options)
        with Ownership.claim(search.root, at_least=1) as ownership:
            yield ledger, ownership, None
        return
    counts = {part: int((prepared.images["split"] == part).sum()) for part in get_args(Split)}
    check_same_data(search.resumed, fingerprint=prepared.fingerprint, counts=counts)
    check_same_weights(search.resumed, sources)
    found = read_run(search.root)
    ledger = Ledger.open(search.root, damaged=found.damaged)
    manifest = resumed(
        ledger.read_manifest(),
        attempt=search.ownership.attempt,
        arguments=search.arguments,
        space=search.space,
        strategy=search.strategy,
    )
    ledger.write_manifest(manifest)
    if not ledger.has_images():
        ledger.write_images(prepared.images)
    remember_command(search.root, search.arguments, search.options)
    yield ledger, search.ownership, found


def _new_ledger(
    search: _Search,
    setup: "SearchSetup",
    prepared: "PreparedData",
    known: "Sequence[KnownTrial]",
    sources: "Mapping[str, Mapping[str, str | None]]",
) -> "Ledger":
    from tune_lung.files import write_json_with_digest
    from tune_lung.results.ledger import Ledger
    from tune_lung.results.manifest import DataFacts, new_manifest
    from tune_lung.tuning.proposals.studies import sampler_options
    from tune_lung.tuning.proposals.warm_start import lessons_as_json

    facts = DataFacts(
        fingerprint=prepared.fingerprint,
        synthetic=prepared.synthetic,
        classes=prepared.classes,
        counts={part: int((prepared.images["split"] == part).sum()) for part in get_args(Split)},
    )
    manifest = new_manifest(
        name=search.root.name,
        arguments=search.arguments,
        space=search.space,
        strategy=search.strategy,
        sampler_options=sampler_options(search.strategy),
        run=setup.run,
        data=facts,
        weights=sources,
    )
    ledger = Ledger.create(search.root, {**manifest, "warm_start": search.teacher.name if search.teacher else None})
    if known:
        write_json_with_digest(ledger.paths.lessons, lessons_as_json(known))
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


@dataclass(frozen=True, kw_only=True)
class _Supervised:
    """A search with all that it needs, ready to begin or to go on."""

    search: _Search
    setup: "SearchSetup"
    resources: "Resources"
    ledger: "Ledger"
    ownership: "Ownership"
    known: "Sequence[KnownTrial]"
    found: "Run | None"
    """What earlier attempts left."""
    seconds_before: tuple[float, float]
    """What the start took, and the pixel store."""


def _supervise(supervised: _Supervised, console: Console) -> int | None:
    """Run the search and write its outcome into the manifest.

    Returns:
        The exit status; None when there is something to report.
    """
    from tune_lung.interrupts import interruptible
    from tune_lung.results.schema import TrialStatus
    from tune_lung.tuning.recorder import SearchHaltedError

    ledger, root = supervised.ledger, supervised.setup.run_root
    try:
        with interruptible():
            records = _run(supervised, console)
    except KeyboardInterrupt as interrupt:  # an Interrupted, or what Ray makes of one
        _write_end(ledger, "interrupted")
        _say(console, f"Stopped. All that was reported lies in {shown_path(root)}. To go on: --resume {shown_path(root)}")
        return int(getattr(interrupt, "exit_status", 130))
    except SearchHaltedError as error:
        _write_end(ledger, "failed")
        sys.stderr.write(f"error: {error}. The log above has its traceback. Mend it, and begin a new run.\n")
        return 1
    except NoRoomError:
        _write_end(ledger, "interrupted")
        _say(console, f"Stopped. All that was written lies in {shown_path(root)}. To go on: --resume {shown_path(root)}")
        raise
    except BaseException:
        _write_end(ledger, "failed")
        raise
    num_useful = sum(record.status in (TrialStatus.COMPLETED, TrialStatus.STOPPED) for record in records)
    _write_end(ledger, "completed" if num_useful else "failed")
    if num_useful:
        return None
    _say(console, f"Run: {shown_path(root)}")
    return 1


def _run(supervised: _Supervised, console: Console) -> "list[TrialRecord]":
    from tune_lung.results.schema import TimePart
    from tune_lung.tuning.resume import earlier_attempts
    from tune_lung.tuning.search_run import run_search

    search, found, earlier = supervised.search, supervised.found, None
    if found is not None:
        budget = search.strategy.time_budget_seconds
        is_time_left = budget is None or supervised.ownership.searched_seconds() < budget
        earlier = earlier_attempts(found, search.space, search.strategy, supervised.setup, is_time_left=is_time_left)
        _say(console, _told_of(earlier, found, attempt=supervised.ownership.attempt))
    start_seconds, store_seconds = supervised.seconds_before
    return run_search(
        search.space,
        search.strategy,
        supervised.setup,
        supervised.resources,
        supervised.ledger,
        ownership=supervised.ownership,
        console=console,
        known=supervised.known,
        earlier=earlier,
        trackers=search.options.tracker,
        before={TimePart.START: start_seconds, TimePart.STORE: store_seconds},
    )


def _told_of(earlier: "EarlierAttempts", found: "Run", *, attempt: int) -> str:
    """Say what an attempt goes on from."""
    from tune_lung.results.schema import TrialStatus

    num_open = sum(record.status is TrialStatus.RUNNING for record in earlier.records)
    lines = [f"Attempt {attempt}: {len(earlier.records) - num_open} trials have ended, {num_open} go on"]
    if found.damaged:
        lines.append(f"Damaged and passed over: {', '.join(found.damaged)}; what was in them is done again")
    return "\n".join(lines)


def _write_end(ledger: "Ledger", outcome: "Outcome") -> None:
    from tune_lung.results.manifest import ended

    try:
        ledger.write_manifest(ended(ledger.read_manifest(), outcome))
    except OSError:  # a full disk: the run stays `running` in its manifest, and can go on all the same
        return


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _report(run_root: Path, console: Console) -> None:
    from tune_lung.analysis.report import print_report

    print_report([run_root], console=console)


if __name__ == "__main__":
    sys.exit(main())
