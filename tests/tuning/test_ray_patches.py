"""What is made otherwise in Ray is there, and is refused in one line where it is not."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import ray

from tune_lung.errors import InputError
from tune_lung.tuning import ray_patches

PROGRAM = """
import sys
from ray.tune import Callback, tune
from tune_lung.tuning.ray_patches import leave_callbacks_uncounted
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


def test_all_that_is_patched_is_there() -> None:
    ray_patches.require_known_names()


@pytest.mark.parametrize("name", [("ray.tune.execution.tune_controller", "Manager"), ("ray._private.gone", "anything")])
def test_a_ray_that_has_renamed_something_is_refused_with_its_version(
    name: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_patches, "_NAMES", (*ray_patches._NAMES, name))
    with pytest.raises(InputError, match=rf"Ray {ray.__version__} has no {'.'.join(name)}, which tune_lung builds on\. Install"):
        ray_patches.require_known_names()
