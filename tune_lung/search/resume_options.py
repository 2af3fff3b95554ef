"""What `--resume RUN` goes on with: the run as its manifest has it, with what may grow, and nothing else changed.

The manifest may be a stranger's. From it comes what defines the search, as data: the space, the strategy, the run's settings.
Where images and weights lie, caches, addresses and all else that `tune_lung.search.options` keeps from a manifest is said by
the command line, or was said before by the same user of the same run. Where nobody has said it, as on another machine,
`--data` and `--weights` say it again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from tune_lung.config import DeviceKind, Precision, RunConfig, TrialConfig
from tune_lung.errors import InputError, shortened
from tune_lung.results.layout import DEFAULT_KEEP, RunPaths
from tune_lung.results.ledger import read_manifest
from tune_lung.results.manifest import SearchSettings
from tune_lung.results.schema import SCHEMA_VERSION
from tune_lung.search.interpretation import space_of, with_fixed_fields
from tune_lung.search.options import OPTION_BY_NAME, Change, GivenOptions, Kept, SearchOptions, options_kept
from tune_lung.search.remembered import remembered
from tune_lung.space import SearchSpace
from tune_lung.space_changes import space_changes
from tune_lung.strategy import Strategy, parse_objectives

_MOST_ATTEMPTS = 10**9
_MOST_LETTERS = 1000


@dataclass(frozen=True, kw_only=True)
class ResumedSearch:
    """A search that goes on."""

    root: Path
    """The run's folder."""
    manifest: Mapping[str, Any]
    """As the attempt before left it."""
    options: SearchOptions
    """Those given now, over those remembered, over those that the manifest may say."""
    arguments: list[str]
    """The command line."""
    space: SearchSpace
    """What is tried."""
    run: RunConfig
    """What all trials share."""
    strategy: Strategy
    """How it is searched."""


def resumed_search(root: Path, given: GivenOptions) -> ResumedSearch:
    """Read what a run goes on with.

    Args:
        root: The run's folder.
        given: What is said now.

    Raises:
        InputError: The folder is no run that can go on, an option would change what was searched, or nobody has said where
            its images or weights lie.
    """
    root = root.resolve()
    manifest = read_manifest(RunPaths(root))
    _require_own_kind(root, manifest)
    for name in given.among(Kept.NOWHERE, change=Change.NEVER):
        raise InputError(f"{OPTION_BY_NAME[name].flag} does not go together with --resume: the run goes on in its own folder.")
    then, run, strategy_then = _search_of(root, manifest)
    settings = settings_of(manifest)
    space = _grown_space(then, given)
    strategy = _grown_strategy(strategy_then, given)
    strategy.check_fits(space)
    changes = [
        *_changes_of_space(then, given),
        *_changes(run, given.among(Kept.RUN, change=Change.NEVER)),
        *_changes_of_settings(settings, given),
    ]
    for name, there, here in changes:
        then_and_now = f"{shortened(str(there))} in '{root.name}' and {shortened(str(here))} here"
        raise InputError(f"--resume: {shortened(name)} is {then_and_now}. Leave it out, or begin a new run.")
    options = _options_of(settings, remembered(root, manifest), given)
    options = _with_places(root, manifest, options)
    return ResumedSearch(
        root=root,
        manifest=manifest,
        options=options,
        arguments=list(given.words),
        space=space,
        run=run,
        strategy=strategy,
    )


def settings_of(manifest: Mapping[str, Any]) -> SearchSettings:
    """Read what else belongs to a search from its manifest.

    One of an older version has it in the command line of the first attempt alone. There, the words of the options sought
    are looked for, one by one; the line is never taken for a command.
    """
    if "settings" in manifest:
        settings = manifest["settings"]
        return SearchSettings(limit=settings["limit"], strict_data=settings["strict_data"], keep=settings["keep"])
    first = (manifest.get("earlier_attempts") or [manifest])[0]
    settings = SearchSettings(limit=None, strict_data=False, keep=DEFAULT_KEEP)
    words = [word for word in first["command"] if isinstance(word, str)]
    for word, after in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        number = value if equals else after
        if len(name) >= len("--lim") and "--limit".startswith(name) and number.isdecimal() and 0 < len(number) < 19:
            settings["limit"] = max(1, int(number))
        elif len(name) >= len("--st") and "--strict-data".startswith(name):
            settings["strict_data"] = True
    return settings


