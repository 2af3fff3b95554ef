"""What sort of failure ended a trial's attempt, and what is done about it. A trial's configuration is never altered.

A failure is sorted by its cause, wherever it was raised: in a trial's set-up, its steps or its sealed test, by torch, Python or
Ray. A trial whose worker or node went away, or hung, is tried again where Ray finds room; one whose node is at fault on another
node, where there is one; one that read what was damaged in a cache, where that is built again; one that met the end of its
memory once more, alone, when all others have ended. All others fail at once: tried again they would fail again. None is tried
for ever.
"""

import errno
import os
import re
from typing import NamedTuple

from tune_lung.results.schema import FailureKind

MOST_FAILURES = {
    FailureKind.LOST_NODE: 10,
    FailureKind.LOST_WORKER: 3,
    FailureKind.UNFIT_NODE: 3,
    FailureKind.DAMAGED_CACHE: 5,
    FailureKind.HUNG: 2,
    FailureKind.OUT_OF_MEMORY: 2,
}
"""Failures of one kind, since the search began or went on, with which a trial has failed; of the other kinds the first."""

FIRST_FAILURES_THAT_END_A_SEARCH = 3
"""When so many trials have ended, and every one with a failure that the others would meet too, the search ends."""

HOPELESS = frozenset({FailureKind.BUG, FailureKind.UNFIT_NODE, FailureKind.DAMAGED_CACHE})
"""Those failures."""

CURABLE = frozenset(set(FailureKind) - {FailureKind.BUG, FailureKind.DIVERGED, FailureKind.OUT_OF_MEMORY})
"""Failures whose cause lies outside of their trial, so that somebody may have mended it: a run that goes on tries them again."""

_MEMORY = re.compile(
    r"out of memory|OUT_OF_MEMORY|OutOfMemory|running low on memory|(?:can't|[Cc]annot|[Uu]nable to|[Ff]ailed to) allocate"
    r"|not enough memory|std::bad_alloc|malloc of size|cudaErrorMemoryAllocation|\[Errno 12\]"
    r"|_ALLOC(?:ATION)?_FAILED|StatusAllocFailed"
    # A library whose own memory cannot be had says that it was not set up, or that it knows no way to compute.
    r"|STATUS_NOT_INITIALIZED|StatusNotInitialized|unable to find an engine to execute|Unable to find a valid cuDNN algorithm"
    r"|NVML_SUCCESS == r INTERNAL ASSERT FAILED"
)
"""What torch, CUDA and its libraries, numpy and the system say of memory that they cannot have."""

_GPU = re.compile(
    r"no NVIDIA driver|NVIDIA driver on your system is too old|No CUDA GPUs are available"
    r"|no CUDA-capable device|CUDA driver version is insufficient|CUDA driver initialization failed|cudaGetDeviceCount"
    r"|not compiled with CUDA|unsupported display driver|system not yet initialized|device\(s\) is/are busy or unavailable"
    r"|no kernel image is available|unsupported toolchain|forward compatibility was attempted|uncorrectable|GPU is lost"
    r"|invalid device (?:ordinal|function)|(?:CUDA|HIP) error: (?:unknown error|initialization error|operation not permitted)"
    r"|hardware stack error|MPS (?:client|server)|INCOMPATIBLE_CUDA|_ARCH_MISMATCH|SUBLIBRARY_|cuDNN version incompatibility"
)
"""What torch and CUDA say of a GPU, or of its driver, that cannot be used at all."""

_INSTALLATION = re.compile(
    r"^(?:ImportError|ModuleNotFoundError|ray\.exceptions\.RuntimeEnvSetupError): |Failed to set up runtime environment"
    r"|cannot open shared object file|undefined symbol: "
)
"""What Python and Ray say where a package, or a library, is not there or does not fit."""

_OF_LINUX = ("EUCLEAN", "EREMOTEIO", "ENOMEDIUM", "EMEDIUMTYPE", "ENOKEY", "EKEYEXPIRED", "EKEYREVOKED", "EKEYREJECTED")
_REFUSALS = (
    *(errno.EPERM, errno.ENOENT, errno.EIO, errno.ENXIO, errno.EACCES, errno.ENODEV, errno.ENOTDIR, errno.ENFILE),
    *(errno.EROFS, errno.ENOLCK, errno.ENOLINK, errno.EPROTO, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENOTCONN, errno.ESTALE),
    *(getattr(errno, name) for name in _OF_LINUX if hasattr(errno, name)),
)
"""Reasons for which a system refuses a file that is there on other nodes: rights, mounts, network, disk."""
_FILE = re.compile("|".join(rf"\[Errno {number}\]|{re.escape(os.strerror(number))}" for number in _REFUSALS))

