"""Classical learners: scikit-learn's own answers, features computed independently, and estimators kept without a pickle."""

import io
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.feature
import skops.io
import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torchvision.models import resnet18

from tune_lung.config import RunConfig, TrialConfig
from tune_lung.data.cache import Cache
from tune_lung.errors import InputError
from tune_lung.evaluation.predictions import probabilities_of
from tune_lung.learners.classical import features as features_module
from tune_lung.learners.classical.features import feature_tables, num_features
from tune_lung.learners.classical.stored import as_tensor, from_tensor
from tune_lung.learners.kept import KeptModel
from tune_lung.learners.learner import Setting, Watch
from tune_lung.learners.registry import learner_of
from tune_lung.models.weights import resolve_weights
from tune_lung.randomness import derive_seed
from tune_lung.training.checkpoints import Checkpoints, load
from tune_lung.training.job import TrainingJob
from tune_lung.training.tensor_files import DamagedCheckpointError

from tests.learners.conftest import CLASSES, SIZE, MakeJob, StripedStore, answered

LEARNERS = ("logistic", "svm", "random_forest")


@pytest.fixture(autouse=True)
def _nothing_kept():
    features_module._kept.clear()


def fitted(job: TrainingJob, folder: Path):
    """Fit a job's learner; return its result, and its best checkpoint."""
    checkpoints = Checkpoints(folder)
    result = next(learner_of(job.trial.network.model).fit(job, checkpoints, Watch()))
    return result, load(checkpoints.best)


def grey_values(images_NHW: np.ndarray, side: int = 8) -> np.ndarray:
    step = SIZE // side
    return (images_NHW.reshape(-1, side, step, side, step).mean(axis=(2, 4)) / 255).reshape(-1, side**2)


def gradients(images_NHW: np.ndarray, cell: int = 16) -> np.ndarray:
    return np.stack([skimage.feature.hog(image / 255, pixels_per_cell=(cell, cell)) for image in images_NHW])


