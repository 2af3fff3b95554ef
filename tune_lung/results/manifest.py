"""The manifest, run.json: what a run is, in JSON values, without host name or absolute path.

A manifest may be a stranger's. It defines the search and gives no orders: `space`, `strategy`, the run's settings and
`settings` are read back as data; `command` is there for its reader's eye alone.
"""

import os
import platform
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from tune_lung.config import DeviceKind, Precision, Protocol, RunConfig
from tune_lung.families.backbone import WeightsKind
from tune_lung.results.layout import DEFAULT_KEEP, KeepName
from tune_lung.results.pixel_facts import PixelFacts
from tune_lung.results.schema import SCHEMA_VERSION
from tune_lung.shapes import DISTINCT, AttemptNumber, Count, ListOf, Text, require_shape
from tune_lung.space import SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.version import __version__

Outcome = Literal["running", "completed", "interrupted", "failed"]
MOST_MANIFEST_BYTES = 4 * 2**20
"""Size of the largest manifest that is read: thousands of attempts at a search of thousands of cells."""

_MOST_KINDS_TOLD = 3
_RECORDED_PACKAGES = ("ray", "torch", "torchvision", "optuna", "numpy", "pillow", "pyarrow")


def _moment(text: str) -> str:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None or not 1900 < moment.year < 9000:  # so that it can be brought to any zone, and time be added
        raise ValueError("It is no moment with its zone.")
    return text


_Moment = Annotated[Text, AfterValidator(_moment)]


class _SpaceShape(TypedDict):
    """What is said of a space beside what `SearchSpace.from_json` reads."""

    name: Text


class _CountsShape(TypedDict):
    """Images by part of the split."""

    train: Count
    validation: Count
    test: Count


class _DataShape(TypedDict):
    """What `DataFacts` says."""

    fingerprint: Text | None
    synthetic: bool
    classes: Annotated[ListOf[Text], DISTINCT, Field(max_length=10_000)]
    counts: _CountsShape
    pixels: NotRequired[PixelFacts]
    """Since networks answer for new images."""


class _WeightsShape(TypedDict):
    """Where a backbone starts."""

    kind: WeightsKind
    name: Text
    sha256: Text | None


class SearchSettings(TypedDict):
    """What else belongs to the search: which images it uses, and what it keeps."""

    limit: Annotated[int, Field(ge=1, lt=2**63)] | None
    """Images used at most; None for all."""
    strict_data: bool
    """Whether a bad file stops the search."""
    keep: KeepName
    """Which checkpoints stay."""


class Numerics(TypedDict):
    """What the numbers of an attempt's trials hang on beside what they are: the same trial gives others under another."""

    device: DeviceKind
    """Where they are computed; GPUs of several models count as one kind."""
    threads: Annotated[int, Field(ge=1, lt=2**31)]
    """Threads of torch, of each trial."""
    precision: Precision
    """Number format of the networks' arithmetic."""


class _AttemptShape(TypedDict):
    """What belongs to one attempt."""

    command: ListOf[Any]
    attempt: AttemptNumber
    versions: dict[str, Any]
    git_commit: Text | None
    started_utc: _Moment
    ended_utc: _Moment | None
    status: Outcome
    numerics: NotRequired[Numerics]
    """Since version 3 of the tables."""
    allow_other_numbers: NotRequired[bool]
    """Whether it might compute otherwise than the attempt before."""


class _OpeningShape(TypedDict):
    """One opening of the test images."""

    opened_utc: _Moment
    trial_ids: ListOf[Text]


class Manifest(_AttemptShape):
    """What every manifest says; newer versions may say more."""

    schema_version: Annotated[int, Field(ge=1)]
    name: Text
    space: _SpaceShape
    space_sha256: Text
    strategy: dict[str, Any]
    protocol: Protocol | None
    image_size: Count | None
    select_by: Text
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None
    data: _DataShape
    weights: dict[str, _WeightsShape]
    test_openings: ListOf[_OpeningShape]
    earlier_attempts: NotRequired[ListOf[_AttemptShape]]
    """Since version 2 of the tables."""
    warm_start: NotRequired[Text | None]
    imported_from: NotRequired[Text]
    run_id: NotRequired[Text]
    settings: NotRequired[SearchSettings]


_MANIFEST = TypeAdapter(Manifest)
_VERSION = TypeAdapter(Annotated[int, Field(ge=1)])


def require_manifest(content: Mapping[str, Any]) -> None:
    """Check that a manifest says what every manifest says; of a newer version's only the version.

    Raises:
        WrongShapeError: It says less, or something else.
    """
    if "schema_version" not in content or require_shape(_VERSION, content["schema_version"]) <= SCHEMA_VERSION:
        require_shape(_MANIFEST, content)


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What the manifest says of the images."""

    fingerprint: str
    """Digest of pixels, labels and split."""
    synthetic: bool
    """Whether the images are phantoms."""
    classes: tuple[str, ...]
    """Class names in the order of the network's outputs."""
    counts: Mapping[str, int]
    """Images by part of the split."""
    pixels: PixelFacts | None = None
    """What a new image is brought to the form of these by; None where that is not known."""


@dataclass(frozen=True, kw_only=True)
class SearchFacts:
    """What a manifest says of a search, whoever asks for it."""

    space: SearchSpace
    """What is tried, as it runs."""
    strategy: Strategy
    """How it is searched."""
    sampler_options: Mapping[str, Any]
    """Every option that the sampler was given."""
    run: RunConfig
    """What all trials share."""
    settings: SearchSettings | None = None
    """What else belongs to the search; None for all images there are, bad files left out."""


