"""Small image folders for the tests of the data layer."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tune_lung.data.cache import Cache


def texture(seed: int, size: int = 48) -> Image.Image:
    """A smooth random grey picture; two of them are no near-duplicates."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder with so many images of each class, in the Kaggle layout."""

    def write(counts: Mapping[str, int], *, masks: bool = False, name: str = "images of ours") -> Path:
        root = tmp_path / name
        for label, (class_name, count) in enumerate(counts.items()):
            images = root / class_name / "images"
            images.mkdir(parents=True)
            for number in range(1, count + 1):
                texture(1000 * label + number).save(images / f"{class_name}-{number}.png")
            if masks:
                (root / class_name / "masks").mkdir()
                for number in range(1, count + 1):
                    Image.new("RGB", (40, 40), (255, 255, 255)).save(root / class_name / "masks" / f"{class_name}-{number}.png")
        return root

    return write


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """An empty cache."""
    return Cache.open(tmp_path / "cache")
