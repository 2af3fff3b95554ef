"""A search and its run: the ledger opened by its one owner, and every way in which a search ends written into it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from rich.console import Console

from tune_lung.config import Split, torch_threads
from tune_lung.data.prepare import PreparedData
from tune_lung.errors import InputError, NoRoomError, SupersededError
from tune_lung.files import shown_path, write_json_with_digest
from tune_lung.interrupts import Interruption, interruptible
from tune_lung.printable import complain, in_one_line
from tune_lung.results.beginning import begin_run
from tune_lung.results.ledger import Ledger
from tune_lung.results.manifest import DataFacts, Numerics, Outcome, SearchFacts, SearchSettings, ended, new_manifest, resumed
from tune_lung.results.ownership import Ownership
from tune_lung.results.reader import Run, read_run
from tune_lung.results.schema import TimePart, TrialStatus
from tune_lung.screen import say
from tune_lung.search.remembered import remember
from tune_lung.search.request import SearchRequest
from tune_lung.search.resume_options import check_same_data, check_same_numbers, check_same_weights
from tune_lung.tuning.cluster_watch import ClusterWatch
from tune_lung.tuning.failures import CURABLE
from tune_lung.tuning.plan import SearchSetup
from tune_lung.tuning.proposals.studies import KnownTrial, sampler_options
from tune_lung.tuning.proposals.warm_start import lessons_as_json
from tune_lung.tuning.recorder import SearchHaltedError
from tune_lung.tuning.resume import earlier_attempts
from tune_lung.tuning.search_plan import Attempt, SearchPlan
from tune_lung.tuning.search_run import search_and_test
from tune_lung.tuning.trial_record import EarlierAttempts, TrialRecord


@contextmanager
def opened_ledger(
    request: SearchRequest, setup: SearchSetup, prepared: PreparedData, known: Sequence[KnownTrial]
) -> Iterator[tuple[Ledger, Ownership, Run | None]]:
    """Begin a run's ledger, or go on with it, as its one owner.

    Args:
        request: The search.
        setup: What its trials share.
        prepared: Its images.
        known: What its studies are taught.

    Yields:
        The ledger, the ownership, and what earlier attempts left.

    Raises:
        InputError: Another driver owns the run, or images or weights are not those of before.
    """
    sources = {model: {"kind": s.kind, "name": s.name, "sha256": s.sha256} for model, s in setup.weights.items()}
    if request.resumed is None or request.ownership is None:
        ledger, ownership = _begun(request, setup, prepared, known, sources)
        with ownership:
            remember(ledger.paths.root, ledger.read_manifest(), request.options)
            yield ledger, ownership, None
        return
    check_same_data(request.resumed, fingerprint=prepared.fingerprint, counts=_counts(prepared))
    check_same_weights(request.resumed, sources)
    numerics = _numerics(request, setup)
    check_same_numbers(request.resumed, **numerics)
    found = read_run(request.root)
    ledger = Ledger.open(request.root, damaged=found.damaged, check_writer=request.ownership.check)
    manifest = resumed(
        ledger.read_manifest(),
        _facts(request, setup),
        attempt=request.ownership.attempt,
        arguments=request.arguments,
        numerics=numerics,
        allow_other_numbers=request.options.allow_other_numbers,
    )
    if prepared.pixels is not None:  # a run of an earlier version has not said it
        manifest["data"] = {**manifest["data"], "pixels": prepared.pixels}
    ledger.write_manifest(manifest)
    if not ledger.has_images():
        ledger.write_images(prepared.images)
    ledger.check_writer()
    remember(request.root, manifest, request.options)
    yield ledger, request.ownership, found


def _begun(
    request: SearchRequest,
    setup: SearchSetup,
    prepared: PreparedData,
    known: Sequence[KnownTrial],
    sources: Mapping[str, Mapping[str, str | None]],
) -> tuple[Ledger, Ownership]:
    """Begin a run with all that it goes on from: its manifest, its lessons and its images."""
    facts = DataFacts(
        fingerprint=prepared.fingerprint,
        synthetic=prepared.synthetic,
        classes=prepared.classes,
        counts=_counts(prepared),
        pixels=prepared.pixels,
    )
    manifest = new_manifest(
        _facts(request, setup),
        name=request.root.name,
        arguments=request.arguments,
        data=facts,
        weights=sources,
        numerics=_numerics(request, setup),
    )

    def fill(ledger: Ledger) -> None:
        if known or request.teacher is not None:
            write_json_with_digest(ledger.paths.lessons, lessons_as_json(known), check_writer=ledger.check_writer)
        ledger.write_images(prepared.images)

    teacher = {"warm_start": request.teacher.name if request.teacher else None}
    return begin_run(request.root, manifest | teacher, fill, is_named=request.options.name is not None)


def _facts(request: SearchRequest, setup: SearchSetup) -> SearchFacts:
    options = request.options
    return SearchFacts(
        space=request.space,
        strategy=request.strategy,
        sampler_options=sampler_options(request.strategy),
        run=setup.run,
        settings=SearchSettings(limit=options.limit, strict_data=options.strict_data, keep=options.keep),
    )


def _numerics(request: SearchRequest, setup: SearchSetup) -> Numerics:
    return Numerics(
        device="cuda" if setup.gpus_per_trial else "cpu",
        threads=torch_threads(setup.cpus_per_trial),
        precision=request.space.precision(),
    )


def _counts(prepared: PreparedData) -> dict[str, int]:
    return {part: int((prepared.images["split"] == part).sum()) for part in get_args(Split)}


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """A search with all that it needs, ready to begin or to go on."""

    request: SearchRequest
    """What was asked for."""
    plan: SearchPlan
    """The search itself."""
    ledger: Ledger
    """The run's, opened."""
    ownership: Ownership
    """Of the run."""
    known: Sequence[KnownTrial]
    """What its studies are taught."""
    found: Run | None
    """What earlier attempts left."""
    seconds_before: tuple[float, float]
    """What the start took, and the pixel store."""


