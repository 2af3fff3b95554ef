import io
import logging
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_lung.printable import MOST_LETTERS, in_one_line, printable

from tests.hostile_text import HOSTILE_NAMES, OBEYED


@pytest.mark.parametrize("what", HOSTILE_NAMES)
def test_nothing_that_a_terminal_obeys_is_left(what):
    name = HOSTILE_NAMES[what]
    assert not OBEYED & set(printable(name))
    assert len(printable(name)) == len(name)  # each is replaced by one sign: columns keep their width


@given(st.text(st.characters()))
def test_controls_separators_and_halves_of_letters_never_pass(text):
    shown = printable(text)
    assert {unicodedata.category(letter) for letter in shown if letter not in "\n\t"} & {"Cc", "Cs", "Zl", "Zp"} == set()
    assert not {unicodedata.bidirectional(letter) for letter in shown} & {
        "LRE",
        "RLE",
        "LRO",
        "RLO",
        "PDF",
        "LRI",
        "RLI",
        "FSI",
        "PDI",
    }
    shown.encode()


@pytest.mark.parametrize(
    "name", ["Ζωή", "新冠肺炎", "صورة", "שלום", "नमस्ते", "می‌خواهم", "naïve café", "100 % ± 3", "👩‍⚕️", "a\nb\tc"]
)
def test_what_people_write_stays_as_it_is(name):
    assert printable(name) == name


def test_one_line_is_one_line():
    assert in_one_line("a name\n  error: forged\tby it") == "a name   error: forged by it"
    assert in_one_line(ValueError("of anything")) == "of anything"


def test_of_a_long_line_both_ends_are_kept():
    line = in_one_line(f"begins {'x' * 10**7} and says what to do")
    assert len(line) == MOST_LETTERS
    assert line.startswith("begins xxx")
    assert line.endswith("xxx and says what to do")
    assert in_one_line("123456789", most=5) == "12…89"
    assert in_one_line("12345", most=5) == "12345"


WRITERS = {
    "print": "print(name)",
    "stderr": "sys.stderr.write(name)",
    "lines": "sys.stdout.writelines([name, name])",
    "argparse": "import argparse; argparse.ArgumentParser().parse_args([name])",
    "log": "import logging; logging.getLogger('x').warning('of %s', name)",
    "warning": "import warnings; warnings.warn(name)",
    "traceback": "raise ValueError(name)",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whoever_writes_to_a_commands_streams_writes_what_can_be_printed(writer):
    names = ascii("|".join(HOSTILE_NAMES.values()))
    code = f"import sys; from tune_lung.process import begin_command; begin_command(); name = {names}; {WRITERS[writer]}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    printed = (done.stdout + done.stderr).decode()
    assert "degnarts" in printed
    assert not OBEYED & set(printed) - {"\n"}


def test_a_terminal_without_our_letters_gets_question_marks_and_no_error():
    code = "from tune_lung.process import begin_command; begin_command(); print('a\\u2026\\x1b')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env={"PYTHONIOENCODING": "ascii"}
    )
    assert done.stdout == "a??\n"


def test_streams_stay_what_they_are_otherwise(monkeypatch):
    from tune_lung.printable import clean_streams

    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", None)  # as of a process without a terminal
    monkeypatch.setattr(logging.lastResort, "formatter", None)
    clean_streams()
    clean_streams()  # twice is once
    assert sys.stdout.encoding == "utf-8"
    assert not sys.stdout.isatty()
    assert sys.stdout.write("\x1b[1mbold\x1b[0m \x1b") == 14
    assert stream.buffer.getvalue().decode() == "bold \ufffd"
