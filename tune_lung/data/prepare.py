"""From an image folder to an opened pixel store: what every command that needs images calls."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from PIL import __version__ as pillow_version

from tune_lung.config import RunConfig, Split
from tune_lung.data.cache import Cache, content_key, num_workers
from tune_lung.data.decode import BadImageError, squash, squash_mask, without_pillow_warnings
from tune_lung.data.depth import Depth, Whites, count_whites, whites_of
from tune_lung.data.duplicates import duplicate_groups, thumbnail
from tune_lung.data.exclusion import ChangedError, ExclusionReason, NotReadError
from tune_lung.data.metadata import metadata_file, sources_by_path, tables_of
from tune_lung.data.reading import GreyReader, memory_needed
from tune_lung.data.scan import EVERY_IMAGE, ImageChoice, ImageFile, Scan, scan
from tune_lung.data.split import check_enough, limited, published_split, strict_split
from tune_lung.data.store import STORE_VERSION, DecodedImages, PixelStore, StoreDamagedError, write_store
from tune_lung.errors import InputError
from tune_lung.results.parts import read_parts
from tune_lung.results.pixel_facts import PixelFacts
from tune_lung.threads import Threads

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told the stage, how many files are done, and how many there are."""

IMAGES_COLUMNS = ("image_id", "path", "class", "split", "group", "source", "sha256", "excluded_reason")
_IMAGES_FILE = "images.parquet"
_DAMAGED = "A pixel store's table of images is damaged. Start the search again: it is rebuilt."
_DECODED_FOLDER = "decoded"
_WRITE_BUFFER_BYTES = 4 * 2**20


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A data folder, ready for training."""

    store: Path
    """Folder of the pixel store."""
    fingerprint: str
    """Digest of pixels, masks, labels and split."""
    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    images: pd.DataFrame
    """The ledger's `images` table: one row per file found, those left out too, with null split."""
    synthetic: bool
    """Whether the images are phantoms."""
    pixels: PixelFacts | None = None
    """What a new image is brought to the form of these by."""


def prepare(
    root: Path,
    *,
    run: RunConfig,
    cache: Cache,
    choice: ImageChoice = EVERY_IMAGE,
    synthetic: bool = False,
    progress: Progress | None = None,
) -> PreparedData:
    """Scan a folder, and open its pixel store, built first where it is not in the cache.

    Args:
        root: The data folder, one folder per class.
        run: Image size, protocol (its split) and root seed.
        cache: Where the store and the files' digests lie.
        choice: Which files are used.
        synthetic: Whether the images are phantoms; a folder marked so counts as such anyway.
        progress: Told of each file done.

    Returns:
        The store and the table of images.

    Raises:
        InputError: The folder cannot be used, a class is too small, or `choice.strict_data` found a bad file.
        NotReadError: A file could not be read, or changed meanwhile; nothing is kept.
    """
    found = scan(root, follow_links=choice.follow_links)
    _require_readable(found)
    check_enough(Counter(image.class_name for image in found.images), "images")
    recipe = _Recipe(
        found=found,
        chosen=_chosen(found, limit=choice.limit, seed=run.seed),
        run=run,
        limit=choice.limit,
        synthetic=synthetic or found.synthetic,
        progress=progress or _silent,
    )
    memory = cache.digests(root)
    with memory_needed():
        digests = memory.of(recipe.files(), progress=lambda done, total: recipe.progress("Reading", done, total))
    key = content_key(recipe.key(digests))
    tables: list[pd.DataFrame] = []

    def check(directory: Path) -> None:
        PixelStore.open(directory)
        tables.append(_read_images(directory))

    def build(directory: Path) -> None:
        try:
            with memory_needed():
                tables.append(_build(recipe, digests, directory))
        except ChangedError:
            memory.forget()
            raise

    folder = cache.entry("stores", key, build=build, check=check)
    store, images = PixelStore.open(folder), tables[-1]
    if choice.strict_data:
        _refuse_bad_files(images["excluded_reason"])
    return PreparedData(
        store=folder,
        fingerprint=store.fingerprint,
        classes=store.classes,
        images=images,
        synthetic=store.synthetic,
        pixels=store.pixel_facts,
    )


