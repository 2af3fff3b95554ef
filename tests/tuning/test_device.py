"""What a worker makes of the device that Ray gave it."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tune_lung.tuning.device import UnusableGpuError, claim_device, peak_memory_bytes


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags
    torch.set_num_threads(threads)


def test_on_a_gpu_fp32_is_never_rounded_to_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch.backends.cudnn.allow_tf32  # torch's own choice for convolutions
    assert claim_device(cpus=1, gpus=0.5) == torch.device("cuda")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Found no NVIDIA driver on your system.\nPlease"), "Found no NVIDIA driver on your system."),
        (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA enabled"),
        (None, "torch sees no GPU: check its driver and torch's CUDA version."),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_an_error_with_torchs_reason(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, reason: str
) -> None:
    def init() -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(UnusableGpuError) as raised:
        claim_device(cpus=1, gpus=1)
    assert str(raised.value) == reason


def test_without_a_gpu_a_trial_has_as_many_threads_as_whole_cpus() -> None:
    assert claim_device(cpus=2.5, gpus=0) == torch.device("cpu")
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("library", [OSError("no shared library"), SimpleNamespace()])
def test_a_c_library_that_is_not_glibc_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    """As macOS's, musl's, or that of a Python linked as one program."""

    def load(_: None) -> object:
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr("ctypes.CDLL", load)
    assert claim_device(cpus=1, gpus=0) == torch.device("cpu")


def test_memory_at_its_peak_is_what_the_system_says() -> None:
    taken = bytearray(300_000_000)  # zeroed, and so really taken
    taken[::4096] = b"x" * len(taken[::4096])
    kilobytes = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert peak_memory_bytes() == pytest.approx(int(kilobytes) * 1024, rel=0.02)  # two looks, a moment apart


def test_macos_counts_its_peak_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("resource.getrusage", lambda _: SimpleNamespace(ru_maxrss=3_000_000_000))
    assert peak_memory_bytes() == 3_000_000_000
