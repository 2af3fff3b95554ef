"""Every metric is what scikit-learn says it is, and follows from its declaration wherever metrics are named."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from tune_lung import metrics
from tune_lung.config import RunConfig
from tune_lung.errors import InputError
from tune_lung.evaluation.confusion import class_recalls, confusion_matrix
from tune_lung.metrics import (
    METRICS,
    Judged,
    class_of,
    columns_on_validation,
    macro_recall,
    measured_on_test,
    measured_on_validation,
    metric_of,
    metrics_on_validation,
    micro_recall,
)
from tune_lung.results.imported import run_of
from tune_lung.results.ray_results import read_ray_results
from tune_lung.results.row_rules import has_good_rows
from tune_lung.results.schema import column_meanings, table_schema
from tune_lung.strategy import Objective, parse_objectives
from tune_lung.training.selection import selection_score

CLASSES = ("COVID", "Lung, left", "a:max", "{part}")
REFERENCES: dict[str, Callable[..., float]] = {
    "macro_recall": reference.balanced_accuracy_score,
    "micro_recall": reference.accuracy_score,
    "cohen_kappa": reference.cohen_kappa_score,
}
answered_images = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)
quiet = [
    pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning"),
    pytest.mark.filterwarnings("ignore:A single label was found:UserWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning"),  # of a kappa that is not defined
]
pytestmark = quiet


def judged(labels, answers):
    return Judged(confusion_KK=confusion_matrix(labels, answers, num_classes=4), classes=CLASSES, loss=0.5)


@given(answered_images)
def test_every_metric_equals_its_reference(pairs):
    labels, answers = zip(*pairs, strict=True)
    shown = judged(labels, answers)
    measured = measured_on_validation(shown)
    assert {metric.name for metric in METRICS} == {"loss", *REFERENCES}
    assert measured["val_loss"] == 0.5
    for name, expected in REFERENCES.items():
        value = expected(labels, answers)
        assert measured.get(f"val_{name}", np.nan) == pytest.approx(value, nan_ok=True, abs=1e-12)
    on_test = measured_on_test(shown)
    assert on_test == {f"test_{m.name}": measured[m.column] for m in METRICS if m.is_tested and m.column in measured}


@given(answered_images)
def test_the_recall_of_each_class_is_the_share_of_its_images_told_right(pairs):
    shown = judged(*zip(*pairs, strict=True))
    recalls = class_recalls(shown.confusion_KK)
    expected = {f"val_recall:{name}": value for name, value in zip(CLASSES, recalls, strict=True) if not np.isnan(value)}
    measured = measured_on_validation(shown)
    assert {name: value for name, value in measured.items() if class_of(name)} == expected


@given(answered_images)
def test_every_metric_lies_in_its_range(pairs):
    shown = judged(*zip(*pairs, strict=True))
    measured = measured_on_validation(shown)
    for metric in metrics_on_validation(CLASSES):
        if metric.column in measured:
            assert metric.lowest <= measured[metric.column] <= metric.highest


@given(answered_images)
def test_micro_recall_equals_micro_precision_too(pairs):
    labels, answers = zip(*pairs, strict=True)
    precision = reference.precision_score(labels, answers, average="micro")
    assert micro_recall(judged(labels, answers).confusion_KK) == pytest.approx(precision)


@given(st.integers(1, 30).flatmap(lambda k: st.lists(st.tuples(*[st.integers(0, k - 1)] * 2), min_size=1, max_size=99)))
def test_macro_recall_is_bit_for_bit_the_mean_of_the_class_recalls(pairs):
    labels, answers = zip(*pairs, strict=True)
    counts_KK = confusion_matrix(labels, answers, num_classes=30)
    assert macro_recall(counts_KK) == float(np.nanmean(class_recalls(counts_KK)))


@pytest.mark.parametrize("recall", [macro_recall, micro_recall])
def test_no_images_have_no_recall(recall):
    with pytest.raises(ValueError, match="no images is not defined"):
        recall(confusion_matrix([], [], num_classes=2))


def test_what_is_not_defined_is_left_out():
    shown = Judged(confusion_KK=confusion_matrix([0, 0], [0, 1], num_classes=2), classes=("a", "b"), loss=0.5)
    measured = measured_on_validation(shown)
    assert measured["val_recall:a"] == 0.5
    assert "val_recall:b" not in measured
    one_class = Judged(confusion_KK=confusion_matrix([0, 0], [0, 0], num_classes=2), classes=("a", "b"), loss=0.5)
    assert "val_cohen_kappa" not in measured_on_validation(one_class)
    assert "test_cohen_kappa" not in measured_on_test(one_class)


@pytest.mark.parametrize("metric", metrics_on_validation(("a",)))
def test_a_table_holds_no_value_below_the_range(metric):
    schema, names = table_schema("trials", ("a",)), [metric.column, *([metric.test_column] if metric.is_tested else [])]
    lowest = max(metric.lowest, -1e9)
    facts = {"trial_id": "3f2a", "point_id": "p", "cell": "cnn", "status": "completed"}
    for name in names:
        assert has_good_rows("trials", pa.Table.from_pylist([facts | {name: lowest}], schema=schema), ("a",))
        below = pa.Table.from_pylist([facts | {name: metric.lowest - 0.1}], schema=schema)
        assert not has_good_rows("trials", below, ("a",))  # minus infinity is no number of a table either


@pytest.mark.parametrize("column", columns_on_validation(CLASSES))
def test_a_column_leads_back_to_its_metric(column):
    assert metric_of(column).column == column


@pytest.mark.parametrize(
    ("column", "hint"),
    [
        ("val_macro_recal", "Did you mean 'val_macro_recall'"),
        ("val_recal:COVID", "Did you mean 'val_recall:CLASS'"),
        ("val_recall:", "Did you mean 'val_recall:CLASS'"),
        ("macro_recall", "Allowed: .*val_loss, val_macro_recall, val_micro_recall, val_recall:CLASS"),
        ("test_macro_recall", "Allowed"),
    ],
)
def test_an_unknown_column_is_refused_with_what_is_allowed(column, hint):
    with pytest.raises(InputError, match=f"no column '{column}'.*{hint}"):
        metric_of(column)


@pytest.fixture
def share_taken_for_the_first(monkeypatch):
    """One more metric, in the declaration and nowhere else."""
    added = replace(
        metric_of("val_micro_recall"),
        name="first_share",
        label="first share",
        meaning="Share of {part} images taken for the first class",
        formula=lambda shown: float(shown.confusion_KK[:, 0].sum() / shown.confusion_KK.sum()),
    )
    monkeypatch.setattr(metrics, "METRICS", (*METRICS, added))
    return added


@pytest.mark.usefixtures("share_taken_for_the_first")
def test_a_metric_that_is_declared_is_measured_kept_selectable_and_read(tmp_path, share_taken_for_the_first):
    column, test_column = share_taken_for_the_first.column, share_taken_for_the_first.test_column
    confusion_KK = confusion_matrix([0, 0, 1, 1], [0, 0, 0, 1], num_classes=2)
    shown = Judged(confusion_KK=confusion_KK, classes=("a", "b"), loss=0.5)
    assert measured_on_validation(shown)[column] == measured_on_test(shown)[test_column] == 0.75

    assert {column, test_column} <= set(table_schema("trials", ("a", "b")).names)
    assert column in table_schema("epochs", ("a", "b")).names
    assert "0 to 1" in column_meanings(table_schema("epochs", ()))[column]

    assert RunConfig(select_by=column).select_by == column
    assert selection_score({"val_loss": 0.5, column: 0.75}, select_by=column) == 0.75 - 1e-5 * 0.5
    assert parse_objectives(f"{column}:max,mult_adds:min")[0] == Objective(column, "max")

    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "params.json").write_text('{"learning_rate": 0.1}')
    (tmp_path / "trial" / "result.json").write_text(f'{{"epoch": 1, "{column}": 0.75, "done": true}}\n')
    recorded = run_of(read_ray_results(tmp_path))
    assert recorded.trials[0].row[column] == recorded.trials[0].epochs[0][column] == recorded.trials[0].row["selection_score"]
