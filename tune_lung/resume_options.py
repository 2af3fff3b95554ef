"""What `--resume RUN` goes on with: the run as its manifest has it, with what may grow, and nothing else changed.

A run's manifest has no absolute path, so where its images and weights lie is remembered outside of it, in the user's own
state folder. Where nothing is remembered, as on another machine, `--data` and `--weights` say it again.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs

from tune_lung.config import RunConfig, TrialConfig
from tune_lung.errors import InputError
from tune_lung.files import read_regular_file, write_text_whole
from tune_lung.results.layout import RunPaths
from tune_lung.results.ledger import read_manifest
from tune_lung.results.schema import SCHEMA_VERSION
from tune_lung.search_options import search_parser, seconds_of, space_of
from tune_lung.space import SearchSpace
from tune_lung.space_changes import space_changes
from tune_lung.strategy import Strategy, parse_objectives

_MOST_MEMORY_BYTES = 1 << 20
_UNNAMED = object()
_NOT_TOGETHER = ("out", "name", "warm_start", "dry_run", "list_spaces")
_SPACE_OPTIONS = ("space", "set", "patience", "precision")
_STRATEGY_OPTIONS = ("sampler", "scheduler", "grace_epochs", "reduction_factor")
_RUN_OPTIONS = ("protocol", "image_size", "select_by", "seed")


@dataclass(frozen=True, kw_only=True)
class ResumedSearch:
    """A search that goes on."""

    root: Path
    """The run's folder."""
    manifest: Mapping[str, Any]
    """As the attempt before left it."""
    options: argparse.Namespace
    """The command's options: those of the attempts before, and over them those given now."""
    arguments: list[str]
    """The same as a command line."""
    space: SearchSpace
    """What is tried."""
    run: RunConfig
    """What all trials share."""
    strategy: Strategy
    """How it is searched."""


def resumed_search(root: Path, arguments: Sequence[str]) -> ResumedSearch:
    """Read what a run goes on with.

    Args:
        root: The run's folder.
        arguments: The command line that resumes it.

    Raises:
        InputError: The folder is no run, or a newer version's, or an option would change what was searched.
    """
    root = root.resolve()
    manifest = read_manifest(RunPaths(root))
    if manifest["schema_version"] > SCHEMA_VERSION:
        raise InputError(
            f"'{root.name}' was written by a newer tune_lung (tables of version {manifest['schema_version']}, this one writes"
            f" {SCHEMA_VERSION}). Update tune_lung."
        )
    given = _given(arguments)
    for name in _NOT_TOGETHER:
        if name in given:
            raise InputError(f"{_option(name)} does not go together with --resume: the run goes on in its own folder.")
    command = [*_recorded_command(root, manifest), *_without_resume(arguments)]
    options = search_parser(None).parse_args(command)
    then = SearchSpace.from_json(manifest["space"])
    space = _grown_space(then, options, given)
    strategy = _grown_strategy(Strategy.from_json(manifest["strategy"]), given)
    run = RunConfig(**{name: manifest[name] for name in _RUN_OPTIONS})
    changes = [
        *_changes_of_space(then, options, given),
        *_changes(run, given, _RUN_OPTIONS),
        *_changes_of_limit(manifest, command),
    ]
    for name, there, here in changes:
        raise InputError(f"--resume: {name} is {there} in '{root.name}' and {here} here. Leave it out, or begin a new run.")
    return ResumedSearch(
        root=root, manifest=manifest, options=options, arguments=command, space=space, run=run, strategy=strategy
    )


def check_same_data(resumed: ResumedSearch, *, fingerprint: str, counts: Mapping[str, int]) -> None:
    """Refuse other images than those that the run was begun with.

    Raises:
        InputError: The images, or their split, differ.
    """
    then = resumed.manifest["data"]
    if fingerprint != then["fingerprint"]:
        there, here = (", ".join(f"{count} {part}" for part, count in each.items()) for each in (then["counts"], counts))
        what = f"{there} there and {here} here" if there != here else f"{there}, but not the same"
        raise InputError(f"--resume: the images are not those of '{resumed.root.name}': {what}. Give them with --data.")


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


def remember_command(root: Path, arguments: Sequence[str], options: argparse.Namespace) -> None:
    """Remember a run's command, its paths in full, where only this user sees it; a place that cannot be written is no harm.

    Args:
        root: The run's folder.
        arguments: The command line.
        options: What it means.
    """
    command = list(arguments)
    for name in ("data", "cache"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name).expanduser().resolve())]
    if options.weights is not None and Path(options.weights).expanduser().exists():
        command += ["--weights", str(Path(options.weights).expanduser().resolve())]
    try:
        path = _memory_of(root)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_text_whole(path, json.dumps(command))
    except (OSError, RuntimeError):
        return


