"""Prefix features: what a frozen prefix gives for every image, computed once and kept on the node.

Under `strict` a frozen prefix is a pure function of the image, so its output is the same in every epoch, and in every
trial with the same weights, depth, size, input, data, precision and arithmetic: bit for bit on the CPU, and on a GPU up to a
rounding, for which kernel computes an image there hangs on the images beside it. An entry of the cache holds it for the
training and the validation images, in the number format of the arithmetic; for the test images there is none. A random
prefix's batch-norm statistics, set once by a pass over the training images, lie in the same entry. A deeper prefix begins with
every shallower one, so its features are computed from those that are there.

Shapes: N images, C channels, H rows, W columns.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from tune_lung.config import Precision
from tune_lung.data.cache import Cache, content_key
from tune_lung.data.cache_content import ProvenFiles, proven_files
from tune_lung.data.store import OpenPart
from tune_lung.errors import InputError, NoRoomError, is_of_the_system
from tune_lung.evaluation.predictions import input_batches
from tune_lung.families.family import ModelConfig, PointValue
from tune_lung.files import check_regular_file, check_safetensors_file, plain_json, read_regular_file
from tune_lung.models.freezing import set_prefix_statistics
from tune_lung.models.network import Network, network_outline, stages_after_blocks
from tune_lung.models.precision import arithmetic_of, autocast
from tune_lung.models.transfer import to_device
from tune_lung.shapes import Amount, Count, require_shape
from tune_lung.training.job import TrainingJob
from tune_lung.training.prefix_gain import prefix_gain

FEATURES_VERSION = 1
"""Raised whenever the same prefix would give or store other features."""
LEAST_GAIN = 1.2
"""Speed of a training step with features over one without, from which features are used."""
_BATCH_SIZE = 128
"""Images of one pass, as in validation; a batch of 1 may be computed by other kernels, and round otherwise."""
_KIND = "features"
_DESCRIPTION = "features.json"
_STATISTICS = "statistics.safetensors"
_MOST_DESCRIPTION_BYTES = 2**20
_MOST_STATISTICS_BYTES = 2**28
FEATURE_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Number format in which features are stored, by that of the arithmetic."""
_DAMAGED = "Stored prefix features are damaged or of another version."
_ROOM_TO_LEAVE = 0.05
"""Share of the disk that features never take."""

_log = logging.getLogger(__name__)


class FeaturesDamagedError(InputError):
    """Stored features that are missing, not what was built, changed while they were read, or of another version."""


class _ShapesShape(TypedDict):
    """Numbers of images, rows, columns and channels."""

    train: Annotated[list[Count], Field(min_length=4, max_length=4)]
    validation: Annotated[list[Count], Field(min_length=4, max_length=4)]


class _FeaturesShape(TypedDict):
    """What an entry's description says."""

    version: int
    precision: Precision
    shapes: _ShapesShape
    seconds: Amount
    files: dict[str, int]


_SHAPE = TypeAdapter(_FeaturesShape)


@dataclass(frozen=True, kw_only=True)
class PrefixFeatures:
    """A frozen prefix's output for the images of a run."""

    train_NHWC: Tensor
    """Features of the training images, memory-mapped."""
    validation_NHWC: Tensor
    """Features of the validation images, memory-mapped."""
    statistics: dict[str, Tensor]
    """The prefix's batch-norm statistics, by name."""
    seconds: float
    """What computing them took, whoever did it."""
    files: ProvenFiles
    """What lay in their entry when it was opened."""

    def check(self) -> None:
        """See that all that was read of them was right.

        Raises:
            FeaturesDamagedError: A file has changed since they were opened, or is gone.
        """
        if not self.files.are_unchanged():
            raise FeaturesDamagedError("Stored prefix features changed while they were read.")

    def batches(self, part: OpenPart, *, batch_size: int, device: torch.device) -> Iterator[Tensor]:
        """Yield a part's features in the order of its images, features_NCHW, channels last in memory."""
        stored_NHWC = self.train_NHWC if part == "train" else self.validation_NHWC
        for features_NHWC in stored_NHWC.split(batch_size):  # type: ignore[no-untyped-call]
            yield to_device(features_NHWC, device).permute(0, 3, 1, 2)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open an entry, checking that its files are what was built; whoever has read them asks `check` whether they were right.

        Raises:
            FeaturesDamagedError: A file is not there or not what was built, or the entry is another version's.
        """
        files, content = proven_files(folder), _described(folder)
        if files is None:
            raise FeaturesDamagedError(_DAMAGED)
        try:
            opened = cls(
                train_NHWC=_mapped(folder, "train", content),
                validation_NHWC=_mapped(folder, "validation", content),
                statistics=_statistics(folder / _STATISTICS),
                seconds=content["seconds"],
                files=files,
            )
        except (OSError, ValueError, SafetensorError) as error:
            if is_of_the_system(error):
                raise
            raise FeaturesDamagedError(_DAMAGED) from error
        opened.check()
        return opened


def open_prefix_features(job: TrainingJob, network: Network) -> PrefixFeatures | None:
    """Give a trial the features of its frozen prefix, computed first where this node's cache lacks them.

    Args:
        job: The trial.
        network: Its network at its start; a random prefix's statistics may still be unset.

    Returns:
        The features; None where the network has no frozen prefix, images change from epoch to epoch, there is no
        cache or no room in it, or features would speed up training by less than `LEAST_GAIN`.
    """
    cache = job.cache
    if cache is None or not _may_be_stored(job, network, cache) or not _pay(job, cache):
        return None
    return _found_or_built(job, network, cache)


def stored_prefix_features(job: TrainingJob, network: Network) -> PrefixFeatures | None:
    """Give the features of a frozen prefix to who needs them once, whether or not they speed up a training step.

    Returns:
        As `open_prefix_features`; None where they cannot be stored.
    """
    cache = job.cache
    if cache is None or not _may_be_stored(job, network, cache):
        return None
    return _found_or_built(job, network, cache)


def _may_be_stored(job: TrainingJob, network: Network, cache: Cache) -> bool:
    if cache.size_bytes == 0 or not network.has_frozen_prefix or job.trial.augmentation != "none":
        return False
    return has_room_for_features(job, cache)


def _found_or_built(job: TrainingJob, network: Network, cache: Cache) -> PrefixFeatures | None:
    try:
        folder = cache.entry(
            _KIND,
            features_key(job),
            build=lambda directory: _build(job, network, cache, directory),
            check=_described,
        )
    except NoRoomError as error:
        _log.warning("Training goes on without prefix features: %s", error)
        return None
    return PrefixFeatures.open(folder)


def features_key(job: TrainingJob) -> str:
    """Name the cache's entry of a trial's prefix features: trials with the same name share them."""
    return content_key(_content(job))


def has_features(job: TrainingJob, cache: Cache) -> bool:
    """Say whether a cache holds the features of a trial's prefix already."""
    return cache.has(_KIND, features_key(job), check=_described)


