"""A search from its request to its end: images, weights, Ray, the ledger, and the search itself.

It loads torch and Ray; what can be refused without them is refused before.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from tune_lung.config import DEFAULT_CPUS_PER_TRIAL, DeviceKind, RunConfig, Split, TrialConfig, torch_threads
from tune_lung.data.cache import Cache
from tune_lung.data.depth import MIXED_DEPTHS
from tune_lung.data.exclusion import ExclusionReason
from tune_lung.data.prepare import PreparedData
from tune_lung.data.scan import ImageChoice
from tune_lung.data.store import PixelStore
from tune_lung.errors import InputError, did_you_mean
from tune_lung.families.family import PointValue
from tune_lung.files import DamagedFileError, read_json_with_digest
from tune_lung.metrics import class_of
from tune_lung.models.precision import supports_bf16
from tune_lung.models.weights import WeightsSource, resolve_weights
from tune_lung.results.layout import RunPaths
from tune_lung.results.ledger import Ledger
from tune_lung.screen import say
from tune_lung.search.interpretation import notes_on_scheduler
from tune_lung.search.request import SearchRequest
from tune_lung.search.resume_options import ResumedSearch, check_same_numbers
from tune_lung.search.supervision import Supervised, opened_ledger, supervise
from tune_lung.space import SearchSpace
from tune_lung.tuning.cluster import (
    Resources,
    node_offers,
    plan_resources,
    ray_here,
    ray_session,
    require_cluster,
    require_fits,
    require_on_this_machine,
    room_on_nodes,
    temporary_folder,
)
from tune_lung.tuning.forecasting.dry_run import dry_run
from tune_lung.tuning.forecasting.room import warnings_of_room
from tune_lung.tuning.plan import DataRequest, SearchSetup
from tune_lung.tuning.proposals.studies import KnownTrial
from tune_lung.tuning.proposals.warm_start import MOST_LESSONS_BYTES, known_trials, lesson, lessons_from_json
from tune_lung.tuning.scheduler import judged_epochs
from tune_lung.tuning.search_plan import SearchPlan
from tune_lung.tuning.survey import Survey, survey_devices
from tune_lung.tuning.watching.trackers import require_trackers


class SearchEnd(NamedTuple):
    """How a search has ended."""

    status: int
    """The command's exit status."""
    root: Path | None
    """The run's folder; None where none was begun, as of a dry run."""


def search(request: SearchRequest, console: Console, report: Callable[[Ledger], None]) -> SearchEnd:
    """Do what was asked for.

    Args:
        request: The search.
        console: Where to tell of it.
        report: Tells of the run when there is something to report: without Ray, and with the run still owned.

    Raises:
        InputError: Images, weights, resources or room are not there; a run that was begun can go on.
        SupersededError: Another search has taken the run over.
        KeyboardInterrupt: A guest was interrupted; of a command that is a status.
        SearchHaltedError: The first trials of a guest have all failed with what the others would meet too; likewise.
    """
    with ExitStack() as owned:
        ledger, status = _searched(request, console, owned)
        if status is None and ledger is not None:
            report(ledger)
        return SearchEnd(status or 0, None if ledger is None else ledger.paths.root)


def _searched(request: SearchRequest, console: Console, owned: ExitStack) -> tuple[Ledger | None, int | None]:
    """Search; return the run's ledger, if there is one, and the exit status, None when there is something to report.

    What lets the run go is left to `owned`.
    """
    started = time.monotonic()
    options = request.options
    if request.resumed is not None:
        _require_same_numbers(request, request.resumed)
    _require_nodes(request)
    say(console, *require_trackers(options.tracker))
    data = _data_request(request)
    data.check()
    origin = options.weights or ("imagenet" if options.data else "random")
    weights = resolve_weights(origin, request.space.backbones())
    with data.open_cache() as cache:
        asked = time.monotonic()
        prepared = _prepare(data, cache, console)
        store_seconds = time.monotonic() - asked
        _warn_of_depths(prepared, console)
        _require_masks(request.space, prepared)
        _require_classes(request, prepared)
        with ray_session(options.address, is_guest=request.is_guest) as watch:
            request, setup, resources = _with_resources(request, data, prepared, weights, console)
            say(console, *_announcement(request, setup, resources, prepared))
            if request.resumed is None:
                say(console, *notes_on_scheduler(options, request.space, request.strategy))
            known = _known_trials(request, setup, console)
            plan = SearchPlan(space=request.space, strategy=request.strategy, setup=setup, resources=resources, keep=options.keep)
            if options.dry_run:
                dry_run(plan, console=console)
                return None, 0
            _warn_of_room(plan, len(prepared.classes), console)
            ledger, ownership, found = owned.enter_context(opened_ledger(request, setup, prepared, known))
            supervised = Supervised(
                request=request,
                plan=replace(
                    plan,
                    setup=replace(setup, run_root=ledger.paths.root, attempt=ownership.attempt, owner_token=ownership.token),
                ),
                ledger=ledger,
                ownership=ownership,
                known=known,
                found=found,
                seconds_before=(time.monotonic() - started - store_seconds, store_seconds),
            )
            return ledger, supervise(supervised, console, watch)


