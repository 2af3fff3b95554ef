"""What a training step copies to a GPU: never so that host and GPU wait for each other. The GPU is a fake of torch's own."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode

from tune_lung.training import fit as fit_module
from tune_lung.training.batch_sources import ImageInputs
from tune_lung.training.job import TrainingJob
from tune_lung.training.stopwatch import StoppedStopwatch

GPU = torch.device("cuda")


class Copies(TorchDispatchMode):
    """Notes every copy from the host to the GPU, and whether anybody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for: list[str] = []
        self.count = 0
        self.pinned: list[Tensor] = []

    def pin(self, values: Tensor) -> Tensor:
        """Stand in for `Tensor.pin_memory`, which needs a driver."""
        self.pinned.append(values.clone())
        return self.pinned[-1]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if func is torch.ops.aten._to_copy.default and to is not None and to.type == "cuda" and args[0].device.type == "cpu":
            self.count += 1
            if not kwargs.get("non_blocking") or not any(args[0] is values for values in self.pinned):
                self.waited_for.append(f"{tuple(args[0].shape)} {args[0].dtype}")
        return func(*args, **kwargs)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Copies]:
    """Note what is copied inside."""
    noted = Copies()
    monkeypatch.setattr(Tensor, "pin_memory", lambda values: noted.pin(values))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield noted


@pytest.mark.parametrize("free_bytes", [10**12, 0], ids=["images on the GPU", "images mapped"])
@pytest.mark.parametrize("augmentation", ["none", "light", "strong"])
def test_no_copy_of_a_training_step_is_waited_for(
    make_job: Callable[..., TrainingJob],
    copies: Copies,
    monkeypatch: pytest.MonkeyPatch,
    augmentation: str,
    free_bytes: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_bytes, 10**12))
    monkeypatch.setattr(Tensor, "backward", lambda _: None)  # it needs a driver
    monkeypatch.setattr(fit_module, "drawn_from", lambda *_: nullcontext())  # so do its generators
    monkeypatch.setattr(fit_module, "epoch_batches", lambda *_, **__: [torch.arange(8), torch.arange(8, 16)])
    point = {"channels": (4, 8), "kernel_sizes": (3, 3), "padding": "same", "batch_size": 8}
    job = replace(make_job(point | {"augmentation": augmentation, "input": "lungs"}), device=GPU)
    network = nn.Sequential(nn.Flatten(), nn.Linear(job.run.image_size**2, 2, device=GPU))
    inputs, optimizer = ImageInputs(job, network), SGD(network.parameters(), lr=0.1)
    inputs.train_batch(torch.arange(8), torch.Generator())  # the normalisation's numbers are copied once
    with copies, pytest.raises(DataDependentOutputException):  # a fake loss has no value
        fit_module._train_epoch(job, inputs, optimizer, 1, lambda: None, StoppedStopwatch())
    assert copies.waited_for == []
    assert copies.count >= 2 * 3  # of each step: indices of images, masks and labels, or what these choose
