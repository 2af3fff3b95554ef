"""What a trial is called on one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_lung.config import FIELD_TYPES
from tune_lung.space_files import load_space, shipped_space_files
from tune_lung.tuning.watching.trial_label import short_value, trial_label

CELL = "resnet18 frozen_blocks=2"
SAMPLED = {"learning_rate": 0.00123, "batch_size": 32, "weight_decay": 1e-4}


def test_a_label_is_the_cell_and_its_sampled_values_in_short():
    assert trial_label(CELL, SAMPLED) == "resnet18 frozen_blocks=2 lr 1.2e-3 batch 32 wd 1e-4"


def test_a_grids_trial_is_called_as_its_cell():
    assert trial_label(CELL, {}, width=80) == CELL


@pytest.mark.parametrize(
    ("width", "label"),
    [
        (51, "resnet18 frozen_blocks=2 lr 1.2e-3 batch 32 wd 1e-4"),  # just fits
        (50, "resnet18 frozen=2 lr 1.2e-3 batch 32 wd 1e-4"),
        (43, "resnet18 frozen=2 lr 1.2e-3 batch 32…"),
        (30, "resnet18 frozen=2 lr 1.2e-3…"),
        (20, "resnet18 frozen=2…"),
        (5, "resn…"),
    ],
)
def test_what_does_not_fit_is_left_out_value_by_value(width: int, label: str):
    assert trial_label(CELL, SAMPLED, width=width) == label


@given(width=st.integers(1, 120), values=st.dictionaries(st.sampled_from(sorted(FIELD_TYPES)), st.floats(1e-9, 1e6)))
def test_no_label_is_wider_than_its_room_and_no_number_is_cut(width: int, values: dict[str, float]):
    label, whole = trial_label("cnn", values, width=width), trial_label("cnn", values)
    assert len(label) <= width
    shown = label.removesuffix("…")
    assert width <= len("cnn") or f"{whole} ".startswith(f"{shown} ")
    assert label.endswith("…") == (shown != whole)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0005, "5e-4"),
        (0.00123, "1.2e-3"),
        (0.01, "1e-2"),
        (0.154321, "0.154"),
        (1.7361, "1.74"),
        (0.0, "0"),
        (123456.0, "1.2e5"),
        (128, "128"),
        ("cosine", "cosine"),
        ((5, 5, 3), "5,5,3"),
        (None, "None"),
    ],
)
def test_values_are_written_in_few_characters(value: object, text: str):
    assert short_value(value) == text


@pytest.mark.parametrize("name", sorted(shipped_space_files()))
def test_the_cells_of_every_shipped_space_are_told_apart_beside_the_numbers_of_80_columns(name: str):
    cells = load_space(name).cells()
    labels = {trial_label(cell.name, dict.fromkeys(cell.axes, 0.00123), width=47) for cell in cells}
    assert len(labels) == len(cells)