def _read_images(folder: Path) -> pd.DataFrame:
    """Read a store's table of images.

    Raises:
        StoreDamagedError: It is not there, or no such table.
    """
    table, damaged = read_parts([folder / _IMAGES_FILE], pa.schema([(name, pa.large_string()) for name in IMAGES_COLUMNS]))
    images: pd.DataFrame = table.to_pandas()
    try:
        for reason in images["excluded_reason"].dropna().unique():
            ExclusionReason(reason)
    except ValueError as error:
        raise StoreDamagedError(_DAMAGED) from error
    if damaged:
        raise StoreDamagedError(_DAMAGED)
    return images


def image_id(relative: str) -> str:
    """Name an image by its path under the data folder: 16 hexadecimal digits."""
    return hashlib.sha256(relative.encode()).hexdigest()[:16]


def _silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def _chosen(found: Scan, *, limit: int | None, seed: int) -> tuple[ImageFile, ...]:
    if limit is None:
        return found.images
    classes = [image.class_name for image in found.images]
    return tuple(found.images[index] for index in limited(classes, limit=limit, seed=seed))


def _require_readable(found: Scan) -> None:
    """Refuse a folder of which the system hides a part now: it may show it the next time."""
    num_closed = sum(item.reason is ExclusionReason.UNREADABLE for item in found.excluded)
    if num_closed:
        raise NotReadError(f"the system does not let {num_closed} files or folders be looked at")


def _refuse_bad_files(reasons: "pd.Series[str]") -> None:
    bad = Counter(reason for reason in reasons.dropna() if ExclusionReason(reason).is_bad)
    if bad:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(bad.items()))
        raise InputError(
            f"--strict-data: {bad.total()} files cannot be used ({counts}). "
            "`python -m tune_lung.data scan DIR` names them; without --strict-data they are left out."
        )


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """Everything a store is made from."""

    found: Scan
    chosen: tuple[ImageFile, ...]
    run: RunConfig
    limit: int | None
    synthetic: bool
    progress: Progress

    def files(self) -> dict[str, Path]:
        """Name every file whose content plays a part: images, `mask:` and `metadata:` files."""
        images = {image.relative: image.path for image in self.chosen}
        masks = {f"mask:{image.relative}": image.mask for image in self.chosen if image.mask is not None}
        tables = {f"metadata:{name}": path for name in self.found.classes if (path := metadata_file(self.found.root, name))}
        return images | masks | tables

    def key(self, digests: Mapping[str, str | None]) -> dict[str, object]:
        """List what the store's content follows from; a folder's place in the file system is no part of it."""
        return {
            "version": STORE_VERSION,
            "pillow": pillow_version,
            "classes": self.found.classes,
            "found": [image.relative for image in self.found.images],
            "excluded": [(item.relative, item.reason) for item in self.found.excluded],
            "digests": digests,
            "image_size": self.run.image_size,
            "protocol": self.run.protocol,
            "seed": self.run.seed,
            "limit": self.limit,
            "synthetic": self.synthetic,
        }


@dataclass(frozen=True, kw_only=True)
class _Values:
    """A squashed image or mask, not scaled to 8 bits yet."""

    values_HW: npt.NDArray[np.uint8 | np.float32]
    depth: Depth | None


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """One file after decoding."""

    reason: ExclusionReason | None
    """Why it cannot be used; None for a good image, and only then there are pixels."""
    pixels: _Values | None = None
    thumbnail: _Values | None = None
    mask: _Values | None = None


def _decode(image: ImageFile, recipe: _Recipe, digests: Mapping[str, str | None], reader: GreyReader) -> _Decoded:
    """Decode an image and its mask, if they are what their digests say.

    Raises:
        NotReadError: One could not be read, or is another one by now.
    """
    run = recipe.run
    try:
        with reader.read(image.path) as grey:
            _require_digest(grey.sha256, digests[image.relative])
            width, height = grey.image.size
            pixels = _Values(values_HW=squash(grey.image, run.image_size), depth=grey.depth)
            small = _Values(values_HW=thumbnail(grey.image), depth=grey.depth)
    except BadImageError as error:
        _require_digest(error.sha256, digests[image.relative])
        return _Decoded(reason=error.reason)
    mask = None
    if image.mask is not None:
        mask = _decode_mask(image.mask, width, height, run, reader, digests[f"mask:{image.relative}"])
    return _Decoded(reason=None, pixels=pixels, thumbnail=small, mask=mask)