@pytest.fixture
def torchvisions(tmp_path: Path):
    """A ResNet18 of torchvision, and its weights' file as a source."""
    with torch.random.fork_rng():
        torch.manual_seed(3)  # noqa: TID251 - torchvision draws from the global generator
        network = resnet18(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    return network, resolve_weights(str(tmp_path / "resnet18.pth"), ["resnet18"])["resnet18"]


def pooled(network: torch.nn.Module, images_NHW: np.ndarray, block: int) -> np.ndarray:
    """What torchvision's own network gives after a block, averaged over the map."""
    mean, deviation = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    images = torch.from_numpy(images_NHW)[:, None].float() / 255
    images = (images - mean.view(1, 3, 1, 1)) / deviation.view(1, 3, 1, 1)
    caught = []
    hook = getattr(network, f"layer{block}").register_forward_hook(lambda *parts: caught.append(parts[2].mean(dim=(2, 3))))
    with torch.no_grad():
        network(images)
    hook.remove()
    return caught[0].numpy()


def own_estimator(model: str, job: TrainingJob):
    """The same, written down with scikit-learn alone."""
    if model == "logistic":
        classifier = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
    elif model == "svm":
        classifier = SVC(C=0.1, gamma="scale", class_weight="balanced", break_ties=True)
    else:
        seed = derive_seed(job.trial_seed, "forest") % 2**32
        classifier = RandomForestClassifier(30, class_weight="balanced", random_state=seed)
    return make_pipeline(StandardScaler(), classifier)


@pytest.mark.parametrize("model", LEARNERS)
@pytest.mark.parametrize("kind", ["pixels", "hog", "pooled"])
def test_it_answers_as_scikit_learn_does_on_features_computed_independently(
    model: str, kind: str, make_job: MakeJob, torchvisions, tmp_path: Path
):
    network, source = torchvisions
    own = {"num_trees": 30} if model == "random_forest" else {"c": 0.1}
    more = {"pixels": {"pixel_side": 8}, "hog": {"hog_cell": 16}, "pooled": {"frozen_blocks": 3, "weights": "file"}}[kind]
    job = make_job(model, features=kind, source=source, **own, **more)
    compute = {"pixels": grey_values, "hog": gradients, "pooled": lambda images: pooled(network, images, 3)}[kind]
    train_NF, validation_NF = (compute(part.pixels_NHW).astype(np.float32) for part in (job.train, job.validation))
    tables = feature_tables(job)
    assert np.allclose(tables.train_NF, train_NF, rtol=1e-4, atol=1e-5)
    assert num_features(job.trial.network, num_classes=3, image_size=SIZE) == train_NF.shape[1]

    estimator = own_estimator(model, job).fit(tables.train_NF, job.train.labels_N)
    result, _ = fitted(job, tmp_path / "trial")
    answers_N = np.asarray(result.kept_logits_NK.argmax(dim=1))
    assert np.array_equal(answers_N, estimator.predict(tables.validation_NF))
    assert np.mean(answers_N == own_estimator(model, job).fit(train_NF, job.train.labels_N).predict(validation_NF)) > 0.9
    if model != "svm":
        probabilities_NK = torch.softmax(result.kept_logits_NK.double(), dim=1).numpy()
        assert np.allclose(probabilities_NK, estimator.predict_proba(tables.validation_NF), atol=1e-6)


def test_scaler_and_projection_see_the_training_images_alone(make_job: MakeJob, tmp_path: Path):
    job = make_job("logistic", features="pixels", pixel_side=8, components=5)
    _, best = fitted(job, tmp_path)
    estimator = from_tensor(best.tensors["estimator.bytes"], job.trial.network, num_features=64, num_classes=3)
    train_NF = grey_values(job.train.pixels_NHW)
    assert np.allclose(estimator[0].mean_, train_NF.mean(axis=0), atol=1e-6)
    scaled = StandardScaler().fit_transform(train_NF)
    assert np.allclose(np.abs(estimator[1].components_), np.abs(PCA(5).fit(scaled).components_), atol=1e-3)


def test_the_narrowness_of_the_bell_is_a_multiple_of_scikit_learns(make_job: MakeJob, tmp_path: Path):
    job = make_job("svm", features="pixels", pixel_side=8, gamma_factor=3.0)
    _, best = fitted(job, tmp_path)
    estimator = from_tensor(best.tensors["estimator.bytes"], job.trial.network, num_features=64, num_classes=3)
    scaled = StandardScaler().fit_transform(grey_values(job.train.pixels_NHW).astype(np.float32))
    assert estimator[-1].gamma == pytest.approx(3 / (64 * scaled.var()))


@pytest.mark.parametrize("model", LEARNERS)
def test_a_class_without_training_images_is_never_answered(model: str, make_job: MakeJob, tmp_path: Path):
    job = make_job(model, features="pixels", store=StripedStore(num_classes=2))
    result, best = fitted(job, tmp_path)
    assert result.kept_logits_NK.shape == (15, len(CLASSES))
    assert int(result.kept_logits_NK.argmax(dim=1).max()) < 2
    probabilities_NK = answered(job, KeptModel(best=best, frozen={}), job.validation)
    assert np.array_equal(probabilities_NK, probabilities_of(result.kept_logits_NK))


def test_pooled_features_are_those_that_networks_store_and_the_same_without_room_for_them(make_job: MakeJob, tmp_path: Path):
    plain = make_job("svm", features="pooled", frozen_blocks=2, weights="random")
    with Cache.open(tmp_path / "cache", 10**9) as cache:
        kept = feature_tables(replace(plain, cache=cache))
        assert kept.seconds is not None
        assert list(cache.root.rglob("features.json"))
    features_module._kept.clear()
    streamed = feature_tables(plain)
    assert streamed.seconds is None
    assert np.array_equal(kept.train_NF, streamed.train_NF)
    assert np.array_equal(kept.validation_NF, streamed.validation_NF)


@pytest.mark.parametrize("model", LEARNERS)
def test_pooled_features_answer_without_the_backbones_weights(model: str, make_job: MakeJob, torchvisions, tmp_path: Path):
    _, source = torchvisions
    job = make_job(model, features="pooled", frozen_blocks=2, weights="file", source=source)
    checkpoints = Checkpoints(tmp_path / "trial")
    result = next(learner_of(model).fit(job, checkpoints, Watch()))
    source.path.unlink()
    probabilities_NK = answered(job, KeptModel.load(checkpoints, job.trial), job.validation)
    assert np.array_equal(probabilities_NK, probabilities_of(result.kept_logits_NK))


def test_trials_of_one_process_share_what_they_see(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch):
    computed = []
    original = features_module._plain_tables
    monkeypatch.setattr(features_module, "_plain_tables", lambda job: computed.append(1) or original(job))
    for model in LEARNERS:
        feature_tables(make_job(model, features="hog"))
    assert len(computed) == 1
    feature_tables(make_job("svm", features="hog", hog_cell=8))
    feature_tables(make_job("svm", features="hog", input="lungs"))
    assert len(computed) == 3


def test_images_that_changed_while_they_were_read_give_nothing(make_job: MakeJob):
    job = make_job("svm", features="pixels")
    feature_tables(job)
    assert {"train", "validation"} <= set(job.store.checked)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 8}, "batch_size does not apply to svm"),
        ({"max_epochs": 8}, "max_epochs does not apply to svm"),
        ({"features": "pixels", "hog_cell": 8}, "hog_cell does not apply to svm with features=pixels"),
        ({"features": "hog", "frozen_blocks": 2}, "frozen_blocks does not apply to svm with features=hog"),
        ({"features": "pooled", "frozen_blocks": 0}, "frozen_blocks must be 1 to 4 with features=pooled, not 0"),
        ({"features": "pooled", "backbone": "cnn"}, "backbone must be one of resnet18, .*, not 'cnn'"),
        ({"features": "wavelets"}, "features cannot be 'wavelets'"),
        ({"c": 0.0}, "c must be above 0"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict, message: str):
    with pytest.raises(InputError, match=message):
        TrialConfig.from_point({"model": "svm", **fields})


