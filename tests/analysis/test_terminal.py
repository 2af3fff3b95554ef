"""Tables fit a terminal of 100 columns and lose nothing on the way."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_lung.analysis.terminal import COLUMNS, aligned, magnitude, percent_interval, sentences, shown, signed

LABELS = st.lists(st.text("abc=1", min_size=1, max_size=30), min_size=1, max_size=6).map(" ".join)


@given(st.lists(LABELS, min_size=1, max_size=5), st.lists(st.integers(0, 25), min_size=1, max_size=9))
def test_any_table_fits_and_every_text_of_it_stands_there_once(labels, lengths):
    headings = [("", "label"), *(("", f"H{column}") for column in range(len(lengths)))]
    rows = [
        [label, *(f"R{number}C{column}{'x' * length}" for column, length in enumerate(lengths))]
        for number, label in enumerate(labels)
    ]
    lines = aligned(headings, rows)
    assert max(map(len, lines)) <= COLUMNS
    words = [word for line in lines for word in line.split() if word[0] in "HR"]
    assert sorted(words) == sorted([*(bottom for _, bottom in headings[1:]), *(text for row in rows for text in row[1:])])


def test_columns_without_room_follow_below_beside_the_first_one():
    lines = aligned([("", "cell"), ("", "a" * 50), ("", "b" * 50)], [["one", "1", "2"], ["two", "3", "4"]])
    assert lines == [
        "cell " + "a" * 50,
        "one  " + "1".rjust(50),
        "two  " + "3".rjust(50),
        "",
        "cell " + "b" * 50,
        "one  " + "2".rjust(50),
        "two  " + "4".rjust(50),
    ]


def test_a_short_row_ends_early_and_stands_once():
    lines = aligned([("", "cell"), ("", "a" * 50), ("", "b" * 50)], [["one", "1", "2"], ["two", "not started"]])
    assert [line for line in lines if line.startswith("two")] == ["two  not started"]


def test_a_long_label_is_folded_and_its_numbers_stand_on_its_first_line():
    label = " ".join(["cnn", *(f"field_{number}=value" for number in range(8))])
    _, first, *others = aligned([("", "cell"), ("", "n")], [[label, "42"]])
    assert first.endswith(" 42")
    assert " ".join([first.removesuffix("42"), *others]).split() == label.split()


def test_sentences_are_folded_between_words():
    assert sentences(["word " * 30, "short"]) == [" ".join(["word"] * 20), " ".join(["word"] * 10), "short"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00123456, "0.00123"),
        (5.02e-5, "5.02e-05"),
        (128, "128"),
        (np.array([8, 16]), "8,16"),
        ((4, 8), "4,8"),
        ("cosine", "cosine"),
        (pd.NA, "-"),
        (float("nan"), "-"),
        (None, "-"),
    ],
)
def test_values_are_written_short(value, text):
    assert shown(value) == text


def test_numbers_are_written_with_their_size():
    assert [magnitude(number) for number in (2052, 999_999, 11_178_564, 1.82e9, pd.NA)] == [
        "2,052",
        "999,999",
        "11.18 M",
        "1.82 G",
        "-",
    ]
    assert percent_interval(0.912, 0.85, 0.954) == "91.2 [85.0, 95.4]"
    assert percent_interval(0.912, float("nan"), float("nan")) == "91.2"
    assert [signed(points) for points in (2.04, -0.5, pd.NA)] == ["+2.0", "-0.5", "-"]
