"""What sort of failure ended a trial's attempt, and what is done about it. A trial's configuration is never altered.

A trial whose worker or node went away, or hung, is tried again where Ray finds room; one that met the end of its memory once
more, alone, when all others have ended. All others fail at once: tried again they would fail again.
"""

import re
from typing import NamedTuple

from tune_lung.results.schema import FailureKind

MOST_FAILURES = {FailureKind.LOST_NODE: 10, FailureKind.LOST_WORKER: 3, FailureKind.HUNG: 2, FailureKind.OUT_OF_MEMORY: 2}
"""Failures of one kind, since the search began or went on, with which a trial has failed; of the other kinds the first."""

FIRST_BUGS_THAT_END_A_SEARCH = 3
"""When so many trials have ended, and every one with a bug, the others would too."""

_KIND_BY_MARK = {
    "OtherImagesError": FailureKind.BAD_DATA,
    "StoreDamagedError": FailureKind.BAD_DATA,
    "OUT_OF_MEMORY": FailureKind.OUT_OF_MEMORY,
    "OutOfMemory": FailureKind.OUT_OF_MEMORY,
    "out of memory": FailureKind.OUT_OF_MEMORY,
    "running low on memory": FailureKind.OUT_OF_MEMORY,
    "can't allocate memory": FailureKind.OUT_OF_MEMORY,
    "MemoryError": FailureKind.OUT_OF_MEMORY,
    "node has died": FailureKind.LOST_NODE,
    "NodeDiedError": FailureKind.LOST_NODE,
    "The actor died": FailureKind.LOST_WORKER,
    "The actor is dead": FailureKind.LOST_WORKER,
    "ActorDiedError": FailureKind.LOST_WORKER,
    "ActorUnavailableError": FailureKind.LOST_WORKER,
    "RayActorError": FailureKind.LOST_WORKER,
    "WorkerCrashedError": FailureKind.LOST_WORKER,
}
"""What an error's text holds, the telling ones first: what Ray says of a dead worker names the reason further down."""
_NO_ROOM_MARKS = ("[Errno 28]", "[Errno 122]", "No space left on device", "Disk quota exceeded", "NoRoomError")
_TEXT_BY_KIND = {
    FailureKind.LOST_WORKER: "its worker's process died",
    FailureKind.LOST_NODE: "its node went away",
    FailureKind.HUNG: "nothing moved for too long",
}
_PATH = re.compile(r"(?<![\w.])(?:/[^\s'\"<>:,()]+)+")
_SOURCE = re.compile(r".*(?:tune_lung|site-packages|python3\.\d+)/(.+\.py)$")


class Failure(NamedTuple):
    """A failed attempt at a trial."""

    kind: FailureKind
    """What sort of failure."""
    text: str
    """One line on it, without paths."""
    is_final: bool
    """Whether the trial is given up."""


def kind_of(text: str, *, silent_seconds: float, hang_seconds: float) -> FailureKind:
    """Sort a failure by what is known of it.

    Args:
        text: The traceback that Ray has of it; empty where it has none.
        silent_seconds: Time since the trial's last report.
        hang_seconds: Time without a finished batch after which a worker ends itself.
    """
    kind = next((kind for mark, kind in _KIND_BY_MARK.items() if mark in text), FailureKind.BUG if text else None)
    if kind in (FailureKind.LOST_WORKER, None):
        return FailureKind.HUNG if silent_seconds >= hang_seconds else FailureKind.LOST_WORKER
    return kind


def is_for_lack_of_room(text: str) -> bool:
    """Whether a traceback ends with a full disk."""
    return any(mark in _last_line(text) for mark in _NO_ROOM_MARKS)


def is_for_another_owner(text: str) -> bool:
    """Whether a traceback ends with a worker's finding that another driver owns the run."""
    return "SupersededError" in _last_line(text)


def has_traceback(kind: FailureKind) -> bool:
    """Whether a failure's text leads to what is to be mended; of a worker that is gone, Ray knows addresses alone."""
    return kind not in _TEXT_BY_KIND


def line_of(kind: FailureKind, text: str) -> str:
    """Say in one line what failed, without paths."""
    return f"{kind}: {_TEXT_BY_KIND.get(kind) or without_paths(_last_line(text))}"


def without_paths(text: str) -> str:
    """Take folders out of a text, and files that are no source code: image names may be private."""
    return _PATH.sub(_shortened, text)


def _shortened(found: re.Match[str]) -> str:
    source = _SOURCE.search(found[0])
    return f".../{source[1]}" if source else "..."


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