def _decode_mask(
    path: Path, image_width: int, image_height: int, run: RunConfig, reader: GreyReader, sha256: str | None
) -> _Values | None:
    """Read a mask; a bad one counts as none, and `input` lungs then says how many images have none."""
    try:
        with reader.read(path, beside_bytes=image_width * image_height) as mask:
            _require_digest(mask.sha256, sha256)
            values = squash_mask(
                mask.image, image_width=image_width, image_height=image_height, size=run.image_size, protocol=run.protocol
            )
            return _Values(values_HW=values, depth=mask.depth)
    except BadImageError as error:
        _require_digest(error.sha256, sha256)
        return None


def _require_digest(found: str | None, expected: str | None) -> None:
    if found != expected:
        raise ChangedError


def _decode_all(recipe: _Recipe, digests: Mapping[str, str | None]) -> Generator[tuple[ImageFile, _Decoded], None, None]:
    """Decode the chosen files in their order.

    Threads, for Pillow decodes without Python's lock (measured on 2 cores: 1.4 s for 1,348 images, 2.4 s one by one,
    1.6 s in processes), and threads are safe beside Ray.
    """
    with without_pillow_warnings(), Threads(num_workers()) as threads, GreyReader() as reader:
        decoded = threads.map(lambda image: _decode(image, recipe, digests, reader), recipe.chosen)
        for done, (image, one) in enumerate(zip(recipe.chosen, decoded, strict=True), start=1):
            recipe.progress("Decoding", done, len(recipe.chosen))
            yield image, one


def _build(recipe: _Recipe, digests: Mapping[str, str | None], directory: Path) -> pd.DataFrame:
    """Write a store and its table of images into an empty folder, and return the table."""
    reasons, images, thumbnails = _write_decoded(recipe, digests, directory)
    usable = [image for image in recipe.chosen if reasons[image.relative] is None]
    classes = [image.class_name for image in usable]
    groups = duplicate_groups(
        thumbnails, classes=classes, sha256s=[digests[image.relative] or image.relative for image in usable]
    )
    splits = _split(recipe.run, usable, groups.tolist())
    rows = {
        image.relative: {"split": split, "group": image_id(usable[group].relative)}
        for image, split, group in zip(usable, splits, groups.tolist(), strict=True)
    }
    table = _images_table(recipe, digests, reasons, rows)
    table.to_parquet(directory / _IMAGES_FILE, index=False)
    write_store(directory, images, splits=splits, classes=recipe.found.classes, synthetic=recipe.synthetic)
    shutil.rmtree(directory / _DECODED_FOLDER)
    return table


def _split(run: RunConfig, usable: Sequence[ImageFile], groups: Sequence[int]) -> list[Split]:
    classes = [image.class_name for image in usable]
    if run.protocol == "published":
        return published_split(classes, [image.relative for image in usable])
    return strict_split(classes, groups, seed=run.seed)


class _Rows:
    """Squashed images in a file, one after the other; those of more than 8 bits are scaled when the white of all is known."""

    def __init__(self, path: Path, size: int, owned: ExitStack) -> None:
        """Make the files; who gives `owned` closes them."""
        self._path, self._size, self._next = path, size, 0
        self._file = owned.enter_context(path.open("wb", _WRITE_BUFFER_BYTES))
        self._deep_file = owned.enter_context(path.with_name(f"deep_{path.name}").open("w+b", _WRITE_BUFFER_BYTES))
        self.depths: dict[int, Depth | None] = {}

    def put(self, row: int, values: _Values) -> None:
        """Write an image; what lies between two are zeros that take no room."""
        self.depths[row] = values.depth
        if values.depth is None:
            self._write(row, values.values_HW)
        else:
            self._deep_file.write(values.values_HW.tobytes())

    def finish(self, num_rows: int) -> tuple[npt.NDArray[np.uint8], Whites]:
        """Scale what waits for it, and map all rows, (num_rows, size, size)."""
        whites = whites_of(self.depths.values())
        self._deep_file.seek(0)
        for row, depth in self.depths.items():
            if depth is not None:
                values = np.frombuffer(self._deep_file.read(self._size**2 * np.dtype(np.float32).itemsize), np.float32)
                self._write(row, whites.to_8_bits(values, depth))
        self._file.truncate(num_rows * self._size**2)
        return np.memmap(self._path, np.uint8, "r", shape=(num_rows, self._size, self._size)), whites

    def _write(self, row: int, values: npt.NDArray[np.generic]) -> None:
        if row != self._next:
            self._file.seek(row * self._size**2)
        self._file.write(values.tobytes())
        self._next = row + 1