def features_bytes(job: TrainingJob) -> int:
    """Count the bytes that the features of a trial's frozen prefix take, 0 without one; nothing is computed."""
    size = job.run.image_size
    network = network_outline(job.trial.network, protocol=job.run.protocol, num_classes=len(job.store.classes), image_size=size)
    if not network.has_frozen_prefix:
        return 0
    with torch.inference_mode():
        num_values = network.prefix(torch.empty(2, network.in_channels, size, size, device="meta"))[0].numel()
    num_images = len(job.train.labels_N) + len(job.validation.labels_N)
    return int(num_images * num_values * FEATURE_DTYPES[job.trial.precision].itemsize)


def has_room_for_features(job: TrainingJob, cache: Cache) -> bool:
    """Say whether a cache and its disk can take the features of a trial's prefix; where they cannot, a warning is logged."""
    wanted = features_bytes(job)
    disk = shutil.disk_usage(cache.root)
    fits = wanted <= min(cache.size_bytes, disk.free - _ROOM_TO_LEAVE * disk.total)
    if not fits:
        _log.warning("Training goes on without prefix features: they need %.1f GB, more than there is room for.", wanted / 1e9)
    return fits


def settle_prefix(job: TrainingJob, network: Network) -> None:
    """Set the batch-norm statistics of a frozen random prefix: left as they start, its features explode."""
    if job.has_random_prefix:
        batches = input_batches(job.train, job.transform(), batch_size=_BATCH_SIZE, device=job.device)
        set_prefix_statistics(network.prefix, batches)


def _pay(job: TrainingJob, cache: Cache) -> bool:
    """Say whether features speed up training enough: measured, unless those of this or a shallower prefix are there.

    Whoever computed those measured it, and a deeper prefix leaves even less of a step.
    """
    if any(has_features(each, cache) for each in (job, *(shallower for _, shallower in _shallower_prefixes(job)))):
        return True
    plain = _with(job.trial.network, weights="random")  # one measurement for all starts
    gain = prefix_gain(plain, image_size=job.run.image_size, precision=job.trial.precision, device=job.device)
    return gain >= LEAST_GAIN


def _content(job: TrainingJob) -> dict[str, Any]:
    """List what the features follow from."""
    network, weights, transform = job.trial.network, job.weights, job.transform()
    if not network.frozen_blocks or weights is None:
        raise ValueError("Only a backbone has a frozen prefix.")
    return {
        "version": FEATURES_VERSION,
        "torch": torch.__version__,
        "device": arithmetic_of(job.device),
        "model": network.model,
        "frozen_blocks": network.frozen_blocks,
        "start": weights.sha256 or f"random {job.network_seed}",
        "image_size": job.run.image_size,
        "input": [transform.part, transform.mean, transform.deviation],
        "data": job.store.fingerprint,
        "precision": job.trial.precision,
    }


