"""What the nodes' devices can do, asked before a search: whether torch can use them, and whether they multiply bf16 natively.

The driver's own machine says nothing of a cluster's. A short task goes to each node that has room for a trial; a trial's GPU is
one of the node's, and stands for the others there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch.nn import functional

from tune_lung.errors import InputError
from tune_lung.models.precision import supports_bf16
from tune_lung.results.schema import FailureKind
from tune_lung.tuning.cluster import Resources, has_room, task_options
from tune_lung.tuning.device import claim_device, device_name
from tune_lung.tuning.failures import kind_of, line_of, text_of

SECONDS_TO_ANSWER = 60.0
"""Nodes that have not answered by then, such as those that others keep busy, are not waited for."""


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What a trial's device is."""

    name: str
    """As the ledger names it."""
    has_bf16: bool
    """Whether it multiplies bf16 natively."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the nodes answered."""

    devices: tuple[DeviceFacts, ...] = ()
    """Of the nodes whose device works."""
    faults: tuple[str, ...] = ()
    """What is wrong with the others', a line each."""
    num_silent: int = 0
    """Nodes without an answer."""
    on_gpus: bool
    """Whether trials take GPUs."""

    @property
    def all_have_bf16(self) -> bool | None:
        """Whether every device that works multiplies bf16 natively; None where none has answered."""
        return all(device.has_bf16 for device in self.devices) if self.devices else None

    def check(self) -> None:
        """Refuse devices of which none can be used, before a trial finds it out.

        Raises:
            InputError: All nodes have answered, and none's device works.
        """
        if self.faults and not self.devices and not self.num_silent:
            instead = ", or train on CPUs with --gpus-per-trial 0" if self.on_gpus else ""
            raise InputError(f"No trial can be trained here: {self.faults[0]}. Mend that{instead}.")

    def notes(self) -> list[str]:
        """Say in a line each what is wrong with some of the devices."""
        num_nodes = len(self.devices) + len(self.faults) + self.num_silent
        return [
            f"{self.faults.count(fault)} of {num_nodes} nodes cannot train: {fault}. What comes there is tried again elsewhere"
            for fault in dict.fromkeys(self.faults)
        ]


def survey_devices(resources: Resources, *, seconds: float = SECONDS_TO_ANSWER) -> Survey:
    """Ask every node that is there and has room for a trial.

    Args:
        resources: What a trial gets.
        seconds: How long to wait for answers.
    """
    cpus, gpus = resources.cpus_per_trial, resources.gpus_per_trial
    names = [node["NodeID"] for node in ray.nodes() if node["Alive"] and has_room(node["Resources"], cpus=cpus, gpus=gpus)]
    ask = ray.remote(**task_options(cpus=0, gpus=gpus))(describe_device)  # without a CPU: no trial of others is in its way
    asked = [ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)).remote(gpus) for name in names]
    answered, silent = ray.wait(asked, num_returns=len(asked), timeout=seconds) if asked else ([], [])
    for late in silent:
        ray.cancel(late, force=True)
    return _summed(answered, num_silent=len(silent), on_gpus=gpus > 0)


def _summed(answered: Sequence["ray.ObjectRef[DeviceFacts]"], *, num_silent: int, on_gpus: bool) -> Survey:
    devices, faults = [], []
    for answer in answered:
        try:
            devices.append(ray.get(answer))
        except ray.exceptions.RayError as error:
            text = text_of(error)
            kind = kind_of(text, silent_seconds=0.0, hang_seconds=SECONDS_TO_ANSWER)
            if kind in (FailureKind.OUT_OF_MEMORY, FailureKind.LOST_NODE):
                num_silent += 1  # others fill it just now, or it is gone
            else:
                faults.append(line_of(kind, text).removeprefix(f"{kind}: ").removesuffix("."))
    return Survey(devices=tuple(devices), faults=tuple(faults), num_silent=num_silent, on_gpus=on_gpus)


def describe_device(gpus: float) -> DeviceFacts:
    """Say what this worker's device is, having computed something on it.

    Args:
        gpus: GPUs of a trial.

    Raises:
        UnusableGpuError: torch cannot use the GPU.
    """
    device = claim_device(cpus=1, gpus=gpus)
    images_NCHW = torch.ones(2, 1, 8, 8, device=device)
    weights = torch.ones(4, 1, 3, 3, device=device, requires_grad=True)
    functional.conv2d(images_NCHW, weights).flatten(1).matmul(torch.ones(144, 2, device=device)).sum().backward()  # type: ignore[no-untyped-call]
    weights.grad.sum().item()  # type: ignore[union-attr] # waits for the device
    return DeviceFacts(name=device_name(device), has_bf16=supports_bf16(device))
