"""Recall in its two forms is what scikit-learn says it is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from tune_lung.evaluation.metrics import class_recalls, confusion_matrix, macro_recall, micro_recall

answered_images = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


def confusion(pairs):
    labels, answers = zip(*pairs, strict=True)
    return labels, answers, confusion_matrix(labels, answers, num_classes=4)


@given(answered_images)
def test_confusion_matrix_equals_the_reference(pairs):
    labels, answers, counts_KK = confusion(pairs)
    np.testing.assert_array_equal(counts_KK, reference.confusion_matrix(labels, answers, labels=range(4)))


@given(answered_images)
def test_micro_recall_equals_accuracy_and_micro_precision(pairs):
    labels, answers, counts_KK = confusion(pairs)
    assert micro_recall(counts_KK) == pytest.approx(reference.accuracy_score(labels, answers))
    assert micro_recall(counts_KK) == pytest.approx(reference.recall_score(labels, answers, average="micro"))
    assert micro_recall(counts_KK) == pytest.approx(reference.precision_score(labels, answers, average="micro"))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")
@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
@given(answered_images)
def test_macro_recall_equals_balanced_accuracy_over_the_classes_present(pairs):
    labels, answers, counts_KK = confusion(pairs)
    assert macro_recall(counts_KK) == pytest.approx(reference.balanced_accuracy_score(labels, answers))


def test_the_recall_of_a_class_without_images_is_not_defined():
    counts_KK = confusion_matrix([0, 0, 2], [0, 2, 2], num_classes=3)
    np.testing.assert_array_equal(class_recalls(counts_KK), [0.5, np.nan, 1.0])
    assert macro_recall(counts_KK) == 0.75


@pytest.mark.parametrize("recall", [macro_recall, micro_recall])
def test_no_images_have_no_recall(recall):
    with pytest.raises(ValueError, match="no images is not defined"):
        recall(confusion_matrix([], [], num_classes=2))


@pytest.mark.parametrize(
    ("labels", "answers", "error"),
    [
        ([0, 1], [0], "one length"),
        ([0, 2], [0, 1], "labels must be whole numbers from 0 to 1"),
        ([0, 1], [0, -1], "answers must be whole numbers from 0 to 1"),
        ([0.5], [0], "labels must be whole numbers"),
    ],
)
def test_what_is_no_class_is_refused(labels, answers, error):
    with pytest.raises(ValueError, match=error):
        confusion_matrix(labels, answers, num_classes=2)