def _require_nodes(request: SearchRequest) -> None:
    """Refuse, before anything is downloaded or decoded, a cluster that does not answer and what this machine cannot hold."""
    options = request.options
    here = ray_here() if request.is_guest else None
    if here is not None:
        require_fits(options.address, here)
    elif options.address is not None:
        require_cluster(options.address)
    else:
        temporary_folder()
        require_on_this_machine(cpus_per_trial=options.cpus_per_trial, gpus_per_trial=options.gpus_per_trial)


def _data_request(request: SearchRequest) -> DataRequest:
    options = request.options
    return DataRequest(
        choice=ImageChoice(limit=options.limit, strict_data=options.strict_data, follow_links=options.follow_links),
        root=None if options.data is None else options.data.resolve(),
        run=request.run,
        cache_root=None if options.cache is None else options.cache.resolve(),
        cache_size_bytes=options.cache_size,
    )


def _require_same_numbers(request: SearchRequest, resumed: ResumedSearch) -> None:
    """Refuse, before any work, what options alone show to give other numbers; the rest is compared when Ray has answered."""
    cpus, gpus = request.options.cpus_per_trial, request.options.gpus_per_trial
    device: DeviceKind | None = None
    if gpus is not None:
        device = "cuda" if gpus else "cpu"
    threads = torch_threads(DEFAULT_CPUS_PER_TRIAL if cpus is None else cpus)
    check_same_numbers(resumed, device=device, threads=threads, precision=request.space.precision())


