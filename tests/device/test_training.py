"""The training layer on a GPU, against the CPU and against itself. `pytest -m device tests/device` runs it where there is one."""

import contextlib
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.optim import SGD

from tune_lung.data.cache import Cache
from tune_lung.models.network import trainable_parameters
from tune_lung.models.precision import autocast
from tune_lung.models.transfer import to_device
from tune_lung.results.schema import FailureKind
from tune_lung.training import prefix_features
from tune_lung.training.batch_sources import Inputs, open_inputs
from tune_lung.training.checkpoints import Checkpoints
from tune_lung.training.fit import fit
from tune_lung.training.job import TrainingJob
from tune_lung.training.loss import loss_of
from tune_lung.tuning.device import GPU_CONTEXT_BYTES
from tune_lung.tuning.failures import kind_of, text_of

from tests.device.conftest import Bench

NETWORKS = [("cnn", 0), ("resnet18", 0), ("resnet18", 2)]


@pytest.fixture(autouse=True)
def _always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_features, "LEAST_GAIN", 0.0)
    monkeypatch.setattr(prefix_features, "_ROOM_TO_LEAVE", 0.0)  # however full the machine's own disk


def batches_of(job: TrainingJob, count: int) -> Iterator[Tensor]:
    """The first images, in order."""
    size = job.trial.batch_size
    for number in range(count):
        yield torch.arange(number * size, (number + 1) * size) % len(job.train.labels_N)


