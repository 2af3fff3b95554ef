"""Ray imports no tracker that nobody asked for."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

PROGRAM = """
import sys
from ray.tune import Callback, tune
from tune_lung.tuning.uncounted_callbacks import leave_callbacks_uncounted
if sys.argv[1] == "left out":
    leave_callbacks_uncounted()
tune.air_usage.tag_callbacks([Callback()])  # as Tune calls it
print({"mlflow", "wandb"} & set(sys.modules))
"""


@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs an installed tracker")
@pytest.mark.parametrize(("count", "is_imported"), [("left out", False), ("as Ray does it", True)])
def test_trackers_are_imported_only_to_count_callbacks(count: str, is_imported: bool) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, count], capture_output=True, text=True, check=True)
    assert (done.stdout.strip() != "set()") == is_imported