def check_same_data(resumed: ResumedSearch, *, fingerprint: str, counts: Mapping[str, int]) -> None:
    """Refuse other images than those that the run was begun with.

    Raises:
        InputError: The images, or their split, differ.
    """
    then = resumed.manifest["data"]
    if fingerprint != then["fingerprint"]:
        there, here = (", ".join(f"{count} {part}" for part, count in each.items()) for each in (then["counts"], counts))
        what = f"{there} there and {here} here" if there != here else f"{there}, but not the same"
        raise InputError(
            f"--resume: the images are not those of '{resumed.root.name}': {what}. Give them with --data, and with"
            " --follow-links where links lead out of their folder."
        )


def check_same_weights(resumed: ResumedSearch, sources: Mapping[str, Mapping[str, str | None]]) -> None:
    """Refuse other weights than those that the run was begun with.

    Args:
        resumed: The search.
        sources: `kind`, `name` and `sha256` by model.

    Raises:
        InputError: A model's weights differ.
    """
    for model, then in resumed.manifest["weights"].items():
        now = sources.get(model)
        if now is None or now["sha256"] != then["sha256"]:
            raise InputError(
                f"--resume: the weights of {model} are not those of '{resumed.root.name}' ({then['name']}). Give them with"
                " --weights."
            )


def check_same_numbers(resumed: ResumedSearch, *, device: DeviceKind | None, threads: int, precision: Precision) -> None:
    """Refuse another way of computing than that of the attempt before, which gives the same trials other numbers.

    Args:
        resumed: The search. What its manifest does not say, as that of an older version, is not compared.
        device: Where trials are computed; None while that is not known.
        threads: Threads of each trial.
        precision: Number format.

    Raises:
        InputError: It is another, and that was not allowed.
    """
    then = resumed.manifest.get("numerics")
    if then is None or resumed.options.allow_other_numbers:
        return
    told = {"cpu": "CPUs", "cuda": "GPUs"}
    differences, as_before = [], []
    if device is not None and device != then["device"]:
        differences.append(f"device: {told[then['device']]} there and {told[device]} here")
        as_before.append("--gpus-per-trial 0" if then["device"] == "cpu" else "--gpus-per-trial 1")
    if threads != then["threads"]:
        differences.append(f"threads of a trial: {then['threads']} there and {threads} here")
        as_before.append(f"--cpus-per-trial {then['threads']}")
    if precision != then["precision"]:
        differences.append(f"precision: {then['precision']} there and {precision} here")
    if differences:
        go_on = f"Go on with {' '.join(as_before)}, or allow" if as_before else "Allow"
        raise InputError(
            f"--resume: '{resumed.root.name}' would be computed otherwise ({'; '.join(differences)}), and numbers would differ."
            f" {go_on} it with --allow-other-numbers; every report will say so."
        )


