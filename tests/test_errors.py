import pytest

from tune_lung.errors import InputError, did_you_mean


def test_did_you_mean_names_the_nearest_word_and_all_allowed_ones_in_order():
    assert did_you_mean("freez_grid", ["freeze_grid", "cnn"]) == "Did you mean 'freeze_grid'? Allowed: cnn, freeze_grid."


def test_did_you_mean_guesses_nothing_where_nothing_is_near():
    assert did_you_mean("zzz", ["adam", "sgd"]) == "Allowed: adam, sgd."


def test_did_you_mean_takes_any_iterable_once():
    assert did_you_mean("adan", iter(("sgd", "adam"))) == "Did you mean 'adam'? Allowed: adam, sgd."


def test_input_error_is_a_value_error_so_that_the_library_can_be_used_without_the_commands():
    with pytest.raises(ValueError, match="batch_size"):
        raise InputError("batch_size must be at least 2, not 1.")