_OURS = "tune_lung."
_BAD_DATA = ("OtherImagesError",)
_DAMAGED_CACHE = ("StoreDamagedError", "FeaturesDamagedError")
_NO_ROOM_MARKS = (
    *("[Errno 28]", f"[Errno {errno.EDQUOT}]", "No space left on device", os.strerror(errno.EDQUOT), "NoRoomError"),
    *("OutOfDiskError", "local disk's utilization is over capacity"),
)

_WORKER_GONE = re.compile(
    r"^(?:(?:ray\.exceptions\.)?(?:RayActorError|Actor\w+Error|WorkerCrashedError|LocalRayletDiedError)\b"
    r"|The actor (?:died unexpectedly|is dead|experienced|never ran|is not schedulable|\w+ is unavailable)|Ray killed its worker"
    r"|The worker died unexpectedly)",
    re.MULTILINE,
)
_NODE_GONE = re.compile(
    r"its node has died|node was preempted|node preemption|died by preemption|NodeDiedError|node it was running on is dead"
    r"|placement group corresponding to this (?:Actor|task) has been removed|have been lost due to node failure"
)
_CREATION = "error raised in its creation task"

_TEXT_BY_KIND = {
    FailureKind.LOST_WORKER: "its worker's process died",
    FailureKind.LOST_NODE: "its node went away",
    FailureKind.HUNG: "nothing moved for too long",
}

_CAUSED = "The above exception was the direct cause of the following exception:"
_HANDLED = "During handling of the above exception, another exception occurred:"
_CHAINED = re.compile(rf"^({re.escape(_CAUSED)}|{re.escape(_HANDLED)})$", re.MULTILINE)
_NAMED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Interrupt|Exit)(?:\(\w+\))?(?::\s|:?$)")

_PATH = re.compile(
    r"(?P<manual>https?://(?:[\w-]+\.)*(?:nvidia\.com|pytorch\.org)[\w/.#-]*)"
    r"|(?P<quote>['\"])(?P<quoted>/(?:(?!(?P=quote)).)+)(?P=quote)|(?<![\w.])(?:/[^\s'\"<>:,()]+)+"
)
_SOURCE = re.compile(r".*(?:tune_lung|site-packages|python3\.\d+)/(.+\.py)$")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_WHERE = re.compile(r"ray::[^\n]*?\(pid=\d+, ip=(?P<ip>[^\s,)]+)[^\n]*\)$", re.MULTILINE)
_ADDRESS = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?(?![\w.]*\d)")


class Failure(NamedTuple):
    """A failed attempt at a trial."""

    kind: FailureKind
    """What sort of failure."""
    text: str
    """One line on it, without paths."""
    is_final: bool
    """Whether the trial is given up."""


class _Raised(NamedTuple):
    """One exception, as a traceback tells of it."""

    name: str
    """Of its type, as printed."""
    message: str
    """All lines of its text."""

    @property
    def line(self) -> str:
        """What a traceback's last line would say, were its text one line long."""
        first = next((line.strip() for line in self.message.splitlines() if line.strip()), "")
        if first and self.name.startswith(_OURS):
            return first  # our own texts are whole sentences
        return f"{self.name}: {first}" if first else self.name

    @property
    def own_name(self) -> str:
        """The name of its type without the module's."""
        return self.name.rpartition(".")[2]

    @property
    def kind(self) -> FailureKind | None:
        """The sort of failure that it is by itself; None where that cannot be told."""
        whole = f"{self.name}: {self.message}"
        if self.own_name in _BAD_DATA:
            return FailureKind.BAD_DATA
        if self.own_name in _DAMAGED_CACHE:
            return FailureKind.DAMAGED_CACHE
        if self.own_name.endswith("MemoryError") or _MEMORY.search(whole):
            return FailureKind.OUT_OF_MEMORY
        if _WORKER_GONE.search(whole) or _NODE_GONE.search(whole):
            return _kind_of_loss(whole)
        return None if self.fault_of_node is None else FailureKind.UNFIT_NODE

    @property
    def fault_of_node(self) -> str | None:
        """What its node lacks, as the beginning of a sentence; None where it tells of no such thing."""
        if self.own_name == "InputError":
            return "its node lacks what the driver's has"  # the driver has looked at the same before
        if _INSTALLATION.search(f"{self.name}: {self.message}"):
            return "its node lacks a part of the installation"
        if self.own_name == "UnusableGpuError" or _GPU.search(self.message):
            return "its node's GPU cannot be used"
        is_refused = self.own_name in ("PermissionError", "FileNotFoundError") or _FILE.search(self.message)
        return "its node cannot use a file or folder" if is_refused else None


def kind_of(text: str, *, silent_seconds: float, hang_seconds: float) -> FailureKind:
    """Sort a failure by what is known of it.

    Args:
        text: The traceback that Ray has of it; empty where it has none.
        silent_seconds: Time since the trial's last report.
        hang_seconds: Time without a finished batch after which a worker ends itself.
    """
    kind = _sorted(text) if text else FailureKind.LOST_WORKER
    if kind is FailureKind.LOST_WORKER and silent_seconds >= hang_seconds:
        return FailureKind.HUNG
    return kind