def _require_own_kind(root: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a run that no search of this version can go on with."""
    if manifest["schema_version"] > SCHEMA_VERSION:
        raise InputError(
            f"'{root.name}' was written by a newer tune_lung (tables of version {manifest['schema_version']}, this one writes"
            f" {SCHEMA_VERSION}). Update tune_lung."
        )
    if "imported_from" in manifest:
        raise InputError(
            f"'{root.name}' was imported and is no search that can go on. Begin a new one; --warm-start learns from it."
        )
    if manifest["attempt"] >= _MOST_ATTEMPTS:
        raise InputError(f"The run.json of '{root.name}' counts {manifest['attempt']} attempts: none can follow.")


def _search_of(root: Path, manifest: Mapping[str, Any]) -> tuple[SearchSpace, RunConfig, Strategy]:
    """Read from a manifest what defines the search, and see that it can be searched."""
    try:
        run = RunConfig.from_json({option.name: manifest[option.name] for option in options_kept(Kept.RUN)})
        space = SearchSpace.from_json(manifest["space"])
        space.check(run)
        strategy = Strategy.from_json(manifest["strategy"])
        strategy.check_fits(space)
    except InputError as error:
        raise InputError(
            f"The run.json of '{root.name}' holds no search that can go on: {shortened(str(error), most=_MOST_LETTERS)}"
        ) from error
    return space, run, strategy


def _options_of(settings: SearchSettings, remembered_options: Mapping[str, Any], given: GivenOptions) -> SearchOptions:
    """Lay what is said now over what was said before, over defaults; what is repeatable adds to what was said before."""
    before: dict[str, Any] = {**settings, **remembered_options}
    now = given.among(*Kept)
    for name, value in now.items():
        if OPTION_BY_NAME[name].is_repeatable:
            now[name] = tuple(dict.fromkeys([*before.get(name, ()), *value]))
    return SearchOptions(**(before | now))


def _with_places(root: Path, manifest: Mapping[str, Any], options: SearchOptions) -> SearchOptions:
    """See that it is known where images and weights come from; of weights, the manifest may say that they are nobody's file."""
    if options.data is None and not manifest["data"]["synthetic"]:
        raise InputError(f"--resume: where the images of '{root.name}' lie is not known here. Give them with --data.")
    sources = list(manifest["weights"].values())
    kinds = {source["kind"] for source in sources}
    if options.weights is not None or not kinds:
        return options
    if kinds not in ({"imagenet"}, {"random"}):
        raise InputError(
            f"--resume: where the weights of '{root.name}' lie ({shortened(sources[0]['name'])}) is not known here. Give them"
            " with --weights."
        )
    return replace(options, weights=kinds.pop())


def _grown_space(then: SearchSpace, given: GivenOptions) -> SearchSpace:
    """Give the run's space more epochs, if that is asked for and means what it says."""
    wanted, had = given.options.max_epochs, then.max_epochs()
    if wanted is None or wanted == had:
        return then
    if wanted < had:
        raise InputError(f"--resume: --max-epochs may grow ({had} so far), not shrink to {wanted}.")
    schedules = {TrialConfig.from_point(point).learning_rate_schedule for cell in then.cells() for point in cell.probes()}
    if schedules != {"constant"}:
        raise InputError(
            "--resume: --max-epochs may grow under a constant learning_rate_schedule only. This run has"
            f" {' and '.join(sorted(schedules))}: with more epochs every rate of the epochs before would be another."
        )
    return then.with_fixed({"max_epochs": wanted})


def _grown_strategy(then: Strategy, given: GivenOptions) -> Strategy:
    """Give the run more samples, repeats or time."""
    said = given.among(Kept.STRATEGY)
    grown: dict[str, Any] = {}
    for name in ("samples", "repeats"):
        wanted, had = said.get(name), getattr(then, name)
        if wanted is None or wanted == had:
            continue
        if had is None:
            raise InputError(f"--resume: --{name} means nothing here: every point is tried.")
        if wanted < had:
            raise InputError(f"--resume: --{name} may grow ({had} so far), not shrink to {wanted}.")
        grown[name] = wanted
    if "time_budget" in said:
        seconds = said["time_budget"]
        had = then.time_budget_seconds
        if had is not None and seconds < had:
            raise InputError(f"--resume: --time-budget may grow ({had:g} s so far), not shrink to {seconds:g} s.")
        grown["time_budget_seconds"] = seconds
    for name, there, here in _changes(then, given.among(Kept.STRATEGY, change=Change.NEVER)):
        raise InputError(f"--resume: {name} is {there} in the run and {here} here. Leave it out, or begin a new run.")
    if "objective" in said and parse_objectives(said["objective"]) != then.objectives:
        raise InputError("--resume: --objective is another than the run's. Leave it out, or begin a new run.")
    return replace(then, **grown)


def _changes(then: RunConfig | Strategy, said: Mapping[str, object]) -> Iterator[tuple[str, object, object]]:
    for name, here in said.items():
        if name != "objective" and here != getattr(then, name):
            yield OPTION_BY_NAME[name].flag, getattr(then, name), here


def _changes_of_space(then: SearchSpace, given: GivenOptions) -> Iterator[tuple[str, object, object]]:
    """Name what the options that make a space would change; values that were found at the run's start are its own."""
    said = given.among(Kept.SPACE, change=Change.NEVER)
    if not said:
        return
    options = SearchOptions(**said)
    now = space_of(replace(given, options=options)) if "space" in said else with_fixed_fields(then, options)
    may_differ = ["max_epochs", "weights"]
    if options.precision == "auto":
        may_differ.append("precision")
    else:
        now = now.with_fixed({"precision": options.precision})
    yield from space_changes(then, now, may_differ=may_differ)


def _changes_of_settings(then: SearchSettings, given: GivenOptions) -> Iterator[tuple[str, object, object]]:
    for name, here in given.among(Kept.SETTINGS, change=Change.NEVER).items():
        there = {**then}[name]
        if here != there:
            yield OPTION_BY_NAME[name].flag, there, here
