"""What a classical learner sees of an image: one row of numbers.

Pooled features are the mean, over the map, of what a frozen prefix gives: the stored prefix features that the networks of
the same depth train on, where the cache has room for them, and the same numbers computed batch by batch where it has not.

Shapes: N images, F features, C channels, H rows, W columns.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from skimage.feature import hog
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from tune_lung.config import Precision
from tune_lung.data.store import Part
from tune_lung.evaluation.predictions import input_batches, stored_tensors
from tune_lung.families.classical import CELLS_PER_BLOCK, ClassicalConfig
from tune_lung.models.network import Network, network_outline
from tune_lung.models.precision import autocast
from tune_lung.training.job import TrainingJob
from tune_lung.training.prefix_features import FEATURE_DTYPES, settle_prefix, stored_prefix_features

_BATCH_SIZE = 128
_MOST_KEPT = 2
"""Tables of features that a process keeps for the trials that follow."""

FeatureRows = npt.NDArray[np.float32]
"""features_NF."""

_kept: dict[tuple[object, ...], "FeatureTables"] = {}


@dataclass(frozen=True, kw_only=True)
class FeatureTables:
    """The features of the images that a trial may see while it is trained."""

    train_NF: FeatureRows
    """Of the training images."""
    validation_NF: FeatureRows
    """Of the validation images."""
    statistics: Mapping[str, Tensor]
    """A random backbone's batch-norm statistics, by name; empty for other features."""
    seconds: float | None
    """What computing the prefix features took, whoever did it; None without a backbone."""


def feature_tables(job: TrainingJob) -> FeatureTables:
    """Compute the features of a job's training and validation images, or take those that this process has kept.

    Raises:
        InputError: Stored images or features are damaged, or changed while they were read.
    """
    config = classical_of(job)
    network, weights = config.starts_from and config.network(), job.weights
    key = (
        job.store.fingerprint,
        job.run.image_size,
        job.trial.input,
        *((config.features, config.hog_cell, config.hog_orientations, config.pixel_side) if network is None else (network,)),
        *(() if weights is None else (weights.sha256 or job.network_seed, job.trial.precision, str(job.device))),
    )
    if key not in _kept:
        while len(_kept) >= _MOST_KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = _pooled_tables(job) if network is not None else _plain_tables(job)
    return _kept[key]


def features_of(job: TrainingJob, part: Part, statistics: Mapping[str, Tensor]) -> FeatureRows:
    """Compute the features of any images of a store, features_NF, in their order.

    Args:
        job: The trial.
        part: The images.
        statistics: Its backbone's batch-norm statistics, as they were while it was trained.

    Raises:
        KeyError: They are another backbone's; so does a RuntimeError.
    """
    if classical_of(job).starts_from is None:
        return _plain_features(job, part)
    backbone = backbone_job(job)
    network = backbone.build_network()
    buffers = dict(network.prefix.named_buffers())
    if buffers.keys() != statistics.keys():
        raise KeyError("These statistics are another backbone's.")
    network.prefix.load_state_dict(dict(statistics), strict=False)
    return _pooled_rows(_prefix_batches(backbone, network, part), backbone.trial.precision)


def num_features(config: ClassicalConfig, *, num_classes: int, image_size: int) -> int:
    """Count F; nothing is computed."""
    if config.features == "pixels":
        return config.pixel_side**2
    if config.features == "hog":
        num_blocks = image_size // config.hog_cell - CELLS_PER_BLOCK + 1
        return num_blocks**2 * CELLS_PER_BLOCK**2 * config.hog_orientations
    outline = backbone_outline(config, num_classes=num_classes, image_size=image_size)
    with torch.inference_mode():
        return int(outline.prefix(torch.empty(2, outline.in_channels, image_size, image_size, device="meta")).shape[1])


def backbone_outline(config: ClassicalConfig, *, num_classes: int, image_size: int) -> Network:
    """Build the backbone whose prefix gives pooled features, without numbers."""
    return network_outline(config.network(), protocol="strict", num_classes=num_classes, image_size=image_size)