def train_steps(job: TrainingJob, inputs: Inputs, batches: Iterator[Tensor], *, rate: float = 0.01) -> list[Tensor]:
    """Train as a trial does, and give each step's loss; nothing of it waits for the device."""
    optimizer = SGD(trainable_parameters(inputs.module), lr=rate)  # type: ignore[arg-type]
    draws, loss_of_batch, losses = torch.Generator().manual_seed(5), loss_of("strict", label_smoothing=0.0), []
    inputs.module.train()
    for indices in batches:
        with autocast(job.device, job.trial.precision):
            logits_NK = inputs.module(inputs.train_batch(indices, draws))
        loss = loss_of_batch(logits_NK.float(), inputs.train_labels_N[to_device(indices, job.device)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def step_of(job: TrainingJob) -> tuple[float, Tensor]:
    """The loss of one training step, and its gradient as one vector on the CPU."""
    network = job.build_network()
    inputs = open_inputs(job, network, is_resumed=False)
    (loss,) = train_steps(job, inputs, batches_of(job, 1), rate=0.0)
    return loss.item(), torch.cat([one.grad.float().flatten().cpu() for one in trainable_parameters(network)])  # type: ignore[union-attr]


@pytest.mark.parametrize(("model", "frozen_blocks"), NETWORKS)
@pytest.mark.parametrize(
    ("precision", "most_of_loss", "least_cosine"),
    [
        ("fp32", 1e-4, 0.9999),  # other kernels add in another order; TF32 would show as 1e-3
        ("bf16", 0.1, 0.8),  # 8 bits of mantissa
    ],
)
def test_a_step_computes_what_the_cpu_computes_in_fp32(
    bench: Bench, model: str, frozen_blocks: int, precision: str, most_of_loss: float, least_cosine: float
) -> None:
    job = bench.job(model, frozen_blocks, precision=precision)
    on_cpu = replace(job, device=torch.device("cpu"), trial=job.trial.with_fields(precision="fp32"))
    (loss, gradient), (expected, expected_gradient) = step_of(job), step_of(on_cpu)
    assert loss == pytest.approx(expected, rel=most_of_loss)
    assert cosine_similarity(gradient.double(), expected_gradient.double(), dim=0) > least_cosine


def test_training_leaves_the_frozen_prefix_and_its_batch_norm_as_they_are_and_moves_all_else(bench: Bench) -> None:
    job = bench.job("resnet18", 2, augmentation="light")
    network = job.build_network()
    inputs = open_inputs(job, network, is_resumed=False)
    prefix = {name: values.clone() for name, values in network.prefix.state_dict().items()}
    rest = {name: values.detach().clone() for name, values in network.rest.named_parameters()}
    train_steps(job, inputs, batches_of(job, 3))
    for batch in inputs.validation_batches():
        inputs.module.eval()(batch)
    assert all(torch.equal(prefix[name], values) for name, values in network.prefix.state_dict().items())
    assert not any(torch.equal(rest[name], values) for name, values in network.rest.named_parameters())


@pytest.mark.parametrize("frozen_blocks", [1, 2, 4])
def test_stored_features_are_what_the_prefix_gives_for_batches_of_any_size(
    bench: Bench, tmp_path: Path, frozen_blocks: int
) -> None:
    with Cache.open(tmp_path / "cache") as cache:
        job = bench.job("resnet18", frozen_blocks, cache=cache)
        network = job.build_network()
        stored = open_inputs(job, network, is_resumed=False)
        assert stored.prefix_seconds is not None
        images = open_inputs(replace(job, cache=None), network, is_resumed=True)
        network.eval()
        for count in (job.trial.batch_size, job.trial.batch_size - 1, job.trial.batch_size // 2 + 1):
            indices = torch.arange(count)
            with torch.no_grad(), autocast(job.device, job.trial.precision):
                direct = network.prefix(images.train_batch(indices, torch.Generator()))
            features = stored.train_batch(indices, torch.Generator())
            if not bench.is_gpu:
                assert torch.equal(direct, features)
            # bf16 keeps 8 bits: a number may be rounded the other way, and all that follows from it
            assert (direct - features).double().norm() < 2e-2 * features.double().norm()


def test_a_trial_on_stored_features_learns_what_one_on_images_learns(bench: Bench, tmp_path: Path) -> None:
    with Cache.open(tmp_path / "cache") as cache:
        on_features, on_images = (
            [result.train_loss for result in fit(bench.job("resnet18", 4, cache=own), Checkpoints(tmp_path / name))]
            for name, own in (("features", cache), ("images", None))
        )
    assert on_features == (pytest.approx(on_images, abs=0.02) if bench.is_gpu else on_images)


@pytest.mark.parametrize("model", ["cnn", "resnet18"])
def test_a_trial_repeats_itself_goes_on_as_if_undisturbed_and_learns(bench: Bench, tmp_path: Path, model: str) -> None:
    job = bench.job(model)
    whole, again = ([result.train_loss for result in fit(job, Checkpoints(tmp_path / name))] for name in ("whole", "again"))
    cut = fit(job, Checkpoints(tmp_path / "cut"), rungs={1, 2})
    losses = [next(cut).train_loss, next(cut).train_loss]
    cut.close()
    losses += [result.train_loss for result in fit(job, Checkpoints(tmp_path / "cut"), known_epochs=2)]
    for other in (again, losses):
        assert other == (pytest.approx(whole, abs=0.05) if bench.is_gpu else whole)
    assert math.isfinite(whole[-1])
    assert whole[-1] < whole[0] or not bench.is_gpu  # a few tiny steps need not


@pytest.mark.parametrize("frozen_blocks", [0, 4], ids=["images", "features"])
@pytest.mark.parametrize("augmentation", ["none", "strong"])
def test_no_step_waits_for_the_one_before(bench: Bench, tmp_path: Path, augmentation: str, frozen_blocks: int) -> None:
    with Cache.open(tmp_path / "cache") as cache:
        job = bench.job("resnet18", frozen_blocks, augmentation=augmentation, cache=cache)
        inputs = open_inputs(job, job.build_network(), is_resumed=False)
        train_steps(job, inputs, batches_of(job, 2))  # the first ones set things up
        with warnings.catch_warnings(record=True) as caught, noting_waits(bench):
            warnings.simplefilter("always")
            train_steps(job, inputs, batches_of(job, 5))
    assert [str(one.message) for one in caught if "synchroniz" in str(one.message)] == []


@contextlib.contextmanager
def noting_waits(bench: Bench) -> Iterator[None]:
    """Let torch warn of every call that waits for the GPU; on the CPU there is none."""
    if bench.is_gpu:
        torch.cuda.set_sync_debug_mode("warn")
    yield
    if bench.is_gpu:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_that_cannot_be_had_is_told_as_such_and_the_process_trains_on(bench: Bench) -> None:
    too_much = 2 * torch.cuda.get_device_properties(bench.device).total_memory if bench.is_gpu else 1 << 50
    with pytest.raises(RuntimeError) as raised:
        torch.empty(too_much, dtype=torch.uint8, device=bench.device)
    assert kind_of(text_of(raised.value), silent_seconds=0, hang_seconds=9) is FailureKind.OUT_OF_MEMORY
    assert math.isfinite(step_of(bench.job("cnn"))[0])


@pytest.mark.device
def test_a_processs_context_takes_no_more_than_is_assumed(gpu: torch.device) -> None:
    """Seen from here, before and after another process has computed something."""
    script = (
        "import sys, torch; from torch.nn import functional; from tune_lung.tuning.device import claim_device\n"
        "device = claim_device(cpus=1, gpus=1)\n"
        "for dtype in (torch.float32, torch.bfloat16):\n"
        "    images = torch.ones(8, 16, 64, 64, device=device, dtype=dtype)\n"
        "    functional.conv2d(images, torch.ones(16, 16, 3, 3, device=device, dtype=dtype)).flatten(1).norm().item()\n"
        "print(torch.cuda.memory_reserved(), flush=True); sys.stdin.read()"
    )
    free_before = torch.cuda.mem_get_info(gpu)[0]
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        reserved = int(other.stdout.readline())
        taken = free_before - torch.cuda.mem_get_info(gpu)[0] - reserved
        other.communicate(timeout=60)
    assert 0 < taken <= GPU_CONTEXT_BYTES


@pytest.mark.device
def test_the_survey_says_of_a_gpu_what_torch_says(gpu: torch.device) -> None:
    pytest.importorskip("ray", reason="the survey is a Ray task")
    from tune_lung.tuning.survey import describe_device

    facts = describe_device(1.0)
    assert facts.name == torch.cuda.get_device_name(gpu)
    assert facts.has_bf16 == (torch.cuda.get_device_capability(gpu) >= (8, 0))
