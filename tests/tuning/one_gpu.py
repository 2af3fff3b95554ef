"""Start a Ray that takes this machine to have a GPU, and print as JSON what trials would meet; a process of test_survey.py's.

Usage: one_gpu.py FOLDER, for Ray's files. Prints what the survey finds, and the processes that served tests of three trials.
"""

import json
import os
import sys

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled", RAY_TMPDIR=sys.argv[1])

from pathlib import Path
from typing import Any

import ray

from tune_lung.config import RunConfig
from tune_lung.tuning import sealed_evaluation
from tune_lung.tuning.cluster import Resources
from tune_lung.tuning.plan import DataRequest, SearchSetup
from tune_lung.tuning.survey import survey_devices


def main() -> None:
    """Ask the node, and test three trials."""
    folder, run = Path(sys.argv[1]), RunConfig(image_size=64)
    setup = SearchSetup(
        run=run,
        run_root=folder / "run",
        data=DataRequest(root=None, run=run, cache_root=folder / "cache", cache_size_bytes=0),
        store=folder / "store",
        data_fingerprint="f" * 64,
        weights={},
        cpus_per_trial=0.5,
        gpus_per_trial=0.5,
    )

    def process(plan: Any, setup: Any, best_epoch: Any) -> int:  # noqa: ARG001 - as a sealed test takes it
        return os.getpid()

    ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    resources = Resources(cpus_per_trial=0.5, gpus_per_trial=0.5, max_concurrent=2)
    survey = survey_devices(resources)
    sealed_evaluation._predictions_or_damage = process
    plans = [setup.plan_trial("cnn", {"model": "cnn", "batch_size": size}) for size in (8, 16, 32)]
    pids = [pid for _, pid in sealed_evaluation.evaluate_sealed(plans, {}, setup, resources)]
    sys.stdout.write(json.dumps({"faults": survey.faults, "pids": pids}) + "\n")


if __name__ == "__main__":
    main()
