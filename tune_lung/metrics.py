"""What answers are judged by, declared once: every metric with its column, its formula, its range and which way is better.

A metric of `METRICS` has a column in the tables `trials` and `epochs`, is measured after every epoch, can be selected by
(`--select-by`) and traded off (`--objective`), and is read from other tools under the same name. To add one, add it there.
So it is with the recall of each class, such as `val_recall:COVID`; which classes there are, only the images say.

Formulas use the methods of numpy's arrays alone: whoever asks for names loads no numpy.

Shapes: K classes; confusion_KK counts images, a row per true class, a column per answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from tune_lung.errors import InputError, did_you_mean, shortened

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Direction: TypeAlias = Literal["max", "min"]

_OF_A_CLASS = "recall:"
_COLUMN_OF_A_CLASS = f"val_{_OF_A_CLASS}"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one pass over images showed."""

    confusion_KK: NDArray[np.int64]
    """How often each class was taken for each."""
    classes: Sequence[str]
    """Their names, in the matrix's order."""
    loss: float
    """The images' loss, in nats; NaN where none was computed."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number that answers are judged by."""

    name: str
    """As columns have it after `val_` or `test_`, such as `macro_recall`."""
    label: str
    """As a line of text has it, such as `macro recall`."""
    meaning: str
    """What it is, for the tables' readers; `{part}` stands for `validation` or `test`."""
    formula: Callable[[Judged], float]
    """Computes it; NaN where it is not defined."""
    lowest: float
    """The least that a table may hold."""
    highest: float
    """The most that it can be."""
    direction: Direction
    """Which way is better."""
    is_tested: bool
    """Whether the sealed test measures it too."""

    @property
    def column(self) -> str:
        """Its column on validation."""
        return f"val_{self.name}"

    @property
    def test_column(self) -> str:
        """Its column on test, where the test measures it."""
        return f"test_{self.name}"

    @property
    def noun(self) -> str:
        """The shortest word for it, such as `recall`."""
        return self.name.partition(":")[0].rpartition("_")[2]

    @property
    def is_share(self) -> bool:
        """Whether it can be written in percent."""
        return (self.lowest, self.highest) == (0.0, 1.0)

    def text(self, value: float | None) -> str:
        """Write a value for a reader: a share in percent; `-` where there is none."""
        if value is None:
            return "-"
        return f"{100 * value:.1f}%" if self.is_share else f"{value:.4f}"

    @property
    def bounds(self) -> str:
        """The range as a column's meaning ends with it, such as `, 0 to 1`; empty where it has no end."""
        return f", {self.lowest:g} to {self.highest:g}" if math.isfinite(self.highest - self.lowest) else ""

    def meaning_on(self, part: Literal["validation", "test"]) -> str:
        """Say what it is on one part of the images."""
        return self.meaning.replace("{part}", part, 1)  # a class may be called so


def macro_recall(confusion_KK: NDArray[np.int64]) -> float:
    """Average the class recalls over the classes that have images: balanced accuracy.

    Raises:
        ValueError: There is no image at all.
    """
    _require_images(confusion_KK)
    num_images_K = confusion_KK.sum(axis=1)
    recalls_K = confusion_KK.diagonal() / num_images_K.clip(1)
    return float(recalls_K.sum() / (num_images_K > 0).sum())


def micro_recall(confusion_KK: NDArray[np.int64]) -> float:
    """Compute the share of images told right: accuracy, and micro precision.

    Raises:
        ValueError: There is no image at all.
    """
    _require_images(confusion_KK)
    return float(confusion_KK.trace() / confusion_KK.sum())


def cohen_kappa(confusion_KK: NDArray[np.int64]) -> float:
    """Compute the agreement of answers and true classes beyond that of chance.

    Returns:
        1 where all agree, 0 where they agree as often as by chance, below 0 where less often; NaN where nothing else than
        agreement could come by chance, as with images and answers of one class alone.

    References:
        Cohen, "A Coefficient of Agreement for Nominal Scales", Educational and Psychological Measurement 20 (1960).
    """
    num_images = int(confusion_KK.sum())
    by_chance = int(confusion_KK.sum(axis=1) @ confusion_KK.sum(axis=0))
    room = num_images**2 - by_chance
    return (num_images * int(confusion_KK.trace()) - by_chance) / room if room else math.nan


