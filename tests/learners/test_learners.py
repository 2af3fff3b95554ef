"""What every learner owes to those who tune: one contract, for every model."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tune_lung.evaluation.predictions import probabilities_of
from tune_lung.families.registry import FAMILIES, MODELS, family_of
from tune_lung.learners.kept import KeptModel
from tune_lung.learners.learner import Setting, Watch
from tune_lung.learners.registry import learner_of
from tune_lung.training.checkpoints import Checkpoint, Checkpoints
from tune_lung.training.tensor_files import DamagedCheckpointError

from tests.learners.conftest import CLASSES, SIZE, MakeJob, answered

SETTING = Setting(protocol="strict", num_classes=len(CLASSES), image_size=SIZE)
ONE_OF_EACH = [next(iter(family.models)) for family in FAMILIES]


@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_it_reports_to_its_end_and_what_it_keeps_answers_as_it_did(model: str, make_job: MakeJob, tmp_path: Path):
    job, learner, checkpoints = make_job(model), learner_of(model), Checkpoints(tmp_path)
    results = list(learner.fit(job, checkpoints, Watch()))
    assert [result.epoch for result in results] == [1]
    assert results[-1].stop_reason == ("max_epochs" if family_of(model).has_epochs else "fitted")
    assert (results[-1].learning_rate is None) == (not family_of(model).has_epochs)
    columns = results[-1].columns()
    for name in ("train_loss", "val_loss", "val_macro_recall", "val_recall:down", "selection_score", "epoch_seconds"):
        assert math.isfinite(columns[name])
    kept = results[-1].kept_logits_NK
    assert kept is not None
    assert kept.shape == (len(job.validation.labels_N), len(CLASSES))
    probabilities_NK = answered(job, KeptModel.load(checkpoints, job.trial), job.validation)
    assert np.array_equal(probabilities_NK, probabilities_of(kept))


@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_two_fits_are_equal_bit_for_bit(model: str, make_job: MakeJob, tmp_path: Path):
    first, second = (
        next(learner_of(model).fit(make_job(model), Checkpoints(tmp_path / name), Watch())).kept_logits_NK for name in "ab"
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_foreseen_of_it_is_there(model: str, make_job: MakeJob):
    learner, trial = learner_of(model), make_job(model).trial
    facts = learner.facts(trial, SETTING)
    assert (facts["trainable_params"] is not None) == family_of(model).is_counted
    for number in (learner.work(trial, SETTING), learner.step_work(trial, SETTING), learner.epoch_work(trial, SETTING)):
        assert number > 0
    sizes = learner.checkpoint_bytes(trial, SETTING)
    assert sizes.best > 0
    assert (sizes.last > 0) == family_of(model).has_epochs


@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_the_checkpoint_of_another_is_refused(model: str, make_job: MakeJob):
    stranger = Checkpoint(tensors={"network.weight": torch.zeros(3)}, state={"epoch": 1})
    job = make_job(model)
    with pytest.raises(DamagedCheckpointError, match="another"):
        answered(job, KeptModel(best=stranger, frozen={}), job.validation)