def _prepare(data: DataRequest, cache: Cache, console: Console) -> PreparedData:
    with Progress(*Progress.get_default_columns(), console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        return data.prepare(cache, show)


def _warn_of_depths(prepared: PreparedData, console: Console) -> None:
    num_images = PixelStore.open(prepared.store).num_far_below_white
    if num_images:
        say(console, f"{num_images} X-rays {MIXED_DEPTHS}")


def _require_masks(space: SearchSpace, prepared: PreparedData) -> None:
    """Refuse a space with masked input where an image has no mask: it would be shown whole, or not at all."""
    inputs = {TrialConfig.from_point(point).input for cell in space.cells() for point in cell.probes()} - {"full"}
    store = PixelStore.open(prepared.store)
    num_missing = sum(store.num_images.values()) - sum(store.num_masks.values())
    if inputs and num_missing:
        raise InputError(
            f"input {' and '.join(sorted(inputs))} needs a lung mask for every image, and {num_missing} of"
            f" {sum(store.num_images.values())} have none. Add masks, or use --set input=full."
        )


def _require_classes(request: SearchRequest, prepared: PreparedData) -> None:
    """Refuse to go by the recall of a class that the images do not have, or that none of validation is of."""
    images = prepared.images
    judged = set(images.loc[images["split"] == "validation", "class"])
    said = [("--select-by", request.run.select_by), *(("--objective", one.column) for one in request.strategy.objectives)]
    for option, column in said:
        name = class_of(column)
        if name is not None and name not in prepared.classes:
            raise InputError(f"{option} {column}: no image is of class '{name}'. {did_you_mean(name, prepared.classes)}")
        if name is not None and name not in judged:
            raise InputError(
                f"{option} {column}: no validation image is of class '{name}', so that its recall is not defined. Choose another"
                " column, or add images of it."
            )


def _with_resources(
    request: SearchRequest, data: DataRequest, prepared: PreparedData, weights: Mapping[str, WeightsSource], console: Console
) -> tuple[SearchRequest, SearchSetup, Resources]:
    """Divide what Ray's nodes offer, and complete the request by what depends on that."""
    options = request.options
    resources = plan_resources(
        num_trials=request.strategy.num_trials(request.space),
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
        max_concurrent=options.max_concurrent,
        is_local=options.address is None,
    )
    survey = _survey(request, resources, console)
    if request.resumed is None:  # else the run's space has them
        precision = _best_precision(request.run, survey, console) if options.precision == "auto" else options.precision
        request = replace(request, space=_with_numerics(request.space, precision, weights))
    return request, _setup_of(request, data, prepared, weights, resources), resources


def _survey(request: SearchRequest, resources: Resources, console: Console) -> Survey | None:
    """Ask the nodes what their devices can do; None where that is known, or plays no part.

    Raises:
        InputError: No node's device can be used.
    """
    chooses = request.resumed is None and request.options.precision == "auto" and request.run.protocol == "strict"
    if not resources.gpus_per_trial and (request.options.address is None or not chooses):
        return None
    survey = survey_devices(resources)
    survey.check()
    for note in survey.notes():
        say(console, note)
    return survey


def _best_precision(run: RunConfig, survey: Survey | None, console: Console) -> str:
    """Choose bf16 where every device that may train multiplies it natively, and say why not where one could think so."""
    if run.protocol != "strict":
        return "fp32"
    if survey is None:
        return "bf16" if supports_bf16(torch.device("cpu")) else "fp32"
    has_bf16 = survey.all_have_bf16
    if has_bf16 is None and not survey.on_gpus:
        has_bf16 = supports_bf16(torch.device("cpu"))
    if not has_bf16:
        lacking = dict.fromkeys(device.name for device in survey.devices if not device.has_bf16)
        reason = f"{', '.join(lacking)} does not multiply bf16 natively" if lacking else "no node is there to be asked for bf16"
        say(console, f"Precision fp32: {reason}. --precision bf16 takes it all the same")
    return "bf16" if has_bf16 else "fp32"


def _with_numerics(space: SearchSpace, precision: str, weights: Mapping[str, WeightsSource]) -> SearchSpace:
    """Write into every arm how its numbers are computed and where its weights come from."""
    fixed: dict[str, PointValue] = {"precision": precision}
    if weights:
        fixed["weights"] = next(iter(weights.values())).kind
    return space.with_fixed(fixed)


def _setup_of(
    request: SearchRequest,
    data: DataRequest,
    prepared: PreparedData,
    weights: Mapping[str, WeightsSource],
    resources: Resources,
) -> SearchSetup:
    return SearchSetup(
        run=request.run,
        run_root=request.root,
        data=data,
        store=prepared.store,
        data_fingerprint=prepared.fingerprint,
        weights=weights,
        cpus_per_trial=resources.cpus_per_trial,
        gpus_per_trial=resources.gpus_per_trial,
        judged_epochs=judged_epochs(request.strategy, max_epochs=request.space.max_epochs()),
        profile=request.options.profile,
        has_time_budget=request.strategy.time_budget_seconds is not None,
        hang_seconds=request.options.hang_timeout,
    )


def _announcement(request: SearchRequest, setup: SearchSetup, resources: Resources, prepared: PreparedData) -> list[str]:
    images = prepared.images
    parts = ", ".join(f"{(images['split'] == part).sum()} {part}" for part in get_args(Split))
    lines = [
        f"{'Synthetic X-rays' if prepared.synthetic else 'X-rays'}: {parts}; {len(prepared.classes)} classes;"
        f" {setup.run.image_size} px; protocol {setup.run.protocol}",
        f"{request.strategy.num_trials(request.space)} trials, {_at_once(resources, request.options.max_concurrent)}, each with"
        f" {resources.cpus_per_trial:g} CPU" + (f" and {resources.gpus_per_trial:g} GPU" if resources.gpus_per_trial else ""),
    ]
    reasons = images["excluded_reason"].dropna()
    left_out = reasons[[ExclusionReason(reason).is_bad for reason in reasons]].value_counts()
    if len(left_out):
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        lines.insert(1, f"{left_out.sum()} files left out ({counts}); the run's table images names them")
    return lines


def _at_once(resources: Resources, wish: int | None) -> str:
    """Say how many trials the nodes that are there now hold at once, and what was asked for where that is more."""
    if not resources.may_grow:
        return f"{resources.max_concurrent} at once" + (f" ({wish} asked for)" if (wish or 0) > resources.max_concurrent else "")
    room = room_on_nodes(cpus_per_trial=resources.cpus_per_trial, gpus_per_trial=resources.gpus_per_trial)
    now = min(room.free, resources.max_concurrent)
    more = f", up to {resources.max_concurrent} as there is room" if now < resources.max_concurrent else ""
    return f"{now} at once now{more}"


def _known_trials(request: SearchRequest, setup: SearchSetup, console: Console) -> list[KnownTrial]:
    """Say what the studies are taught before they propose: by another run, or by what this run was taught at its beginning."""
    if request.teacher is not None:
        known = known_trials(request.teacher, request.space, request.strategy, setup)
        say(console, *lesson(known, request.teacher))
        return known
    if request.resumed is None:
        return []
    try:
        content = read_json_with_digest(RunPaths(request.root).lessons, most_bytes=MOST_LESSONS_BYTES)
        return lessons_from_json(content, request.space, request.strategy)
    except FileNotFoundError:
        if request.resumed.manifest.get("warm_start") is not None:
            say(console, "warm_start.json is missing: going on without what the earlier run taught")
        return []
    except (DamagedFileError, OSError):
        say(console, "warm_start.json is damaged: going on without what the earlier run taught")
        return []


def _warn_of_room(plan: SearchPlan, num_classes: int, console: Console) -> None:
    resources = plan.resources
    offers = node_offers(cpus_per_trial=resources.cpus_per_trial, gpus_per_trial=resources.gpus_per_trial)
    say(console, *warnings_of_room(plan, offers, num_classes=num_classes))