def _require_images(confusion_KK: NDArray[np.int64]) -> None:
    if confusion_KK.sum() == 0:
        raise ValueError("The recall of no images is not defined.")


METRICS: tuple[Metric, ...] = (
    Metric(
        name="loss",
        label="loss",
        meaning="Loss on {part}",
        formula=lambda judged: judged.loss,
        lowest=-math.inf,  # cross-entropy is not negative; another tool's loss may be
        highest=math.inf,
        direction="min",
        is_tested=False,
    ),
    Metric(
        name="macro_recall",
        label="macro recall",
        meaning="Mean of the class recalls on {part}",
        formula=lambda judged: macro_recall(judged.confusion_KK),
        lowest=0.0,
        highest=1.0,
        direction="max",
        is_tested=True,
    ),
    Metric(
        name="micro_recall",
        label="micro recall",
        meaning="Share of {part} images told right",
        formula=lambda judged: micro_recall(judged.confusion_KK),
        lowest=0.0,
        highest=1.0,
        direction="max",
        is_tested=True,
    ),
    Metric(
        name="cohen_kappa",
        label="Cohen's kappa",
        meaning="Cohen's kappa on {part}: how far answers agree with true classes beyond chance",
        formula=lambda judged: cohen_kappa(judged.confusion_KK),
        lowest=-1.0,
        highest=1.0,
        direction="max",
        is_tested=True,
    ),
)
"""Every metric that all runs have, in the order of its columns."""


def _recall_of(class_name: str) -> Metric:
    """Declare the recall of one class."""

    def formula(judged: Judged) -> float:
        index = judged.classes.index(class_name)
        num_images = judged.confusion_KK[index].sum()
        return float(judged.confusion_KK[index, index] / num_images) if num_images else math.nan

    return Metric(
        name=f"{_OF_A_CLASS}{class_name}",
        label=f"recall of {class_name}",
        meaning=f"Share of the {{part}} images of {class_name} told right",
        formula=formula,
        lowest=0.0,
        highest=1.0,
        direction="max",
        is_tested=False,
    )


def class_of(column: str) -> str | None:
    """Name the class whose recall a column holds; None for any other column."""
    return column.removeprefix(_COLUMN_OF_A_CLASS) or None if column.startswith(_COLUMN_OF_A_CLASS) else None


def metrics_on_validation(classes: Sequence[str]) -> tuple[Metric, ...]:
    """List what is measured on validation in a run of such classes, in the order of the columns."""
    return (*METRICS, *map(_recall_of, classes))


def columns_on_validation(classes: Sequence[str] = ()) -> tuple[str, ...]:
    """Name the columns of what is measured on validation.

    Args:
        classes: The run's; without them, the columns that every run has.
    """
    return tuple(metric.column for metric in metrics_on_validation(classes))


def metrics_on_test() -> tuple[Metric, ...]:
    """List what the sealed test measures, in the order of the columns."""
    return tuple(metric for metric in METRICS if metric.is_tested)


def measured_on_validation(judged: Judged) -> dict[str, float]:
    """Compute every metric of a pass over the validation images.

    Returns:
        The values by column; those that are not defined are left out.
    """
    return _defined({metric.column: metric.formula(judged) for metric in metrics_on_validation(judged.classes)})


def measured_on_test(judged: Judged) -> dict[str, float]:
    """Compute every metric that the sealed test measures, by column; those that are not defined are left out."""
    return _defined({metric.test_column: metric.formula(judged) for metric in metrics_on_test()})


def _defined(values: Mapping[str, float]) -> dict[str, float]:
    return {column: value for column, value in values.items() if not math.isnan(value)}


def names_to_choose() -> tuple[str, ...]:
    """Name the columns on validation as a message lists what may be chosen; `CLASS` stands for any class of the images."""
    return (*columns_on_validation(), f"{_COLUMN_OF_A_CLASS}CLASS")


def is_on_validation(column: str) -> bool:
    """Whether a run may have such a column on validation; of which classes it has one, its images say."""
    return class_of(column) is not None or column in columns_on_validation()


def metric_of(column: str) -> Metric:
    """Find the metric of a column on validation.

    Raises:
        InputError: There is no such column.
    """
    class_name = class_of(column)
    if class_name is not None:
        return _recall_of(class_name)
    for metric in METRICS:
        if metric.column == column:
            return metric
    raise InputError(f"Validation has no column {shortened(repr(column))}. {did_you_mean(column, names_to_choose())}")
