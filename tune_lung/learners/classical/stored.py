"""A fitted estimator as bytes in a checkpoint, in the format of skops: arrays and a description, no pickle.

A run may be a stranger's. skops builds known types only, and runs nothing; but scikit-learn's compiled code trusts the numbers
in them, such as a tree's next node, and would read memory that is not the tree's. So they are compared with what they can be.
"""

import io
import warnings
import zipfile

import numpy as np
import skops.io
import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from skops.io.exceptions import UnsupportedTypeException, UntrustedTypesFoundException
from torch import Tensor

from tune_lung.families.classical import ClassicalConfig, ForestConfig, LogisticConfig, SvmConfig
from tune_lung.learners.classical.estimators import Classifier
from tune_lung.training.tensor_files import DamagedCheckpointError

_TREE = "sklearn.tree._tree.Tree"
"""skops builds it only when told to, for the reason above."""
_CLASSIFIERS: dict[type[ClassicalConfig], type[Classifier]] = {
    LogisticConfig: LogisticRegression,
    SvmConfig: SVC,
    ForestConfig: RandomForestClassifier,
}
_UNREADABLE = (
    UnsupportedTypeException,
    UntrustedTypesFoundException,
    zipfile.BadZipFile,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


def as_tensor(pipeline: Pipeline) -> Tensor:
    """Write a fitted pipeline down as bytes, uint8."""
    content = skops.io.dumps(pipeline, compression=zipfile.ZIP_STORED)
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


def from_tensor(content: Tensor, config: ClassicalConfig, *, num_features: int, num_classes: int) -> Pipeline:
    """Read back what `as_tensor` wrote.

    Args:
        content: The bytes.
        config: What was fitted.
        num_features: Features of an image.
        num_classes: Classes of the data.

    Raises:
        DamagedCheckpointError: It is no pipeline of this trial.
    """
    try:
        data = content.numpy().tobytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _require(all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # written by another version of scikit-learn
            pipeline = skops.io.loads(data, trusted=[_TREE])
        _require_whole(pipeline, config, num_features=num_features, num_classes=num_classes)
    except _UNREADABLE as error:
        raise DamagedCheckpointError("The checkpoint 'best' holds no estimator of this trial.") from error
    pipeline[-1].set_params(**({"n_jobs": torch.get_num_threads()} if isinstance(config, ForestConfig) else {}))
    return pipeline


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError("It is not what a trial writes.")


def _require_whole(pipeline: object, config: ClassicalConfig, *, num_features: int, num_classes: int) -> None:
    """Compare a pipeline with what fitting the configuration can give."""
    _require(type(pipeline) is Pipeline)
    scaler, *projections, classifier = (step for _, step in pipeline.steps)  # type: ignore[attr-defined]
    _require(
        type(scaler) is StandardScaler and all(_is_array(getattr(scaler, name), num_features) for name in ("mean_", "scale_"))
    )
    _require(len(projections) == (config.components > 0))
    num_prepared = num_features
    for projection in projections:
        num_prepared = len(projection.components_)
        _require(type(projection) is PCA and _is_array(projection.components_, num_prepared, num_features))
        _require(_is_array(projection.mean_, num_features) and projection.whiten is False)
    _require(type(classifier) is _CLASSIFIERS[type(config)])
    classes = classifier.classes_
    num_known = len(classes)
    _require(classes.dtype.kind == "i" and num_known >= 2 and bool(np.all(np.diff(classes) > 0)))
    _require(classes[0] >= 0 and classes[-1] < num_classes)
    if isinstance(classifier, LogisticRegression):
        num_rows = num_known if num_known > 2 else 1
        _require(_is_array(classifier.coef_, num_rows, num_prepared) and _is_array(classifier.intercept_, num_rows))
    elif isinstance(classifier, SVC):
        _require_machine(classifier, num_prepared, num_known)
    else:
        _require(len(classifier.estimators_) > 0 and classifier.n_classes_ == num_known and classifier.n_outputs_ == 1)
        for tree in classifier.estimators_:
            _require_tree(tree, num_prepared, num_known)


def _require_machine(machine: SVC, num_prepared: int, num_known: int) -> None:
    num_vectors, pairs = len(machine.support_vectors_), num_known * (num_known - 1) // 2
    _require(type(machine.kernel) is str and machine.kernel in ("linear", "rbf") and machine._sparse is False)
    _require(
        _is_array(machine.support_vectors_, num_vectors, num_prepared) and _is_array(machine.support_, num_vectors, kind="i")
    )
    for name in ("dual_coef_", "_dual_coef_"):
        _require(_is_array(getattr(machine, name), num_known - 1, num_vectors))
    for name in ("intercept_", "_intercept_"):
        _require(_is_array(getattr(machine, name), pairs))
    counts = machine._n_support
    _require(_is_array(counts, num_known, kind="i") and int(counts.min()) >= 0 and int(counts.sum()) == num_vectors)
    _require(all(len(getattr(machine, name)) == 0 for name in ("_probA", "_probB")))


def _require_tree(tree: object, num_prepared: int, num_known: int) -> None:
    _require(type(tree) is DecisionTreeClassifier)
    nodes = tree.tree_  # type: ignore[attr-defined]
    count = nodes.node_count
    left, right = nodes.children_left, nodes.children_right
    _require(nodes.n_features == num_prepared and nodes.n_outputs == 1 and nodes.max_n_classes == num_known)
    _require(count >= 1 and _is_array(nodes.value, count, 1, num_known) and len(left) == len(right) == count)
    inner = left != -1
    _require(bool(np.all(inner == (right != -1))))
    for children in (left[inner], right[inner]):
        _require(bool(np.all((children > np.flatnonzero(inner)) & (children < count))))  # onwards, so that every way ends
    feature = nodes.feature[inner]
    _require(bool(np.all((feature >= 0) & (feature < num_prepared))))


def _is_array(values: object, *shape: int, kind: str = "f") -> bool:
    return isinstance(values, np.ndarray) and values.shape == shape and values.dtype.kind == kind