def is_for_lack_of_room(text: str) -> bool:
    """Whether a traceback ends with a full disk."""
    told = [f"{raised.name}: {raised.message}" for raised in _raised(text)] or [_last_line(text)]
    return any(mark in one for mark in _NO_ROOM_MARKS for one in told)


def is_for_another_owner(text: str) -> bool:
    """Whether a traceback ends with a worker's finding that another driver owns the run."""
    return "SupersededError" in _last_line(text)


def has_traceback(kind: FailureKind) -> bool:
    """Whether a failure's text leads to what is to be mended; of a worker that is gone, Ray knows addresses alone."""
    return kind not in _TEXT_BY_KIND


def line_of(kind: FailureKind, text: str) -> str:
    """Say in one line what failed, without paths and addresses."""
    if kind in _TEXT_BY_KIND:
        return f"{kind}: {_TEXT_BY_KIND[kind]}"
    raised = _raised(text)
    telling = next((one for one in raised if one.kind is kind), raised[-1] if raised else None)
    if telling is None:
        return f"{kind}: {without_paths(_last_line(text))}"
    told = f"{telling.fault_of_node}: {telling.line}" if kind is FailureKind.UNFIT_NODE else telling.line
    return f"{kind}: {without_paths(told)}"


def text_of(error: Exception) -> str:
    """Lay out an error as Ray keeps what a trial raised: its traceback where Ray gives one, else its name and what it says."""
    told, module = str(error), type(error).__module__
    return told if '  File "' in told else f"{'' if module == 'builtins' else f'{module}.'}{type(error).__name__}: {told}"


def address_in(text: str) -> str | None:
    """Find the address of the node on which a traceback of Ray's was made; None where it tells none."""
    found = _WHERE.search(_COLOUR.sub("", text))
    return None if found is None else found["ip"]


def without_paths(text: str) -> str:
    """Take folders, addresses and colours out of a text, and files that are no source code: image names may be private."""
    plain = _WHERE.sub("Traceback (most recent call last):", _COLOUR.sub("", text))
    return _ADDRESS.sub("...", _PATH.sub(_shortened, plain))


def _shortened(found: re.Match[str]) -> str:
    if found["manual"]:
        return found[0]
    quote, path = found["quote"] or "", found["quoted"] or found[0]
    source = _SOURCE.search(path)
    return f"{quote}.../{source[1]}{quote}" if source else f"{quote}...{quote}"


def _sorted(text: str) -> FailureKind:
    """Name a failure's kind: that of the first cause of all that has one of its own.

    A file that is not there is no cause of what was made of it: a store that lacks a file is damaged.
    """
    plain = _COLOUR.sub("", text)
    if _CREATION not in plain and _WORKER_GONE.search(plain):
        return _kind_of_loss(plain)
    raised = _raised(plain)
    telling = [one for one in raised if one.own_name != "FileNotFoundError" or one is raised[-1]]
    kinds = [one.kind for one in telling] if raised else [_Raised(name="", message=plain).kind]
    return next((kind for kind in kinds if kind is not None), FailureKind.BUG)


def _kind_of_loss(text: str) -> FailureKind:
    """Sort what Ray says of a worker that is gone: the reason stands further down."""
    if "OUT_OF_MEMORY" in text or "running low on memory" in text:
        return FailureKind.OUT_OF_MEMORY
    return FailureKind.LOST_NODE if _NODE_GONE.search(text) else FailureKind.LOST_WORKER


def _raised(text: str) -> list[_Raised]:
    """Read a traceback's last exception and, before it, those that it was raised from: the first cause first.

    An exception that was only being handled when another one came is no cause.
    """
    pieces = _CHAINED.split(_COLOUR.sub("", text))
    chain = [pieces[-1]]
    for connection, piece in zip(pieces[-2::-2], pieces[-3::-2], strict=True):
        if connection != _CAUSED:
            break
        chain.append(piece)
    found = [_exception_in(piece) for piece in reversed(chain)]
    return [raised for raised in found if raised is not None]


def _exception_in(piece: str) -> _Raised | None:
    """Find the exception at the end of one traceback: the first line at its margin after the last frame."""
    lines = piece.splitlines()
    after = max((number for number, line in enumerate(lines) if line.startswith('  File "')), default=-1) + 1
    at_margin = [number for number in range(after, len(lines)) if lines[number] and not lines[number][0].isspace()]
    named = [number for number in at_margin if _NAMED.match(lines[number])]
    start = next(iter(at_margin if after else reversed(named)), None)
    if start is None:
        return None
    name, _, first = lines[start].partition(": ")
    return _Raised(name=name.rstrip(":"), message="\n".join([first, *lines[start + 1 :]]))


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
