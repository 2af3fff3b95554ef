"""scikit-learn's estimators behind a scaler and a projection: how they are fitted, and how they answer.

Shapes: N images, F features, K classes.
"""

import logging
import warnings
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits
from torch import Tensor

from tune_lung.families.classical import ClassicalConfig, ForestConfig, LogisticConfig, SvmConfig
from tune_lung.learners.classical.features import FeatureRows
from tune_lung.randomness import derive_seed

Classifier: TypeAlias = LogisticRegression | SVC | RandomForestClassifier

_MOST_ITERATIONS = 1000
_LEAST_PROBABILITY = 1e-12
"""What a class gets that an estimator gives none, or has never seen: its logarithm is to be finite."""
_LEAST_VARIANCE = 1e-12
"""Of features that are all the same."""

_log = logging.getLogger(__name__)


def fitted_estimator(
    config: ClassicalConfig, features_NF: FeatureRows, labels_N: npt.NDArray[np.int64], *, seed: int
) -> Pipeline:
    """Fit scaler, projection and classifier to training images, and to nothing else.

    Args:
        config: What is fitted.
        features_NF: Of the training images.
        labels_N: Their classes.
        seed: Root of the draws of forests and projections.

    Returns:
        The pipeline.
    """
    steps: list[tuple[str, Any]] = [("scaler", StandardScaler())]
    if config.components:
        num_components = min(config.components, *features_NF.shape)
        steps.append(("projection", PCA(num_components, random_state=_state(seed, "projection"))))
    with threadpool_limits(torch.get_num_threads()), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        prepared_NF = Pipeline(steps).fit_transform(features_NF)
        classifier = _classifier(config, prepared_NF, seed).fit(prepared_NF, labels_N)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        _log.warning("%s has not converged after %d steps; what it had by then is kept.", config.model, _MOST_ITERATIONS)
    return Pipeline([*steps, ("classifier", classifier)])


def logits_of(pipeline: Pipeline, features_NF: FeatureRows, *, num_classes: int) -> Tensor:
    """Let a fitted pipeline answer.

    Args:
        pipeline: What `fitted_estimator` gave.
        features_NF: Of any images.
        num_classes: K; classes without a training image have a probability of next to nothing.

    Returns:
        logits_NK, float32: the logarithm of the probabilities. Of a support vector machine they are its one-versus-rest
        decision values: their softmax ranks the classes as scikit-learn does, and is no calibrated probability.
    """
    classifier = pipeline[-1]
    with threadpool_limits(torch.get_num_threads()):
        if isinstance(classifier, SVC):
            values = np.asarray(pipeline.decision_function(features_NF))
            known = values if values.ndim == 2 else np.stack([-values, values], axis=1) / 2
        else:
            known = np.log(np.maximum(pipeline.predict_proba(features_NF), _LEAST_PROBABILITY))
    logits_NK = np.full((len(features_NF), num_classes), np.log(_LEAST_PROBABILITY), np.float32)
    logits_NK[:, classifier.classes_] = known
    return torch.from_numpy(logits_NK)


def _classifier(config: ClassicalConfig, prepared_NF: FeatureRows, seed: int) -> Classifier:
    weight = "balanced" if config.class_weight == "balanced" else None
    if isinstance(config, LogisticConfig):
        return LogisticRegression(C=config.c, class_weight=weight, max_iter=_MOST_ITERATIONS)
    if isinstance(config, SvmConfig):
        scale = 1 / (prepared_NF.shape[1] * max(float(prepared_NF.var()), _LEAST_VARIANCE))
        return SVC(C=config.c, kernel=config.kernel, gamma=config.gamma_factor * scale, class_weight=weight, break_ties=True)
    if isinstance(config, ForestConfig):
        return RandomForestClassifier(
            config.num_trees,
            min_samples_leaf=config.min_leaf_images,
            class_weight=weight,
            n_jobs=torch.get_num_threads(),
            random_state=_state(seed, "forest"),
        )
    raise TypeError(f"There is no estimator for {config.model}.")


def _state(seed: int, name: str) -> int:
    return derive_seed(seed, name) % 2**32
