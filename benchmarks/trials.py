"""Trials outside of a search: one after another, in this process, on one core, by the code that workers run."""

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from tune_lung.config import RunConfig
from tune_lung.data.cache import Cache
from tune_lung.data.scan import ImageChoice
from tune_lung.data.store import PixelStore
from tune_lung.models.weights import RANDOM_WEIGHTS
from tune_lung.results.ledger import Ledger
from tune_lung.results.manifest import DataFacts, SearchFacts, new_manifest
from tune_lung.space import SearchSpace
from tune_lung.strategy import Strategy
from tune_lung.training.fit import EpochResult, fit
from tune_lung.tuning.device import claim_device
from tune_lung.tuning.plan import DataRequest, SearchSetup
from tune_lung.tuning.sealed_evaluation import predict_on_test

CACHE_BYTES = 20_000_000_000
PLAIN_MEMORY = {"MALLOC_MMAP_MAX_": "65536"}
"""glibc's own default, said aloud: then trials leave memory as it is."""


def data_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Make a benchmark's parser, with the images that it uses.

    Args:
        name: The benchmark's module.
        description: Stands above the options.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="one folder per class (default: synthetic X-rays)")
    parser.add_argument("--image-size", type=int, default=128, metavar="PX", help="side in pixels (default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="use N images at most, drawn class by class")
    return parser


@contextmanager
def prepared_setup(options: argparse.Namespace) -> Iterator[SearchSetup]:
    """Decode the images into a cache of their own, and give what trials on one core share; all is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="tune_lung-benchmark-") as folder:
        run = RunConfig(image_size=options.image_size)
        root = None if options.data is None else options.data.expanduser().resolve()
        request = DataRequest(
            choice=ImageChoice(limit=options.limit),
            root=root,
            run=run,
            cache_root=Path(folder, "cache"),
            cache_size_bytes=CACHE_BYTES,
        )
        with request.open_cache() as cache:
            prepared = request.prepare(cache)
            yield SearchSetup(
                run=run,
                run_root=Path(folder, "run"),
                data=request,
                store=prepared.store,
                data_fingerprint=prepared.fingerprint,
                weights={"resnet18": RANDOM_WEIGHTS, "resnet34": RANDOM_WEIGHTS},
                cpus_per_trial=1,
                gpus_per_trial=0,
            )


def new_ledger(space: SearchSpace, strategy: Strategy, setup: SearchSetup) -> Ledger:
    """Start the ledger of a search in the setup's run folder."""
    store = PixelStore.open(setup.store)
    facts = DataFacts(
        fingerprint=store.fingerprint,
        synthetic=store.synthetic,
        classes=store.classes,
        counts={str(part): count for part, count in store.num_images.items()},
    )
    manifest = new_manifest(
        SearchFacts(space=space, strategy=strategy, sampler_options={}, run=setup.run),
        name=setup.run_root.name,
        arguments=["--space", space.name],
        data=facts,
        weights={},
    )
    return Ledger.create(setup.run_root, manifest)


def train(setup: SearchSetup, point: dict[str, Any], *, name: str, cache_bytes: int) -> list[EpochResult]:
    """Train one point to its end.

    Args:
        setup: What it shares with others.
        point: What is trained.
        name: Of the folder for its checkpoints; no two trials of a benchmark share one.
        cache_bytes: Room for features of its frozen prefix, as `--cache-size` gives it; 0 keeps none.
    """
    setup = dataclasses.replace(setup, run_root=setup.run_root / name)
    plan = setup.plan_trial("cell", point)
    device = claim_device(cpus=setup.cpus_per_trial, gpus=setup.gpus_per_trial)
    with Cache.open(setup.data.cache_root, cache_bytes) as cache:
        job = setup.training_job(plan, store=PixelStore.open(setup.store), device=device, cache=cache)
        return list(fit(job, setup.checkpoints(plan)))


def images_per_second_apart(
    setup: SearchSetup, point: dict[str, Any], *, name: str, cache_bytes: int, environment: Mapping[str, str]
) -> list[float]:
    """Train one point in a fresh process.

    Args:
        setup: As `train` takes it; so the next three.
        point: What is trained.
        name: Of the folder for its checkpoints.
        cache_bytes: Room for features.
        environment: Variables that the process finds set.

    Returns:
        Training images a second, by epoch.
    """
    with _environment(environment), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_images_per_second, setup, point, name, cache_bytes).result()


def _images_per_second(setup: SearchSetup, point: dict[str, Any], name: str, cache_bytes: int) -> list[float]:
    return [result.images_per_second for result in train(setup, point, name=name, cache_bytes=cache_bytes)]


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_predictions(setup: SearchSetup, point: dict[str, Any], *, name: str) -> pd.DataFrame:
    """Let the best checkpoint of a point that `train` trained answer for the test images."""
    setup = dataclasses.replace(setup, run_root=setup.run_root / name)
    return predict_on_test(setup.plan_trial("cell", point), setup)
