"""Failures sorted by what Ray and Python say of them."""

import pytest

from tune_lung.results.schema import FailureKind
from tune_lung.tuning.failures import is_for_lack_of_room, kind_of, line_of, without_paths

ACTOR_DIED = "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.\n\tclass_name: LungTrial\n"
TEXTS = {
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.": FailureKind.OUT_OF_MEMORY,
    "RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory": FailureKind.OUT_OF_MEMORY,
    "MemoryError": FailureKind.OUT_OF_MEMORY,
    f"{ACTOR_DIED}Worker exit type: NODE_OUT_OF_MEMORY": FailureKind.OUT_OF_MEMORY,
    "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.": FailureKind.OUT_OF_MEMORY,
    f"{ACTOR_DIED}The actor died because its node has died. Node Id: 5a": FailureKind.LOST_NODE,
    f"{ACTOR_DIED}Worker exit type: SYSTEM_ERROR": FailureKind.LOST_WORKER,
    "Failure # 1\nThe actor died unexpectedly before finishing this task.\nThe actor is dead because its worker process has died."
    " (1) the process was killed by the OOM killer": FailureKind.LOST_WORKER,
    "": FailureKind.LOST_WORKER,
    "tune_lung.tuning.plan.OtherImagesError: This node's image folder differs": FailureKind.BAD_DATA,
    "tune_lung.data.store.StoreDamagedError: The pixel store is damaged": FailureKind.BAD_DATA,
    "Traceback (most recent call last):\nKeyError: 'x'": FailureKind.BUG,
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_failure_is_sorted_by_its_text(text: str) -> None:
    assert kind_of(text, silent_seconds=1, hang_seconds=60) == TEXTS[text]


@pytest.mark.parametrize("text", ["", ACTOR_DIED])
def test_a_worker_that_is_gone_after_a_long_silence_hung(text: str) -> None:
    assert kind_of(text, silent_seconds=60, hang_seconds=60) == FailureKind.HUNG


def test_a_bug_after_a_long_silence_stays_a_bug() -> None:
    assert kind_of("ValueError: no", silent_seconds=600, hang_seconds=60) == FailureKind.BUG


@pytest.mark.parametrize(
    "line", ["OSError: [Errno 28] No space left on device", "tune_lung.errors.NoRoomError: No room left for the cache."]
)
def test_a_full_disk_is_told_from_a_bug(line: str) -> None:
    assert is_for_lack_of_room(f"Traceback ...\n{line}")
    assert not is_for_lack_of_room(f"{line}\nValueError: something else")


def test_a_line_names_the_kind_and_no_path() -> None:
    text = "Traceback ...\nFileNotFoundError: [Errno 2] No such file or directory: '/data/xrays/COVID/SECRET_PATIENT.png'"
    assert line_of(FailureKind.BUG, text) == "bug: FileNotFoundError: [Errno 2] No such file or directory: '...'"
    assert line_of(FailureKind.LOST_WORKER, ACTOR_DIED) == "lost_worker: its worker's process died"


def test_of_a_traceback_only_source_files_keep_their_names() -> None:
    text = '  File "/home/me/tune_lung/tune_lung/training/fit.py", line 3, in fit\n    open("/home/me/secret.png")'
    assert without_paths(text) == '  File ".../training/fit.py", line 3, in fit\n    open("...")'
    assert without_paths("2/3 of 4 images, and/or none") == "2/3 of 4 images, and/or none"
