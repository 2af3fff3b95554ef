"""Counting who was taken for whom is what scikit-learn says it is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from tune_lung.evaluation.confusion import class_recalls, confusion_matrix

answered_images = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


@given(answered_images)
def test_confusion_matrix_equals_the_reference(pairs):
    labels, answers = zip(*pairs, strict=True)
    counts_KK = confusion_matrix(labels, answers, num_classes=4)
    np.testing.assert_array_equal(counts_KK, reference.confusion_matrix(labels, answers, labels=range(4)))


def test_the_recall_of_a_class_without_images_is_not_defined():
    counts_KK = confusion_matrix([0, 0, 2], [0, 2, 2], num_classes=3)
    np.testing.assert_array_equal(class_recalls(counts_KK), [0.5, np.nan, 1.0])


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