def test_the_papers_program_has_no_rules_for_it():
    with pytest.raises(InputError, match="protocol published has no rules for svm"):
        RunConfig(protocol="published", select_by="val_loss").check_fits(TrialConfig.from_point({"model": "svm"}))


@pytest.mark.parametrize(("fields", "size"), [({"hog_cell": 64}, 128), ({"features": "pixels", "pixel_side": 64}, 32)])
def test_images_too_small_for_its_features_are_refused(fields: dict, size: int):
    with pytest.raises(InputError, match=f"--image-size {size}"):
        RunConfig(image_size=size).check_fits(TrialConfig.from_point({"model": "svm", **fields}))


def test_the_regression_is_counted_with_its_backbone(make_job: MakeJob):
    trial = make_job("logistic", features="pooled", frozen_blocks=4, weights="random").trial
    facts = learner_of("logistic").facts(trial, Setting(protocol="strict", num_classes=3, image_size=SIZE))
    assert facts["trainable_params"] == 3 * (512 + 1)
    backbone = sum(parameter.numel() for parameter in resnet18(weights=None).parameters()) - (512 + 1) * 1000
    assert facts["total_params"] == backbone + 3 * 513


# A stranger's estimator


def written(job: TrainingJob, folder: Path):
    _, best = fitted(job, folder)
    config, count = job.trial.network, num_features(job.trial.network, num_classes=3, image_size=SIZE)
    return from_tensor(best.tensors["estimator.bytes"], config, num_features=count, num_classes=3), config, count


def _next_node_outside(estimator):
    nodes = estimator[-1].estimators_[0].tree_.__getstate__()
    nodes["nodes"]["left_child"][0] = 10**6
    estimator[-1].estimators_[0].tree_.__setstate__(nodes)


def _node_that_leads_to_itself(estimator):
    nodes = estimator[-1].estimators_[0].tree_.__getstate__()
    nodes["nodes"]["left_child"][0] = 0
    estimator[-1].estimators_[0].tree_.__setstate__(nodes)


def _feature_outside(estimator):
    nodes = estimator[-1].estimators_[0].tree_.__getstate__()
    nodes["nodes"]["feature"][0] = 10**6
    estimator[-1].estimators_[0].tree_.__setstate__(nodes)


def _more_vectors_than_there_are(estimator):
    estimator[-1]._n_support = estimator[-1]._n_support + 1000


def _vectors_of_other_features(estimator):
    estimator[-1].support_vectors_ = estimator[-1].support_vectors_[:, :3]


def _classes_outside(estimator):
    estimator[-1].classes_ = estimator[-1].classes_ + 5


def _coefficients_of_other_features(estimator):
    estimator[-1].coef_ = estimator[-1].coef_[:, :3]


def _another_classifier(estimator):
    estimator.steps[-1] = ("classifier", SVC().fit(np.eye(64), np.arange(64) % 3))


@pytest.mark.parametrize(
    ("model", "forge"),
    [
        ("random_forest", _next_node_outside),
        ("random_forest", _node_that_leads_to_itself),
        ("random_forest", _feature_outside),
        ("random_forest", _classes_outside),
        ("svm", _more_vectors_than_there_are),
        ("svm", _vectors_of_other_features),
        ("svm", _classes_outside),
        ("logistic", _coefficients_of_other_features),
        ("logistic", _another_classifier),
    ],
)
def test_an_estimator_that_would_read_what_is_not_its_own_is_refused(model, forge, make_job: MakeJob, tmp_path: Path):
    own = {"num_trees": 3} if model == "random_forest" else {}
    estimator, config, count = written(make_job(model, features="pixels", pixel_side=8, **own), tmp_path)
    forge(estimator)
    with pytest.raises(DamagedCheckpointError, match="holds no estimator of this trial"):
        from_tensor(as_tensor(estimator), config, num_features=count, num_classes=3)


def as_bytes(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


class _Runs:
    def __reduce__(self):
        return print, ("This ran.",)


def _packed(estimator) -> bytes:
    return skops.io.dumps(estimator, compression=zipfile.ZIP_DEFLATED)


def _with_a_type_of_its_own(estimator) -> bytes:
    stored = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(skops.io.dumps(estimator))) as source, zipfile.ZipFile(stored, "w") as target:
        for name in source.namelist():
            target.writestr(
                name,
                source.read(name).replace(b'"StandardScaler"', b'"Popen"').replace(b"sklearn.preprocessing._data", b"subprocess"),
            )
    return stored.getvalue()


@pytest.mark.parametrize(
    "content_of",
    [lambda _: b"", lambda _: b"PK", lambda _: pickle.dumps(_Runs()), _packed, _with_a_type_of_its_own],
    ids=["empty", "cut", "pickle", "packed", "type"],
)
def test_what_is_no_estimator_is_refused_and_nothing_of_it_runs(content_of, make_job: MakeJob, tmp_path: Path, capfd):
    estimator, config, count = written(make_job("logistic", features="pixels", pixel_side=8), tmp_path)
    with pytest.raises(DamagedCheckpointError, match="holds no estimator of this trial"):
        from_tensor(as_bytes(content_of(estimator)), config, num_features=count, num_classes=3)
    assert capfd.readouterr().out == ""
