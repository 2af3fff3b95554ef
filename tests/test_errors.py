import errno
import os

import pytest

from tune_lung.errors import InputError, did_you_mean, exit_status


def test_did_you_mean_names_the_nearest_word_and_all_allowed_ones_in_order():
    assert did_you_mean("freez_grid", ["freeze_grid", "cnn"]) == "Did you mean 'freeze_grid'? Allowed: cnn, freeze_grid."


def test_did_you_mean_guesses_nothing_where_nothing_is_near():
    assert did_you_mean("zzz", ["adam", "sgd"]) == "Allowed: adam, sgd."


def test_did_you_mean_takes_any_iterable_once():
    assert did_you_mean("adan", iter(("sgd", "adam"))) == "Did you mean 'adam'? Allowed: adam, sgd."


def test_input_error_is_a_value_error_so_that_the_library_can_be_used_without_the_commands():
    with pytest.raises(ValueError, match="batch_size"):
        raise InputError("batch_size must be at least 2, not 1.")


def test_what_the_user_can_mend_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> int:
        raise InputError("There is no such folder.")

    assert exit_status(refuse) == 2
    assert capsys.readouterr().err == "error: There is no such folder.\n"


def test_ctrl_c_is_exit_130_and_a_bug_keeps_its_traceback():
    def interrupt() -> int:
        raise KeyboardInterrupt

    def bug() -> int:
        raise RuntimeError("a bug")

    assert exit_status(interrupt) == 130
    with pytest.raises(RuntimeError, match="a bug"):
        exit_status(bug)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ETIMEDOUT], ids=errno.errorcode.get)
def test_a_file_that_the_system_does_not_give_is_one_line(number, capsys):
    def work() -> int:
        raise OSError(number, os.strerror(number), "/somewhere/private.png")

    assert exit_status(work) == 2
    expected = f"error: A file could not be read or written: {os.strerror(number)}. Mend that, and try again.\n"
    assert capsys.readouterr().err == expected