def _write_decoded(
    recipe: _Recipe, digests: Mapping[str, str | None], directory: Path
) -> tuple[dict[str, ExclusionReason | None], DecodedImages, npt.NDArray[np.uint8]]:
    """Decode every chosen file once, into files of all pixels and all masks in the order of the files."""
    size = recipe.run.image_size
    decoded_folder = directory / _DECODED_FOLDER
    decoded_folder.mkdir()
    reasons: dict[str, ExclusionReason | None] = {}
    label_of = {name: label for label, name in enumerate(recipe.found.classes)}
    thumbnails, labels, has_mask = [], [], []
    ids: list[str] = []
    with ExitStack() as owned:
        pixels = _Rows(decoded_folder / "pixels", size, owned)
        masks = _Rows(decoded_folder / "masks", size, owned)
        # Ctrl-C ends the threads at once, not when the generator is forgotten
        for image, decoded in owned.enter_context(closing(_decode_all(recipe, digests))):
            reasons[image.relative] = decoded.reason
            if decoded.pixels is None or decoded.thumbnail is None:
                continue
            pixels.put(len(ids), decoded.pixels)
            if decoded.mask is not None:
                masks.put(len(ids), decoded.mask)
            thumbnails.append(decoded.thumbnail)
            labels.append(label_of[image.class_name])
            has_mask.append(decoded.mask is not None)
            ids.append(image_id(image.relative))
        counts = Counter(labels)
        check_enough({name: counts[label] for name, label in label_of.items()}, "usable images")
        pixels_MHW, whites = pixels.finish(len(ids))
        masks_MHW, mask_whites = masks.finish(len(ids))
    depths = list(pixels.depths.values())
    images = DecodedImages(
        pixels_MHW=pixels_MHW,
        masks_MHW=masks_MHW if any(has_mask) else None,
        has_mask_M=np.array(has_mask, np.bool_),
        labels_M=np.array(labels, np.int64),
        image_ids=ids,
        whites=count_whites(whites, depths),
        mask_whites=count_whites(mask_whites, list(masks.depths.values())),
        num_far_below_white=sum(map(whites.is_far_below, depths)),
        settled_whites=whites,
        settled_mask_whites=mask_whites,
    )
    small = [whites.to_8_bits(one.values_HW, one.depth) for one in thumbnails]
    return reasons, images, np.array(small, np.uint8)


def _images_table(
    recipe: _Recipe,
    digests: Mapping[str, str | None],
    reasons: Mapping[str, ExclusionReason | None],
    rows: Mapping[str, Mapping[str, str]],
) -> pd.DataFrame:
    tables = tables_of(recipe.found)
    for name, table in tables.items():
        if table.sha256 is not None:
            _require_digest(table.sha256, digests.get(f"metadata:{name}"))
    sources = sources_by_path(recipe.found, tables)
    found = [
        (image.relative, image.class_name, reasons.get(image.relative, ExclusionReason.LIMIT)) for image in recipe.found.images
    ]
    found += [(item.relative, item.class_name, item.reason) for item in recipe.found.excluded]
    records = [
        {
            "image_id": image_id(relative),
            "path": relative,
            "class": class_name,
            "source": sources.get(relative),
            "sha256": digests.get(relative),
            "excluded_reason": None if reason is None else reason.value,
            **rows.get(relative, {}),
        }
        for relative, class_name, reason in sorted(found, key=lambda row: row[0])
    ]
    return pd.DataFrame(records, columns=list(IMAGES_COLUMNS), dtype="str")