def classical_of(job: TrainingJob) -> ClassicalConfig:
    """Name what a job fits.

    Raises:
        TypeError: It trains a network.
    """
    if not isinstance(job.trial.network, ClassicalConfig):
        raise TypeError(f"A {job.trial.network.model} is no classical learner.")
    return job.trial.network


def backbone_job(job: TrainingJob) -> TrainingJob:
    """Make the job of the network whose frozen prefix gives a job's pooled features."""
    return replace(job, trial=replace(job.trial, network=classical_of(job).network()))


def _plain_tables(job: TrainingJob) -> FeatureTables:
    train_NF, validation_NF = (_plain_features(job, part) for part in (job.train, job.validation))
    job.check_images()
    return FeatureTables(train_NF=train_NF, validation_NF=validation_NF, statistics={}, seconds=None)


def _plain_features(job: TrainingJob, part: Part) -> FeatureRows:
    config, transform = classical_of(job), job.transform()
    pixels_NHW, masks_NHW = stored_tensors(part, transform)
    rows = []
    for start in range(0, len(pixels_NHW), _BATCH_SIZE):
        chosen = slice(start, start + _BATCH_SIZE)
        images_N1HW = transform.brightness(pixels_NHW[chosen], None if masks_NHW is None else masks_NHW[chosen])
        rows.append(_pixel_rows(images_N1HW, config) if config.features == "pixels" else _hog_rows(images_N1HW, config))
    return np.concatenate(rows)


def _pixel_rows(images_N1HW: Tensor, config: ClassicalConfig) -> FeatureRows:
    small: FeatureRows = adaptive_avg_pool2d(images_N1HW, config.pixel_side).flatten(1).numpy()
    return small


def _hog_rows(images_N1HW: Tensor, config: ClassicalConfig) -> FeatureRows:
    rows = [
        hog(
            image_HW,
            orientations=config.hog_orientations,
            pixels_per_cell=(config.hog_cell, config.hog_cell),
            cells_per_block=(CELLS_PER_BLOCK, CELLS_PER_BLOCK),
        )
        for image_HW in images_N1HW[:, 0].numpy()
    ]
    return np.stack(rows).astype(np.float32)


def _pooled_tables(job: TrainingJob) -> FeatureTables:
    backbone = backbone_job(job)
    network = backbone.build_network()
    stored = stored_prefix_features(backbone, network)
    if stored is not None:
        tables = FeatureTables(
            train_NF=_means_of_maps(stored.train_NHWC),
            validation_NF=_means_of_maps(stored.validation_NHWC),
            statistics=stored.statistics,
            seconds=stored.seconds,
        )
        stored.check()
        return tables
    settle_prefix(backbone, network)
    train_NF, validation_NF = (
        _pooled_rows(_prefix_batches(backbone, network, part), backbone.trial.precision) for part in (job.train, job.validation)
    )
    job.check_images()
    statistics = {name: tensor.cpu().contiguous() for name, tensor in network.prefix.named_buffers()}
    return FeatureTables(train_NF=train_NF, validation_NF=validation_NF, statistics=statistics, seconds=None)


@torch.inference_mode()
def _prefix_batches(job: TrainingJob, network: Network, part: Part) -> Iterator[Tensor]:
    """Give what a frozen prefix makes of a part's images, (N, C, H, W)."""
    network.prefix.eval()
    for images_NCHW in input_batches(part, job.transform(), batch_size=_BATCH_SIZE, device=job.device):
        with autocast(job.device, job.trial.precision):
            yield network.prefix(images_NCHW)


def _pooled_rows(batches: Iterator[Tensor], precision: Precision) -> FeatureRows:
    """Average maps as they would be stored, in the number format of the arithmetic."""
    dtype = FEATURE_DTYPES[precision]
    return np.concatenate([_means_of_maps(batch_NCHW.to(dtype).permute(0, 2, 3, 1).cpu()) for batch_NCHW in batches])


def _means_of_maps(maps_NHWC: Tensor) -> FeatureRows:
    parts = [maps.float().mean(dim=(1, 2)).numpy() for maps in maps_NHWC.split(_BATCH_SIZE)]  # type: ignore[no-untyped-call]
    return np.concatenate(parts)
