"""Failures sorted by what Ray and Python say of them."""

import subprocess
import sys

import pytest

from tune_lung.results.schema import FailureKind
from tune_lung.tuning.failures import address_in, is_for_lack_of_room, kind_of, line_of, without_paths

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
    "tune_lung.data.store.StoreDamagedError: The pixel store is damaged": FailureKind.DAMAGED_CACHE,
    "tune_lung.training.prefix_features.FeaturesDamagedError: Stored prefix features changed": FailureKind.DAMAGED_CACHE,
    "Traceback (most recent call last):\nKeyError: 'x'": FailureKind.BUG,
    "Failure # 1\nThe actor 5a is unavailable: RpcError. The task may or may not have been executed.": FailureKind.LOST_WORKER,
    "Failure # 1\nThe placement group corresponding to this Actor has been removed.": FailureKind.LOST_NODE,
    "ray.exceptions.WorkerCrashedError: The worker died unexpectedly while executing this task.": FailureKind.LOST_WORKER,
    "ray.exceptions.NodeDiedError: Task failed because the node it was running on is dead or unavailable.": FailureKind.LOST_NODE,
    "Failure # 1\nFailed to set up runtime environment.\nCould not get the working directory.": FailureKind.UNFIT_NODE,
}

CREATION = """Failure # 1 (occurred at 2026-11-27_18-40-51)
The actor died because of an error raised in its creation task, \x1b[36mray::ResourceTrainable.__init__()\x1b[39m (pid=11055,\
 ip=192.0.2.2, actor_id=18f9fbe202e1a7a659c9744b01000000, repr=<ray.tune.trainable.util.LungTrial object at 0x7f4678fc4450>)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/opt/python3.11/site-packages/ray/tune/trainable/trainable.py", line 151, in __init__
    self.setup(copy.deepcopy(self.config))
  File "/home/me/tune_lung/tune_lung/tuning/device.py", line 31, in claim_device
    except torch.OutOfMemoryError as error:  # StoreDamagedError, ActorDiedError, [Errno 28]: not what was raised
"""
"""What Ray keeps of an error in a trial's set-up, up to the error."""
DEBUGGING = """
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""
RAISED = {
    # Memory: torch's own words, those of CUDA's libraries, of the processor's allocators and of the system.
    "torch.AcceleratorError: CUDA error: out of memory" + DEBUGGING: FailureKind.OUT_OF_MEMORY,
    "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": FailureKind.OUT_OF_MEMORY,
    "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`": FailureKind.OUT_OF_MEMORY,
    "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_INITIALIZED": FailureKind.OUT_OF_MEMORY,
    "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED": FailureKind.OUT_OF_MEMORY,
    "RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED": FailureKind.OUT_OF_MEMORY,
    "RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED": FailureKind.OUT_OF_MEMORY,
    "RuntimeError: cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`": FailureKind.OUT_OF_MEMORY,
    "RuntimeError: GET was unable to find an engine to execute this computation": FailureKind.OUT_OF_MEMORY,
    "RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at 'CUDACachingAllocator.cpp':1016": FailureKind.OUT_OF_MEMORY,
    "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.hpp:328, unhandled cuda error\nLast error:\n"
    "Cuda failure 2 'out of memory'": FailureKind.OUT_OF_MEMORY,
    "RuntimeError: std::bad_alloc": FailureKind.OUT_OF_MEMORY,
    "MemoryError: std::bad_alloc": FailureKind.OUT_OF_MEMORY,
    "OSError: [Errno 12] Cannot allocate memory": FailureKind.OUT_OF_MEMORY,
    "RuntimeError: unable to mmap 3355443 bytes from file </cache/train>: Cannot allocate memory (12)": FailureKind.OUT_OF_MEMORY,
    "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 1.00 TiB for an array": FailureKind.OUT_OF_MEMORY,
    "pyarrow.lib.ArrowMemoryError: malloc of size 1048576 failed": FailureKind.OUT_OF_MEMORY,
    # A node's GPU.
    "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU": FailureKind.UNFIT_NODE,
    "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).": FailureKind.UNFIT_NODE,
    "RuntimeError: No CUDA GPUs are available": FailureKind.UNFIT_NODE,
    "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized": FailureKind.UNFIT_NODE,
    "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device"
    + DEBUGGING: FailureKind.UNFIT_NODE,
    "RuntimeError: CUDA error: no CUDA-capable device is detected" + DEBUGGING: FailureKind.UNFIT_NODE,
    "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered" + DEBUGGING: FailureKind.UNFIT_NODE,
    "RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable" + DEBUGGING: FailureKind.UNFIT_NODE,
    "AssertionError: Torch not compiled with CUDA enabled": FailureKind.UNFIT_NODE,
    "tune_lung.tuning.device.UnusableGpuError: torch sees no GPU": FailureKind.UNFIT_NODE,
    # A node's data and disk: rights, mounts, network.
    "PermissionError: [Errno 13] Permission denied: '/mnt/a b/COVID-1.png'": FailureKind.UNFIT_NODE,
    "FileNotFoundError: [Errno 2] No such file or directory: '/mnt/weights/resnet18.pth'": FailureKind.UNFIT_NODE,
    "OSError: [Errno 5] Input/output error": FailureKind.UNFIT_NODE,
    "OSError: [Errno 30] Read-only file system: '/cache/locks'": FailureKind.UNFIT_NODE,
    "OSError: [Errno 116] Stale file handle": FailureKind.UNFIT_NODE,
    "OSError: [Errno 107] Transport endpoint is not connected: '/mnt/data'": FailureKind.UNFIT_NODE,
    "OSError: [Errno 37] No locks available": FailureKind.UNFIT_NODE,
    "RuntimeError: unable to open file </cache/train> in read-only mode: Permission denied (13)": FailureKind.UNFIT_NODE,
    "safetensors_rust.SafetensorError: I/O error: Input/output error (os error 5)": FailureKind.UNFIT_NODE,
    "tune_lung.errors.InputError: There is no folder '/mnt/data'.": FailureKind.UNFIT_NODE,
    # A node's installation.
    "ModuleNotFoundError: No module named 'torchvision'": FailureKind.UNFIT_NODE,
    "ImportError: libcudart.so.13: cannot open shared object file: No such file or directory": FailureKind.UNFIT_NODE,
    # Bugs stay bugs, also those on a GPU that works.
    "torch.AcceleratorError: CUDA error: device-side assert triggered" + DEBUGGING: FailureKind.BUG,
    "torch.AcceleratorError: CUDA error: an illegal memory access was encountered" + DEBUGGING: FailureKind.BUG,
    "RuntimeError: mat1 and mat2 shapes cannot be multiplied (16x8 and 4x2)": FailureKind.BUG,
    "OSError: [Errno 9] Bad file descriptor": FailureKind.BUG,
    "KeyError: 'x'": FailureKind.BUG,
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_failure_is_sorted_by_its_text(text: str) -> None:
    assert kind_of(text, silent_seconds=1, hang_seconds=60) == TEXTS[text]


@pytest.mark.parametrize("error", RAISED)
def test_an_error_is_sorted_by_its_cause_wherever_it_was_raised(error: str) -> None:
    step = 'ray::LungTrial.train() (pid=7, ip=192.0.2.2, actor_id=5a)\n  File "fit.py", line 3, in fit\n    raise error\n'
    for before in (CREATION, step, ""):
        assert kind_of(before + error, silent_seconds=600, hang_seconds=60) == RAISED[error]


def test_an_error_raised_from_another_is_sorted_by_the_first_cause_that_tells() -> None:
    def chained(first: str, connection: str, then: str) -> str:
        frame = '  File "fit.py", line 3, in fit\n    raise\n'
        return f"{frame}{first}\n\n{connection}\n\nTraceback (most recent call last):\n{frame}{then}"

    caused = "The above exception was the direct cause of the following exception:"
    handled = "During handling of the above exception, another exception occurred:"
    denied = "PermissionError: [Errno 13] Permission denied: '/cache/train.npy'"
    absent = "FileNotFoundError: [Errno 2] No such file or directory: '/cache/train.npy'"
    damaged = "tune_lung.data.store.StoreDamagedError: The pixel store /cache is damaged."
    for first, connection, then, kind in (
        (denied, caused, damaged, FailureKind.UNFIT_NODE),
        ("ValueError: no JSON", caused, damaged, FailureKind.DAMAGED_CACHE),
        (absent, caused, damaged, FailureKind.DAMAGED_CACHE),
        ("torch.OutOfMemoryError: CUDA out of memory.", caused, "ValueError: no features", FailureKind.OUT_OF_MEMORY),
        (absent, handled, "KeyError: 'x'", FailureKind.BUG),
        ("KeyError: 'x'", handled, denied, FailureKind.UNFIT_NODE),
    ):
        assert kind_of(chained(first, connection, then), silent_seconds=1, hang_seconds=60) == kind, (first, then)
    full = chained("OSError: [Errno 28] No space left on device", caused, damaged)
    assert is_for_lack_of_room(full)
    assert not is_for_lack_of_room(full.replace(caused, handled))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            "PermissionError: [Errno 13] Permission denied: '/mnt/my scans/COVID-1.png'",
            "its node cannot use a file or folder: PermissionError: [Errno 13] Permission denied: '...'",
        ),
        (
            "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device" + DEBUGGING,
            "its node's GPU cannot be used: torch.AcceleratorError: CUDA error: no kernel image is available for execution on the"
            " device",
        ),
        (
            "tune_lung.tuning.device.UnusableGpuError: The NVIDIA driver on your system is too old (found version 11040).",
            "its node's GPU cannot be used: The NVIDIA driver on your system is too old (found version 11040).",
        ),
        ("tune_lung.errors.InputError: No folder /mnt/data.", "its node lacks what the driver's has: No folder ..."),
        (
            "ModuleNotFoundError: No module named 'torchvision'",
            "its node lacks a part of the installation: ModuleNotFoundError: No module named 'torchvision'",
        ),
        (
            "ConnectionError: nobody at 10.0.0.3:6379 [Errno 113] No route to host",
            "its node cannot use a file or folder: ConnectionError: nobody at ... [Errno 113] No route to host",
        ),
    ],
)
def test_a_nodes_own_fault_is_a_sentence_that_names_it_and_no_path_or_address(error: str, line: str) -> None:
    assert line_of(FailureKind.UNFIT_NODE, CREATION + error) == f"unfit_node: {line}"


def test_an_error_of_several_lines_is_told_by_its_first() -> None:
    text = CREATION + "torch.AcceleratorError: CUDA error: device-side assert triggered" + DEBUGGING
    assert line_of(FailureKind.BUG, text) == "bug: torch.AcceleratorError: CUDA error: device-side assert triggered"


def test_a_traceback_is_shown_without_addresses_and_names_its_node_to_us_alone() -> None:
    text = CREATION + "KeyError: 'x'"
    assert address_in(text) == "192.0.2.2"
    shown = without_paths(text)
    assert "192.0.2.2" not in shown
    assert "pid=" not in shown
    assert "\x1b" not in shown
    assert 'File ".../tuning/device.py", line 31' in shown


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


WITHOUT_LINUX = """
import errno, os
for name in ("EUCLEAN", "EREMOTEIO", "ENOMEDIUM", "EMEDIUMTYPE", "ENOKEY", "EKEYEXPIRED", "EKEYREVOKED", "EKEYREJECTED"):
    delattr(errno, name)
errno.EDQUOT = 69
from tune_lung.tuning.failures import kind_of, is_for_lack_of_room
print(kind_of("PermissionError: [Errno 13] Permission denied: '/mnt/a'", silent_seconds=0, hang_seconds=1).name)
print(is_for_lack_of_room("OSError: [Errno 69] Disc quota exceeded: '/mnt/a'"))
"""
"""Those reasons are Linux's own: macOS has no such names in `errno`, and another number for a quota."""


def test_failures_are_sorted_where_the_system_has_other_reasons_than_linux() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_LINUX], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.split(), done.stderr) == (["UNFIT_NODE", "True"], "")
