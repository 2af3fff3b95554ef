"""Phantoms: synthetic chest radiographs from a seed, in the layout of the Kaggle release.

They let everything run with no data at hand. They are drawn by rule, show no person, and say nothing of medicine: wherever
a number comes from them, it is labelled synthetic.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tune_lung.data.cache import Cache, content_key, num_workers
from tune_lung.data.phantom_anatomy import Chest, Map, draw_chest, smooth_noise
from tune_lung.data.phantom_findings import FINDINGS, draw_severity
from tune_lung.data.scan import SYNTHETIC_MARK
from tune_lung.data.store import StoreDamagedError
from tune_lung.errors import InputError
from tune_lung.files import write_text_whole
from tune_lung.randomness import derive_seed
from tune_lung.threads import Threads

PHANTOM_VERSION = 4
"""Raised whenever the same seed would give other pictures."""
IMAGE_PIXELS = 299
MASK_PIXELS = 256
DEFAULT_NUM_IMAGES = 640
_SHARES: Mapping[str, int] = {"COVID": 150, "Lung_Opacity": 170, "Normal": 200, "Viral Pneumonia": 120}
_MARK_TEXT = "Synthetic chest radiographs drawn by tune_lung from a seed. They show no person and say nothing of medicine.\n"


def ensure_phantoms(cache: Cache, *, seed: int, num_images: int = DEFAULT_NUM_IMAGES) -> Path:
    """Give a folder of phantoms, drawn first where it is not in the cache.

    Args:
        cache: Where the folder lies.
        seed: Decides every picture.
        num_images: Pictures of all classes together, at least 12.

    Returns:
        A folder in the Kaggle layout.

    Raises:
        InputError: There are too few pictures for the classes.
    """
    key = content_key({"version": PHANTOM_VERSION, "seed": seed, "num_images": num_images})

    def check(directory: Path) -> None:
        found = {path.relative_to(directory).as_posix() for path in directory.glob("*/**/*") if not path.is_dir()}
        if found != _picture_files(class_counts(num_images)):  # one more would be taken for a picture
            raise StoreDamagedError(f"The phantoms in {directory} are incomplete, or others lie among them.")

    return cache.entry(
        "phantoms", key, build=lambda directory: write_phantoms(directory, seed=seed, num_images=num_images), check=check
    )


def _picture_files(counts: Mapping[str, int]) -> set[str]:
    return {
        f"{name}/{folder}/{name}-{number}.png"
        for name, count in counts.items()
        for folder in ("images", "masks")
        for number in range(1, count + 1)
    }


def class_counts(num_images: int) -> dict[str, int]:
    """Share pictures out to the classes, moderately unevenly.

    Args:
        num_images: Pictures altogether, at least 12.

    Returns:
        Pictures by class, in alphabetical order.

    Raises:
        InputError: There are fewer than 3 for a class.
    """
    total = sum(_SHARES.values())
    counts = {name: num_images * share // total for name, share in _SHARES.items()}
    counts["Normal"] += num_images - sum(counts.values())
    if min(counts.values()) < 3:
        raise InputError(f"{num_images} phantoms are too few: every class needs 3. Ask for at least 16.")
    return counts


def write_phantoms(directory: Path, *, seed: int, num_images: int = DEFAULT_NUM_IMAGES) -> None:
    """Draw phantoms into a folder in the Kaggle layout, with a file that says that they are synthetic.

    Args:
        directory: The folder; made when missing.
        seed: Decides every picture.
        num_images: Pictures of all classes together.

    Raises:
        InputError: There are too few pictures for the classes, or the folder holds something.
    """
    counts = class_counts(num_images)
    _make_folders(directory, counts)
    write_text_whole(directory / SYNTHETIC_MARK, _MARK_TEXT)
    pictures = [(name, number) for name, count in counts.items() for number in range(1, count + 1)]
    with Threads(num_workers()) as threads:
        for _ in threads.map(lambda picture: _write_picture(directory, *picture, seed=seed), pictures):
            pass


def _make_folders(directory: Path, counts: Mapping[str, int]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise InputError(f"{directory} is not empty. Give a new folder for the phantoms.")
        for name in counts:
            (directory / name / "images").mkdir(parents=True)
            (directory / name / "masks").mkdir()
    except OSError as error:
        raise InputError(f"{directory} cannot be written: {error.strerror}. Give another folder.") from error


def _write_picture(directory: Path, class_name: str, number: int, *, seed: int) -> None:
    pixels, mask = draw_phantom(class_name, seed=derive_seed(seed, "phantom", class_name, number))
    name = f"{class_name}-{number}.png"
    Image.fromarray(pixels).save(directory / class_name / "images" / name, compress_level=1)
    mask_image = Image.fromarray(mask).resize((MASK_PIXELS, MASK_PIXELS), Image.Resampling.NEAREST)
    mask_image.convert("RGB").save(directory / class_name / "masks" / name, compress_level=1)


def draw_phantom(class_name: str, *, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw one synthetic radiograph.

    Args:
        class_name: A key of `FINDINGS`.
        seed: Decides the picture.

    Returns:
        The picture and its lung mask (0 or 255), both 299 x 299.
    """
    rng = np.random.default_rng(seed)
    chest = draw_chest(rng)
    density = chest.density + draw_severity(rng) * FINDINGS[class_name](rng, chest) * chest.lungs
    density += _things_worn(rng, chest)
    pixels = _exposed(rng, density)
    mask = np.where(_enlarged(chest.lungs) > 0.5, 255, 0).astype(np.uint8)
    return pixels, mask


def _enlarged(values: Map) -> Map:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((IMAGE_PIXELS, IMAGE_PIXELS), Image.Resampling.BICUBIC))


def _things_worn(rng: np.random.Generator, chest: Chest) -> Map:
    """Draw what any patient may carry, sick or not: a lead, a side marker, chance shadows."""
    things = 0.010 * smooth_noise(rng, 5) * chest.lungs
    if rng.uniform() < 0.10:
        line = chest.across - rng.uniform(-0.6, 0.6) - 0.2 * np.sin(2 * chest.down + rng.uniform(0, 6))
        things = things + rng.uniform(0.06, 0.16) * np.exp(-((line / 0.010) ** 2))
    if rng.uniform() < 0.4:
        corner = np.maximum(
            np.abs(chest.across - (0.85 if rng.uniform() < 0.5 else -0.85)) / 0.035, np.abs(chest.down + 0.85) / 0.05
        )
        things = things + np.float32(0.35) * (np.abs(corner - 0.8) < 0.2)
    return things


def _exposed(rng: np.random.Generator, density: Map) -> npt.NDArray[np.uint8]:
    """Expose and develop: grain, blur of the screen, black and white points and contrast that differ from film to film."""
    low, high = (float(value) for value in np.percentile(density[::2, ::2], (1, 99)))
    tone = _enlarged(np.clip((density - low) / (high - low), 0, 1.1) ** rng.uniform(0.82, 1.24))
    black, white = rng.uniform(0, 40), rng.uniform(185, 250)
    grain = rng.standard_normal((IMAGE_PIXELS, IMAGE_PIXELS + 1), dtype=np.float32)
    grain = (grain[:, 1:] + grain[:, :-1]) * (rng.uniform(0.006, 0.020) * (white - black))
    pixels: npt.NDArray[np.uint8] = np.clip(black + (white - black) * tone + grain, 0, 255).astype(np.uint8)
    return pixels