def new_manifest(
    search: SearchFacts,
    *,
    name: str,
    arguments: Sequence[str],
    data: DataFacts,
    weights: Mapping[str, Mapping[str, str | None]],
    numerics: Numerics | None = None,
) -> dict[str, Any]:
    """Describe a run that starts now.

    Args:
        search: The search.
        name: The run's folder name.
        arguments: The command line; absolute paths in it are cut to their last part.
        data: The images.
        weights: Kind, name and sha256 of each backbone's weights, by model.
        numerics: How its trials are computed; None where that is not known.
    """
    run = search.run
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": secrets.token_hex(16),
        "name": name,
        **_searched(search),
        "strategy": {**search.strategy.as_json(), "sampler_options": dict(search.sampler_options)},
        "protocol": run.protocol,
        "image_size": run.image_size,
        "select_by": run.select_by,
        "seed": run.seed,
        "data": {
            "fingerprint": data.fingerprint,
            "synthetic": data.synthetic,
            "classes": list(data.classes),
            "counts": dict(data.counts),
            **({} if data.pixels is None else {"pixels": data.pixels}),
        },
        "weights": {model: dict(source) for model, source in weights.items()},
        **_beginning(1, arguments, numerics),
        "earlier_attempts": [],
        "test_openings": [],
    }


def resumed(
    manifest: Mapping[str, Any],
    search: SearchFacts,
    *,
    attempt: int,
    arguments: Sequence[str],
    numerics: Numerics | None = None,
    allow_other_numbers: bool = False,
) -> dict[str, Any]:
    """Return the manifest of a run that goes on now; what it said of the attempt before is kept in `earlier_attempts`.

    Args:
        manifest: As the attempt before left it.
        search: The same but for a larger budget, more samples, repeats or time; `run` and `sampler_options` stay as they were.
        attempt: The number of the new one.
        arguments: The command line that resumes it.
        numerics: How its trials are computed from now on; None where that is not known.
        allow_other_numbers: Whether that may be otherwise than before.
    """
    names = _AttemptShape.__annotations__
    before = {name: value for name, value in manifest.items() if name in names}
    kept = {name: value for name, value in manifest.items() if name not in names}
    grown = {**_searched(search), "strategy": {**manifest["strategy"], **search.strategy.as_json()}}
    earlier = [*manifest.get("earlier_attempts", ()), before]
    said = {"allow_other_numbers": True} if allow_other_numbers else {}
    return {**kept, **grown, **_beginning(attempt, arguments, numerics), **said, "earlier_attempts": earlier}


def _searched(search: SearchFacts) -> dict[str, Any]:
    """Say what is tried, and what else belongs to a search."""
    return {
        "schema_version": SCHEMA_VERSION,
        "space": search.space.as_json(),
        "space_sha256": search.space.sha256(),
        "settings": dict(search.settings or SearchSettings(limit=None, strict_data=False, keep=DEFAULT_KEEP)),
    }


def note_of_other_numbers(manifest: Mapping[str, Any]) -> str | None:
    """Say in a sentence that not all trials of a run were computed alike, where that was allowed; None where they were."""
    attempts = [*manifest.get("earlier_attempts", ()), manifest]
    first_by_kind: dict[str, int] = {}
    for number, attempt in enumerate(attempts, start=1):
        first_by_kind.setdefault(_told(attempt.get("numerics")), attempt.get("attempt", number))  # some numbers were never used
    if len(first_by_kind) == 1 or not any(attempt.get("allow_other_numbers") for attempt in attempts):
        return None
    told = [f"{kind} from attempt {number} on" for kind, number in first_by_kind.items()]
    more = f", and {len(told) - _MOST_KINDS_TOLD} more" if len(told) > _MOST_KINDS_TOLD else ""
    return f"Not all trials were computed alike (--allow-other-numbers): {'; '.join(told[:_MOST_KINDS_TOLD])}{more}."


def _told(numerics: Numerics | None) -> str:
    if numerics is None:
        return "not known how"
    threads = f"{numerics['threads']} thread{'s' if numerics['threads'] > 1 else ''} a trial"
    return f"on {'CPUs' if numerics['device'] == 'cpu' else 'GPUs'} with {threads} in {numerics['precision']}"


def _beginning(attempt: int, arguments: Sequence[str], numerics: Numerics | None) -> dict[str, Any]:
    """Say what belongs to one attempt."""
    known = {} if numerics is None else {"numerics": dict(numerics)}
    return {
        "command": [_without_folder(argument) for argument in arguments],
        "attempt": attempt,
        "versions": _versions(),
        "git_commit": _git_commit(),
        "started_utc": utc_now(),
        "ended_utc": None,
        "status": "running",
        **known,
    }


def ended(manifest: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
    """Return the manifest of a run that ends now."""
    return {**manifest, "status": outcome, "ended_utc": utc_now()}


def with_test_opening(manifest: Mapping[str, Any], trial_ids: Sequence[str]) -> dict[str, Any]:
    """Return the manifest with one more opening of the test images."""
    opening = {"opened_utc": utc_now(), "trial_ids": list(trial_ids)}
    return {**manifest, "test_openings": [*manifest["test_openings"], opening]}


def utc_now() -> str:
    """Return the present moment in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _without_folder(argument: str) -> str:
    option, separator, value = argument.rpartition("=")
    path = Path(value)
    return f"{option}{separator}{path.name}" if path.is_absolute() else argument


def _versions() -> dict[str, str]:
    packages = {package: metadata.version(package) for package in _RECORDED_PACKAGES}
    return {"tune_lung": __version__, "python": platform.python_version(), **packages}


def _git_commit() -> str | None:
    """Return the checkout's commit, or None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - whichever git the user has
            capture_output=True,
            text=True,
            check=True,
            cwd=root,  # where a relative entry of PATH would look for git, too
            env={name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")},  # others'
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
