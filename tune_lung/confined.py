"""A child process that reads what no library can be trusted with: bounded in memory and in time, and ended at will.

What a hostile file costs shows only while it is decoded. So a module that decodes such files has a function `answer`, and a
child of this interpreter calls it, with as much memory and processor time for each call as the caller allows. Where that is
not enough, or the library ends its process, the child is gone and the caller is told. The child is no wall around code: it
runs as the same user.
"""

import json
import mmap
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from signal import SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGXCPU
from typing import Any, BinaryIO, Self, TypeAlias, cast

Answer: TypeAlias = tuple[Mapping[str, Any], bytes | memoryview]
"""What a child gives: JSON values, and bytes beside them."""

# This very package first, and then what the parent imports from: neither the working folder nor the environment has a say.
_PROGRAM = (
    "import sys; module, home, *paths = sys.argv[1:]; sys.path[:] = [home]; import tune_lung; sys.path[:] = paths;"
    "from tune_lung.confined import serve; serve(module)"
)
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # the others reserve memory that they may never need, and it counts
}
_MOST_HEAD_BYTES = 1 << 24
_HOME = str(Path(__file__).parents[1])
_MEMORY_IN_PAGES = Path("/proc/self/statm")
_ENDS_OF_ITS_OWN = frozenset({-SIGXCPU, -SIGSEGV, -SIGBUS, -SIGABRT, -SIGFPE, -SIGILL})
"""How a child ends that reads what no library can be trusted with; killed, it was by somebody, or for the machine's memory."""
_NO_ROOM = -1
"""In place of an answer's size: the machine has less memory than was allowed, or the user's limits are lower."""
_SLACK_BYTES = 2**20


class ConfinedError(Exception):
    """The child could not answer within its bounds, or has ended."""

    def __init__(self, text: str, *, is_over_bounds: bool, from_outside: bool = False) -> None:
        """Say what happened, whether memory or time was too short, and whether that came from outside, not from the question."""
        super().__init__(text)
        self.is_over_bounds = is_over_bounds
        self.from_outside = from_outside