def supervise(supervised: Supervised, console: Console, watch: ClusterWatch) -> int | None:
    """Run the search and write its outcome into the manifest.

    Args:
        supervised: The search.
        console: Where to tell of it.
        watch: Looks after Ray's own processes; it ends this one when they die, with status 1 and the run `interrupted`.

    Returns:
        The exit status; None when there is something to report.

    Raises:
        NoRoomError: A disk is full.
        SupersededError: Another search has taken the run over; nothing more of this one is in it.
        KeyboardInterrupt: A guest was interrupted; of a command that is a status.
        SearchHaltedError: The first trials of a guest have all failed with what the others would meet too; likewise.
    """
    ledger, root = supervised.ledger, supervised.plan.setup.run_root
    interruption = Interruption()

    def tell_of_loss() -> None:
        say(console, watch.sentence(), _where_it_lies(root))
        _write_end(ledger, "interrupted")

    watch.last_words = tell_of_loss
    try:
        with interruptible(is_guest=supervised.request.is_guest) as interruption, _giving_way_to_a_loss(watch):
            records = _run(supervised, console)
    except KeyboardInterrupt:  # an Interrupted, or what Ray makes of one
        _write_end(ledger, "interrupted")
        say(console, _where_it_lies(root))
        if supervised.request.is_guest:
            raise
        return interruption.exit_status
    except SearchHaltedError as error:
        _write_end(ledger, "failed")
        if supervised.request.is_guest:
            raise
        complain(f"error: {in_one_line(error)}")
        return 1
    except NoRoomError:
        _write_end(ledger, "interrupted")
        say(console, _where_it_lies(root))
        raise
    except SupersededError:  # the end is the other's to write
        raise
    except BaseException:
        if watch.lost is None:  # else its last words have written the end
            _write_end(ledger, "failed")
        raise
    return _conclude(records, ledger, console)


def _conclude(records: Sequence[TrialRecord], ledger: Ledger, console: Console) -> int | None:
    """Write down and tell how a search that ran to its end has ended; return what `supervise` returns."""
    root = ledger.paths.root
    num_curable = sum(record.status is TrialStatus.FAILED and record.failure_kind in CURABLE for record in records)
    if num_curable:
        trials = "1 trial" if num_curable == 1 else f"{num_curable} trials"
        say(console, f"{trials} failed for a cause that may be mended. To try again: --resume {shown_path(root)}")
    num_useful = sum(record.status in (TrialStatus.COMPLETED, TrialStatus.STOPPED) for record in records)
    _write_end(ledger, "completed" if num_useful else "failed")
    if num_useful:
        return None
    say(console, f"Run: {shown_path(root)}")
    return 1


@contextmanager
def _giving_way_to_a_loss(watch: ClusterWatch) -> Iterator[None]:
    """Let the watch tell the end, whatever Ray makes of it, when Ray's processes have died.

    Raises:
        InputError: They have, and this process is another program's, so that it was not ended.
    """
    try:
        yield
    except BaseException as error:
        watch.gives_way()
        if watch.lost is not None:
            raise InputError(watch.sentence()) from error
        raise


def _where_it_lies(root: Path) -> str:
    return f"Stopped. All that was reported lies in {shown_path(root)}. To go on: --resume {shown_path(root)}"


def _run(supervised: Supervised, console: Console) -> list[TrialRecord]:
    request, found, earlier = supervised.request, supervised.found, None
    if found is not None:
        budget = request.strategy.time_budget_seconds
        is_time_left = budget is None or supervised.ownership.searched_seconds() < budget
        earlier = earlier_attempts(
            found,
            request.space,
            request.strategy,
            supervised.plan.setup,
            is_time_left=is_time_left,
            keep=request.options.keep,
        )
        say(console, *_told_of(earlier, found, attempt=supervised.ownership.attempt))
    start_seconds, store_seconds = supervised.seconds_before
    attempt = Attempt(
        ledger=supervised.ledger,
        ownership=supervised.ownership,
        known=supervised.known,
        earlier=earlier or EarlierAttempts(),
        trackers=request.options.tracker,
        seconds_before={TimePart.START: start_seconds, TimePart.STORE: store_seconds},
    )
    return search_and_test(supervised.plan, attempt, console)


def _told_of(earlier: EarlierAttempts, found: Run, *, attempt: int) -> list[str]:
    """Say in lines what an attempt goes on from."""
    num_open = sum(record.status is TrialStatus.RUNNING for record in earlier.records)
    lines = [f"Attempt {attempt}: {len(earlier.records) - num_open} trials have ended, {num_open} go on"]
    if earlier.num_anew:
        trials, its = ("1 trial is", "its") if earlier.num_anew == 1 else (f"{earlier.num_anew} trials are", "their")
        lines.append(f"{trials} trained again from {its} start: {its} state was not kept (--keep all keeps it)")
    if found.damaged:
        lines.append(f"Damaged and passed over: {', '.join(found.damaged)}; what was in them is done again")
    if found.foreign:
        lines.append(f"Passed over and left alone, since no part of the run: {', '.join(found.foreign)}")
    return lines


def _write_end(ledger: Ledger, outcome: Outcome) -> None:
    try:
        ledger.check_writer()
        ledger.write_manifest(ended(ledger.read_manifest(), outcome))
    except OSError:  # a full disk: the run stays `running` in its manifest, and can go on all the same
        return
