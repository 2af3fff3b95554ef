"""What the nodes' devices answer before a search, and what follows from it."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from rich.console import Console

from tune_lung.config import RunConfig
from tune_lung.errors import InputError
from tune_lung.search import steps as search_steps
from tune_lung.tuning.survey import DeviceFacts, Survey

A100, T4 = DeviceFacts(name="A100", has_bf16=True), DeviceFacts(name="Tesla T4", has_bf16=False)
STRICT = RunConfig(image_size=64)


def precision_for(survey: Survey | None, run: RunConfig = STRICT) -> tuple[str, str]:
    """What `--precision auto` becomes, and what is said of it."""
    told = StringIO()
    return search_steps._best_precision(run, survey, Console(file=told, width=200)), told.getvalue()


def test_bf16_is_chosen_where_every_gpu_multiplies_it_natively() -> None:
    assert precision_for(Survey(devices=(A100, A100), on_gpus=True)) == ("bf16", "")


def test_one_gpu_without_bf16_makes_all_trials_fp32_and_is_named() -> None:
    chosen, told = precision_for(Survey(devices=(A100, T4), on_gpus=True))
    assert chosen == "fp32"
    assert told == "Precision fp32: Tesla T4 does not multiply bf16 natively. --precision bf16 takes it all the same\n"


def test_gpus_that_nobody_can_ask_are_not_taken_to_have_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_steps, "supports_bf16", lambda _: True)  # the driver's own processor says nothing of them
    chosen, told = precision_for(Survey(num_silent=1, on_gpus=True))
    assert chosen == "fp32"
    assert "no node is there to be asked for bf16" in told


@pytest.mark.parametrize("own", [True, False])
def test_processors_that_nobody_can_ask_are_taken_to_be_the_drivers(monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    monkeypatch.setattr(search_steps, "supports_bf16", lambda _: own)
    for survey in (None, Survey(on_gpus=False)):
        assert precision_for(survey)[0] == ("bf16" if own else "fp32")


def test_the_published_protocol_is_fp32_on_every_device() -> None:
    assert precision_for(Survey(devices=(A100,), on_gpus=True), RunConfig(image_size=64, protocol="published")) == ("fp32", "")


def test_only_devices_of_which_none_works_are_refused() -> None:
    broken = "its node's GPU cannot be used: no driver"
    with pytest.raises(InputError, match=r"^No trial can be trained here: its node's GPU .* --gpus-per-trial 0\.$"):
        Survey(faults=(broken, broken), on_gpus=True).check()
    for survey in (Survey(faults=(broken,), num_silent=1, on_gpus=True), Survey(faults=(broken,), devices=(T4,), on_gpus=True)):
        survey.check()
        assert survey.notes() == [f"1 of 2 nodes cannot train: {broken}. What comes there is tried again elsewhere"]
    Survey(on_gpus=True).check()


@pytest.mark.ray
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use this machine's GPU")
def test_a_gpu_that_torch_cannot_use_is_found_and_no_process_serves_two_tasks_with_a_gpu() -> None:
    with TemporaryDirectory(prefix="ray") as short_path:  # pytest's is too long for Ray's sockets
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("one_gpu.py")), short_path],
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    (fault,) = found["faults"]
    assert fault.startswith("its node's GPU cannot be used: Found no NVIDIA driver on your system.")
    assert len(set(found["pids"])) == len(found["pids"]) == 3