class Confined:
    """One child, asked one question after another. It starts with the first, and anew where it has ended."""

    def __init__(self, module: str) -> None:
        """Name the module whose `answer` the child calls."""
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._is_interrupted = False
        self._starting = threading.Lock()

    def ask(
        self, question: Mapping[str, Any], *, memory_bytes: int, cpu_seconds: int, most_bytes: int
    ) -> tuple[dict[str, Any], bytes]:
        """Ask the child, and wait for what it answers.

        Args:
            question: JSON values.
            memory_bytes: What it may take beyond what it has.
            cpu_seconds: Processor time, at least 1: neither a slow disk nor a busy machine counts.
            most_bytes: Size of the largest answer.

        Raises:
            ConfinedError: It could not answer within these bounds, has ended, or was interrupted.
            OSError: No child can be started.
        """
        allowed = {"memory_bytes": memory_bytes, "cpu_seconds": cpu_seconds, "question": question}
        process = self._running()
        try:
            _give(process, json.dumps(allowed).encode() + b"\n")
            return _taken(process, most_bytes=most_bytes)
        except BaseException as error:
            status = self._end()
            if isinstance(error, EOFError | BrokenPipeError):
                text = f"The child ended with status {status}."
                from_outside = status not in _ENDS_OF_ITS_OWN
                raise ConfinedError(text, is_over_bounds=status == -SIGXCPU, from_outside=from_outside) from error
            raise

    def interrupt(self) -> None:
        """End the child from another thread than the one that asks, which gets a ConfinedError; no other child starts."""
        with self._starting:
            self._is_interrupted = True
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """End the child, if there is one."""
        self._end()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _running(self) -> "subprocess.Popen[bytes]":
        with self._starting:
            if self._is_interrupted:
                raise ConfinedError("Interrupted.", is_over_bounds=False, from_outside=True)
            if self._process is None:
                self._process = subprocess.Popen(  # noqa: S603 - this interpreter
                    [sys.executable, "-I", "-c", _PROGRAM, self._module, _HOME, *(path for path in sys.path if path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={**os.environ, **_ENVIRONMENT},
                    start_new_session=True,  # Ctrl-C is for us, and we end it
                )
            return self._process

    def _end(self) -> int | None:
        """End the child and return its exit status; the next question starts another."""
        with self._starting:
            process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        with suppress(BrokenPipeError), process:  # closes its pipes and waits
            pass
        return process.returncode


def _give(process: "subprocess.Popen[bytes]", line: bytes) -> None:
    pipe = cast(BinaryIO, process.stdin)
    pipe.write(line)
    pipe.flush()


def _taken(process: "subprocess.Popen[bytes]", *, most_bytes: int) -> tuple[dict[str, Any], bytes]:
    pipe = cast(BinaryIO, process.stdout)
    head = pipe.readline(_MOST_HEAD_BYTES)
    if not head.endswith(b"\n"):
        raise EOFError
    size, answer = json.loads(head)
    if size == _NO_ROOM:
        text = "The machine, or a limit of yours, gives less memory or time than is allowed."
        raise ConfinedError(text, is_over_bounds=False, from_outside=True)
    if answer is None:
        raise ConfinedError("The answer takes more memory than is allowed.", is_over_bounds=True)
    if size > most_bytes:
        raise ConfinedError(f"The answer has {size} bytes, more than is allowed.", is_over_bounds=True)
    content = pipe.read(size)
    if len(content) < size:
        raise EOFError
    return answer, content


def serve(module: str) -> None:
    """Answer as a child, until the parent goes away.

    Args:
        module: The module whose `answer` is called: with a question, to give JSON values and bytes.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer = import_module(module).answer
    with os.fdopen(os.dup(1), "wb") as pipe:
        os.dup2(2, 1)  # what a library prints is no answer
        for line in sys.stdin.buffer:
            _answer_one(json.loads(line), answer, pipe)  # nothing of an answer stays while the next question is waited for


def _answer_one(allowed: Mapping[str, Any], answer: Callable[[Mapping[str, Any]], Answer], pipe: BinaryIO) -> None:
    has_all_memory, has_time = bound_memory(allowed["memory_bytes"]), _bound_time(allowed["cpu_seconds"])
    values: Mapping[str, Any] | None = None
    content: bytes | memoryview = b""
    if has_time:
        try:
            values, content = answer(allowed["question"])
        except MemoryError:
            values = None
    has_room = values is not None or (has_time and has_all_memory and _has_what_is_allowed())
    pipe.write(json.dumps([len(content) if has_room else _NO_ROOM, values]).encode() + b"\n")
    pipe.write(content)
    pipe.flush()


def bound_memory(num_bytes: int) -> bool:
    """Let this process, a child, take no more than so many bytes beyond what it has now.

    A system that does not say what it has, as macOS, which heeds no such bound either, gives it what there is.

    Returns:
        Whether it may take so many: a limit of the user's may be lower.
    """
    if not _MEMORY_IN_PAGES.exists():
        return True
    bound = _memory_now() + num_bytes
    return _set_soft(resource.RLIMIT_AS, bound) == bound


def _memory_now() -> int:
    return int(_MEMORY_IN_PAGES.read_bytes().split()[0]) * resource.getpagesize()


def _has_what_is_allowed() -> bool:
    """Whether the machine gives this process what its bound still lets it take."""
    bound, _ = resource.getrlimit(resource.RLIMIT_AS)
    if bound == resource.RLIM_INFINITY or not _MEMORY_IN_PAGES.exists():
        return True
    room = bound - _memory_now() - _SLACK_BYTES
    try:
        mmap.mmap(-1, max(room, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return room <= 0
    return True


def _bound_time(cpu_seconds: int) -> bool:
    """End this process when it has taken so many seconds from now on; say whether a limit of the user's lets it have them."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    bound = int(usage.ru_utime + usage.ru_stime) + 1 + cpu_seconds
    return _set_soft(resource.RLIMIT_CPU, bound) == bound


def _set_soft(kind: int, bound: int) -> int:
    """Set a bound, or the user's where that is lower, and return which it is."""
    _, hard = resource.getrlimit(kind)
    least = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
    resource.setrlimit(kind, (least, hard))
    return least
