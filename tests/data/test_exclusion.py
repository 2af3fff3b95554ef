import pickle

import pytest

from tune_lung.data.exclusion import ChangedError, NotReadError


@pytest.mark.parametrize("error", [NotReadError("Input/output error"), ChangedError()])
def test_what_a_node_could_not_read_is_told_by_its_driver_in_the_same_words(error):
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - of our own
    assert (type(again), str(again), again.cause) == (type(error), str(error), error.cause)
