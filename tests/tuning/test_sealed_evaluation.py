"""The sealed evaluation of one trial, without Ray."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tune_lung.data.cache_proof import write_listing
from tune_lung.data.store import DecodedImages, PixelStore, StoreDamagedError, write_store
from tune_lung.learners import network
from tune_lung.models.network import changing_state
from tune_lung.training.checkpoints import Checkpoint
from tune_lung.tuning import sealed_evaluation
from tune_lung.tuning.plan import SearchSetup, TrialPlan
from tune_lung.tuning.sealed_evaluation import predict_on_test

SPLITS = ["train"] * 6 + ["validation"] * 4 + ["test"] * 10


@pytest.fixture
def trained(setup: SearchSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TrialPlan, SearchSetup]:
    """A trial with a kept network, and its run over a store of random images."""
    monkeypatch.setattr(sealed_evaluation, "claim_device", lambda **_: torch.device("cpu"))
    images = DecodedImages(
        pixels_MHW=np.random.default_rng(0).integers(0, 256, (20, 32, 32), dtype=np.uint8),
        masks_MHW=None,
        has_mask_M=np.zeros(20, bool),
        labels_M=np.arange(20) % 2,
        image_ids=[f"{number:016x}" for number in range(20)],
        whites={255: 20},
        mask_whites={},
        num_far_below_white=0,
    )
    (tmp_path / "store").mkdir()
    write_store(tmp_path / "store", images, splits=SPLITS, classes=("a", "b"), synthetic=True)  # type: ignore[arg-type]
    write_listing(tmp_path / "store", of=tmp_path / "store")
    setup = replace(setup, run=replace(setup.run, image_size=32))
    plan = setup.plan_trial("cnn", {"model": "cnn", "depth": 2, "base_channels": 4})
    job = setup.training_job(plan, store=PixelStore.open(setup.store), device=torch.device("cpu"))
    tensors = {f"network.{name}": tensor.detach() for name, tensor in changing_state(job.build_network()).items()}
    setup.checkpoints(plan).save_best(Checkpoint(tensors=tensors, state={"epoch": 1}))
    return plan, setup


def test_a_kept_network_answers_for_every_test_image(trained: tuple[TrialPlan, SearchSetup]) -> None:
    answers = predict_on_test(*trained, best_epoch=1)
    assert answers["image_id"].tolist() == [f"{number:016x}" for number in range(10, 20)]
    assert answers[["p_a", "p_b"]].sum(axis=1).to_numpy() == pytest.approx(np.ones(10))


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(path.read_bytes()[::-1]), Path.unlink], ids=["other", "gone"])
def test_no_answer_is_told_for_test_images_that_changed_while_they_were_read(
    trained: tuple[TrialPlan, SearchSetup], monkeypatch: pytest.MonkeyPatch, change
) -> None:
    def predicting(*arguments: object, **options: object) -> torch.Tensor:
        answers = predict_logits(*arguments, **options)
        change(trained[1].store / "test.npy")
        return answers

    predict_logits = network.predict_logits
    monkeypatch.setattr(network, "predict_logits", predicting)
    with pytest.raises(StoreDamagedError, match="changed while it was read"):
        predict_on_test(*trained, best_epoch=1)