def _recorded_command(root: Path, manifest: Mapping[str, Any]) -> list[str]:
    try:
        remembered = json.loads(read_regular_file(_memory_of(root), most_bytes=_MOST_MEMORY_BYTES))
    except (OSError, ValueError, RuntimeError):  # a RecursionError is one
        remembered = None
    if isinstance(remembered, list) and all(isinstance(argument, str) for argument in remembered):
        return remembered
    return list(manifest["command"])


def _memory_of(root: Path) -> Path:
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return platformdirs.user_state_path("tune_lung", appauthor=False) / "runs" / f"{name}.json"


def _given(arguments: Sequence[str]) -> dict[str, Any]:
    """Read only what a command line names, no defaults."""
    parser = search_parser(None)
    unnamed = {name: [] if isinstance(default, list) else _UNNAMED for name, default in vars(parser.parse_args([])).items()}
    found = vars(parser.parse_args(arguments, argparse.Namespace(**unnamed)))
    return {name: value for name, value in found.items() if value not in (_UNNAMED, [])}


def _without_resume(arguments: Sequence[str]) -> list[str]:
    kept, is_value = [], False
    for argument in arguments:
        if is_value or argument.startswith("--resume="):
            is_value = False
        elif argument == "--resume":
            is_value = True
        else:
            kept.append(argument)
    return kept


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _grown_space(then: SearchSpace, options: argparse.Namespace, given: Mapping[str, Any]) -> SearchSpace:
    """Give the run's space more epochs, if that is asked for and means what it says."""
    if "max_epochs" not in given or options.max_epochs == then.max_epochs():
        return then
    if options.max_epochs < then.max_epochs():
        raise InputError(f"--resume: --max-epochs may grow ({then.max_epochs()} so far), not shrink to {options.max_epochs}.")
    schedules = {TrialConfig.from_point(point).learning_rate_schedule for cell in then.cells() for point in cell.probes()}
    if schedules != {"constant"}:
        raise InputError(
            "--resume: --max-epochs may grow under a constant learning_rate_schedule only. This run has"
            f" {' and '.join(sorted(schedules))}: with more epochs every rate of the epochs before would be another."
        )
    return then.with_fixed({"max_epochs": options.max_epochs})


def _grown_strategy(then: Strategy, given: Mapping[str, Any]) -> Strategy:
    """Give the run more samples, repeats or time."""
    grown: dict[str, Any] = {}
    for name in ("samples", "repeats"):
        wanted, had = given.get(name), getattr(then, name)
        if wanted is None or wanted == had:
            continue
        if had is None:
            raise InputError(f"--resume: {_option(name)} means nothing here: every point is tried.")
        if wanted < had:
            raise InputError(f"--resume: {_option(name)} may grow ({had} so far), not shrink to {wanted}.")
        grown[name] = wanted
    if "time_budget" in given:
        seconds = seconds_of(given["time_budget"])
        had = then.time_budget_seconds
        if had is not None and seconds < had:
            raise InputError(f"--resume: --time-budget may grow ({had:g} s so far), not shrink to {seconds:g} s.")
        grown["time_budget_seconds"] = seconds
    for name, there, here in _changes(then, given, _STRATEGY_OPTIONS):
        raise InputError(f"--resume: {name} is {there} in the run and {here} here. Leave it out, or begin a new run.")
    if "objective" in given and parse_objectives(given["objective"]) != then.objectives:
        raise InputError("--resume: --objective is another than the run's. Leave it out, or begin a new run.")
    return replace(then, **grown)


def _changes(then: RunConfig | Strategy, given: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, object, object]]:
    for name in names:
        if name in given and given[name] != getattr(then, name):
            yield _option(name), getattr(then, name), given[name]


def _changes_of_space(
    then: SearchSpace, options: argparse.Namespace, given: Mapping[str, Any]
) -> Iterator[tuple[str, object, object]]:
    """Name what the options that make a space would change; values that were found at the run's start are its own."""
    if not given.keys() & set(_SPACE_OPTIONS):
        return
    now, may_differ = space_of(options), ["max_epochs", "weights"]
    if options.precision == "auto":
        may_differ.append("precision")
    else:
        now = now.with_fixed({"precision": options.precision})
    yield from space_changes(then, now, may_differ=may_differ)


def _changes_of_limit(manifest: Mapping[str, Any], command: Sequence[str]) -> Iterator[tuple[str, object, object]]:
    first = manifest["earlier_attempts"][0] if manifest.get("earlier_attempts") else manifest
    then, now = (search_parser(None).parse_args(each).limit for each in (first["command"], command))
    if then != now:
        yield "--limit", then, now