@torch.inference_mode()
def _build(job: TrainingJob, network: Network, cache: Cache, folder: Path) -> None:
    """Compute the features of both parts into an empty folder."""
    started = time.perf_counter()
    settle_prefix(job, network)
    network.prefix.eval()
    statistics = {name: tensor.cpu().contiguous() for name, tensor in network.prefix.named_buffers()}
    source = _source(job, network.prefix, statistics, cache)
    parts: tuple[OpenPart, ...] = ("train", "validation")
    shapes = {part: _write_part(folder / part, source, part, job) for part in parts}
    source.check()
    job.check_images()  # the statistics may come from them
    save_file(statistics, folder / _STATISTICS)
    description = {
        "version": FEATURES_VERSION,
        "precision": job.trial.precision,
        "shapes": shapes,
        "seconds": time.perf_counter() - started,
        "files": {path.name: path.stat().st_size for path in folder.iterdir()},
    }
    (folder / _DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What features are computed from."""

    batches: Callable[[OpenPart], Iterator[Tensor]]
    """Give a part's images, or the features of a shallower prefix, (N, C, H, W) on the device."""
    stages: nn.Module
    """What is still to be computed of the prefix."""
    check: Callable[[], None]
    """See that all batches given so far were right."""


def _source(job: TrainingJob, prefix: nn.Module, statistics: Mapping[str, Tensor], cache: Cache) -> _Source:
    """Start from the deepest shallower prefix whose features the cache holds, else from the images."""
    for blocks, shallower in _shallower_prefixes(job):
        folder = cache.found(_KIND, features_key(shallower), check=_described)
        features = None if folder is None else PrefixFeatures.open(folder)
        if features is not None and all(torch.equal(statistics[name], own) for name, own in features.statistics.items()):
            return _Source(
                batches=partial(features.batches, batch_size=_BATCH_SIZE, device=job.device),
                stages=stages_after_blocks(job.trial.network, prefix, blocks),
                check=features.check,
            )
    return _Source(batches=partial(_image_batches, job), stages=prefix, check=job.check_images)


def _shallower_prefixes(job: TrainingJob) -> Iterator[tuple[int, TrainingJob]]:
    """Give the same job with fewer blocks frozen, the deepest first."""
    network = job.trial.network
    for blocks in range(network.frozen_blocks - 1, 0, -1):
        yield blocks, replace(job, trial=replace(job.trial, network=_with(network, frozen_blocks=blocks)))


def _with(network: ModelConfig, **changes: PointValue) -> ModelConfig:
    return type(network).from_fields(network.model, network.own_fields() | changes)


def _image_batches(job: TrainingJob, part: OpenPart) -> Iterator[Tensor]:
    images = job.train if part == "train" else job.validation
    return input_batches(images, job.transform(), batch_size=_BATCH_SIZE, device=job.device)


def _write_part(path: Path, source: _Source, part: OpenPart, job: TrainingJob) -> list[int]:
    """Write one part's features row by row and return their shape, (N, H, W, C)."""
    dtype, num_images, shape = FEATURE_DTYPES[job.trial.precision], 0, [0, 0, 0]
    with path.open("wb") as file:
        for batch_NCHW in source.batches(part):
            with autocast(job.device, job.trial.precision):
                features_NCHW = source.stages(batch_NCHW)
            features_NHWC = features_NCHW.to(dtype).permute(0, 2, 3, 1).contiguous().cpu()
            num_images, shape = num_images + len(features_NHWC), list(features_NHWC.shape[1:])
            file.write(features_NHWC.view(torch.uint8).numpy().data)
    return [num_images, *shape]


def _statistics(path: Path) -> dict[str, Tensor]:
    check_safetensors_file(path, most_bytes=_MOST_STATISTICS_BYTES)
    return load_file(path)


def _described(folder: Path) -> _FeaturesShape:
    """Read what an entry says of itself, checking that its files are there in full length.

    Raises:
        FeaturesDamagedError: A file is missing or short, or the entry is another version's.
    """
    path = folder / _DESCRIPTION
    try:
        content = plain_json(read_regular_file(path, most_bytes=_MOST_DESCRIPTION_BYTES), name=path.name)
        described: _FeaturesShape = require_shape(_SHAPE, content)
        sizes = {name: (folder / name).stat().st_size for name in described["files"]}
    except (OSError, ValueError) as error:
        if is_of_the_system(error):
            raise
        raise FeaturesDamagedError(_DAMAGED) from error
    if described["version"] != FEATURES_VERSION or sizes != described["files"]:
        raise FeaturesDamagedError(_DAMAGED)
    return described


def _mapped(folder: Path, part: OpenPart, content: _FeaturesShape) -> Tensor:
    shape, dtype = content["shapes"][part], FEATURE_DTYPES[content["precision"]]
    check_regular_file(folder / part)
    if math.prod(shape) * dtype.itemsize != (folder / part).stat().st_size:  # to read behind a file's end ends the process
        raise FeaturesDamagedError(_DAMAGED)
    return torch.from_file(str(folder / part), shared=False, size=math.prod(shape), dtype=dtype).view(shape)
