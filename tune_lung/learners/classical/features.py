"""What a classical learner sees of an image: one row of numbers.

Pooled features are the mean, over the map, of what a frozen prefix gives: the stored prefix features that the networks of
the same depth train on, where the cache has room for them, and the same numbers computed batch by batch where it has not.

Shapes: N images, F features, C channels, H rows, W columns.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from skimage.feature import hog
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from tune_lung.config import Precision, RunConfig, TrialConfig
from tune_lung.data.store import Pixels
from tune_lung.evaluation.predictions import input_batches, stored_tensors
from tune_lung.families.classical import CELLS_PER_BLOCK, ClassicalConfig
from tune_lung.learners.answering import BATCH_SIZE
from tune_lung.learners.kept import KeptModel, require_shapes
from tune_lung.models.input_transform import InputTransform
from tune_lung.models.network import Network, frozen_state, network_outline
from tune_lung.models.precision import autocast
from tune_lung.results.pixel_facts import PixelFacts
from tune_lung.training.job import TrainingJob
from tune_lung.training.prefix_features import FEATURE_DTYPES, features_key, settle_prefix, stored_prefix_features

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
    """A backbone's batch-norm statistics, by name; empty for other features."""
    frozen: Mapping[str, Tensor]
    """Its frozen parameters, by name."""
    seconds: float | None
    """What computing the prefix features took, whoever did it; None without a backbone."""


def feature_tables(job: TrainingJob) -> FeatureTables:
    """Compute the features of a job's training and validation images, or take those that this process has kept.

    Raises:
        InputError: Stored images or features are damaged, or changed while they were read.
    """
    config = classical_of(job)
    has_backbone = config.starts_from is not None
    key: tuple[object, ...]
    if has_backbone:
        key = (features_key(backbone_job(job)),)
    else:
        own = (config.features, config.hog_cell, config.hog_orientations, config.pixel_side)
        key = (job.store.fingerprint, job.run.image_size, job.trial.input, *own)
    if key not in _kept:
        while len(_kept) >= _MOST_KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = _pooled_tables(job) if has_backbone else _plain_tables(job)
    return _kept[key]


@dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """The way from any image in the form of a run's to its row of features."""

    config: ClassicalConfig
    """Which features."""
    transform: InputTransform
    """From stored pixels to grey values, or to a backbone's input."""
    prefix: nn.Module | None
    """The backbone's frozen prefix, on the device; None for other features."""
    device: torch.device
    """Where it computes."""
    precision: Precision
    """Number format of a backbone's arithmetic."""

    @classmethod
    def of_job(cls, job: TrainingJob, prefix: nn.Module | None = None) -> Self:
        """Take it from a job: a backbone's own, where there is a prefix."""
        return cls(
            config=classical_of(job),
            transform=(job if prefix is None else backbone_job(job)).transform(),
            prefix=prefix,
            device=job.device,
            precision=job.trial.precision,
        )

    @classmethod
    def of_kept(
        cls, kept: KeptModel, trial: TrialConfig, run: RunConfig, *, pixels: PixelFacts, num_classes: int, device: torch.device
    ) -> Self:
        """Take it from what a run keeps; arguments as in `Learner.answering`.

        Raises:
            DamagedCheckpointError: What is kept is another backbone's.
        """
        config, prefix, seen = config_of(trial), None, trial
        if config.starts_from is not None:
            network = backbone_outline(config, num_classes=num_classes, image_size=run.image_size)
            statistics = kept.best.part("statistics")
            require_shapes(dict(network.prefix.named_buffers()), statistics)
            require_shapes(frozen_state(network), kept.frozen)
            own = {f"prefix.{name}": tensor for name, tensor in statistics.items()}
            network.load_state_dict({**own, **kept.frozen}, strict=False, assign=True)
            prefix = network.prefix.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            seen = replace(trial, network=config.network())
        transform = InputTransform.for_trial(
            seen, protocol=run.protocol, train_mean=pixels["train_mean"], train_deviation=pixels["train_deviation"]
        )
        return cls(config=config, transform=transform, prefix=prefix, device=device, precision=trial.precision)

    def rows(self, images: Pixels) -> FeatureRows:
        """Compute features_NF of images, in their order."""
        if self.prefix is not None:
            dtype = FEATURE_DTYPES[self.precision]  # as they would be stored
            maps = self._maps(images, self.prefix)
            return np.concatenate([_means_of_maps(maps_NCHW.to(dtype).permute(0, 2, 3, 1).cpu()) for maps_NCHW in maps])
        pixels_NHW, masks_NHW = stored_tensors(images, self.transform)
        make, rows = _pixel_rows if self.config.features == "pixels" else _hog_rows, []
        for start in range(0, len(pixels_NHW), BATCH_SIZE):
            chosen = slice(start, start + BATCH_SIZE)
            masks = None if masks_NHW is None else masks_NHW[chosen]
            rows.append(make(self.transform.brightness(pixels_NHW[chosen], masks), self.config))
        return np.concatenate(rows)

    @torch.inference_mode()
    def _maps(self, images: Pixels, prefix: nn.Module) -> Iterator[Tensor]:
        """Give what the prefix makes of images, (N, C, H, W)."""
        prefix.eval()
        for images_NCHW in input_batches(images, self.transform, batch_size=BATCH_SIZE, device=self.device):
            with autocast(self.device, self.precision):
                yield prefix(images_NCHW)


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


def config_of(trial: TrialConfig) -> ClassicalConfig:
    """Name what a trial fits.

    Raises:
        TypeError: It trains a network.
    """
    if not isinstance(trial.network, ClassicalConfig):
        raise TypeError(f"A {trial.network.model} is no classical learner.")
    return trial.network


def classical_of(job: TrainingJob) -> ClassicalConfig:
    """Name what a job fits; see `config_of`."""
    return config_of(job.trial)


def backbone_job(job: TrainingJob) -> TrainingJob:
    """Make the job of the network whose frozen prefix gives a job's pooled features."""
    return replace(job, trial=replace(job.trial, network=classical_of(job).network()))


def _plain_tables(job: TrainingJob) -> FeatureTables:
    extractor = FeatureExtractor.of_job(job)
    train_NF, validation_NF = extractor.rows(job.train), extractor.rows(job.validation)
    job.check_images()
    return FeatureTables(train_NF=train_NF, validation_NF=validation_NF, statistics={}, frozen={}, seconds=None)


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
        train_NF, validation_NF = _means_of_maps(stored.train_NHWC), _means_of_maps(stored.validation_NHWC)
        stored.check()
        statistics = stored.statistics
    else:
        settle_prefix(backbone, network)
        extractor = FeatureExtractor.of_job(job, network.prefix)
        train_NF, validation_NF = extractor.rows(job.train), extractor.rows(job.validation)
        job.check_images()
        statistics = {name: tensor.cpu().contiguous() for name, tensor in network.prefix.named_buffers()}
    return FeatureTables(
        train_NF=train_NF,
        validation_NF=validation_NF,
        statistics=statistics,
        frozen=frozen_state(network),
        seconds=None if stored is None else stored.seconds,
    )


def _means_of_maps(maps_NHWC: Tensor) -> FeatureRows:
    parts = [maps.float().mean(dim=(1, 2)).numpy() for maps in maps_NHWC.split(BATCH_SIZE)]  # type: ignore[no-untyped-call]
    return np.concatenate(parts)
