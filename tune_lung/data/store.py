"""The pixel store: every image decoded once, memory-mapped by all trials of a node, the test images apart.

A store is a folder. `store.json` describes it; for each part there are `<part>.npy` (pixels), `<part>_masks.npy` (where the
data has masks at all) and `<part>_index.npz` (labels, image ids, which images have a mask). N counts a part's images.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias
from zipfile import ZIP_STORED, BadZipFile

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from tune_lung.config import Split
from tune_lung.data.cache_content import ProvenFiles, proven_files
from tune_lung.data.depth import WHITE_OF_8_BITS, WHITES_OF_8_BITS, Whites
from tune_lung.errors import InputError, is_of_the_system
from tune_lung.files import DamagedFileError, check_regular_file, plain_json, read_regular_file, write_text_whole
from tune_lung.results.pixel_facts import PixelFacts, WhiteFacts
from tune_lung.shapes import Count, ListOf, Number, Text, require_shape

STORE_VERSION = 4
"""Raised whenever the same images would be stored differently: decoding, resizing, grouping, splitting, layout."""
_DESCRIPTION = "store.json"
_MOST_DESCRIPTION_BYTES = 16 * 2**20
_ROWS_AT_ONCE = 256

OpenPart: TypeAlias = Literal["train", "validation"]


class StoreDamagedError(InputError):
    """A pixel store that is missing, not what was built, changed while it was read, or of another version."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Images in the form that whatever learns sees them in."""

    pixels_NHW: npt.NDArray[np.uint8]
    """Grey values; memory-mapped where they come from a store."""
    masks_NHW: npt.NDArray[np.uint8] | None
    """Lung masks 0 to 255; zeros where an image has none; None where there are no masks."""


@dataclass(frozen=True, kw_only=True)
class Part(Pixels):
    """The images of one side of the split."""

    has_mask_N: npt.NDArray[np.bool_]
    """Which images have a mask."""
    labels_N: npt.NDArray[np.int64]
    """Indices into the store's classes."""
    image_ids: tuple[str, ...]
    """The `image_id` of the ledger's `images` table."""


class _StoreShape(TypedDict):
    """What `store.json` says."""

    version: int
    files: dict[str, int]
    classes: ListOf[str]
    image_size: Annotated[int, Field(ge=1, le=10_000)]
    fingerprint: Text
    synthetic: bool
    train_mean: Number
    train_deviation: Number
    num_images: dict[Split, Count]
    num_masks: dict[Split, Count]
    whites: dict[str, Count]
    mask_whites: dict[str, Count]
    settled_whites: WhiteFacts
    settled_mask_whites: WhiteFacts
    num_far_below_white: Count


_SHAPE = TypeAdapter(_StoreShape)


@dataclass(frozen=True, kw_only=True)
class PixelStore:
    """An opened store."""

    directory: Path
    """Where it lies."""
    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    image_size: int
    """Side of the square images in pixels."""
    fingerprint: str
    """Digest of pixels, masks, labels and split, 64 hexadecimal digits."""
    synthetic: bool
    """Whether the images are phantoms."""
    train_mean: float
    """Mean of the training pixels / 255, before any masking."""
    train_deviation: float
    """Standard deviation of the same."""
    num_images: Mapping[Split, int]
    """Images of each part."""
    num_masks: Mapping[Split, int]
    """Images of each part that have a mask."""
    whites: Mapping[str, int]
    """Images by the number, in their files, that has become 255; that is 255 itself for images of 8 bits."""
    mask_whites: Mapping[str, int]
    """The same of masks."""
    settled_whites: WhiteFacts
    """What is white in an image, by what its file says."""
    settled_mask_whites: WhiteFacts
    """The same of masks."""
    num_far_below_white: int
    """Images that use so little of their scale that they are near one shade: the data mix depths."""
    files: ProvenFiles
    """What lay in its folder when it was opened."""

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a store, checking that its files are what was built.

        Args:
            directory: The store's folder, an entry of the cache.

        Returns:
            The store; pixels are mapped when a part is asked for.

        Raises:
            StoreDamagedError: A file is not there or not what was built, or the store is another version's.
            OSError: The system does not give one of them now.
        """
        files = proven_files(directory)
        path = directory / _DESCRIPTION
        if files is None:
            raise StoreDamagedError(_damaged_text(directory))
        try:
            content = plain_json(read_regular_file(path, most_bytes=_MOST_DESCRIPTION_BYTES), name=path.name)
            described = require_shape(_SHAPE, content)
            sizes = {name: (directory / name).stat().st_size for name in described["files"]}
        except (OSError, ValueError) as error:
            if is_of_the_system(error):
                raise
            raise StoreDamagedError(_damaged_text(directory)) from error
        if described["version"] != STORE_VERSION or sizes != described["files"] or not files.are_unchanged([_DESCRIPTION]):
            raise StoreDamagedError(_damaged_text(directory))
        return cls(directory=directory, classes=tuple(described["classes"]), files=files, **_fields(described))

    @property
    def pixel_facts(self) -> PixelFacts:
        """What a new image is brought to the form of these by."""
        return PixelFacts(
            train_mean=self.train_mean,
            train_deviation=self.train_deviation,
            whites=self.settled_whites,
            mask_whites=self.settled_mask_whites,
        )

    def part(self, name: OpenPart) -> Part:
        """Map the images for training or validation; whoever has read them asks `check` whether they were right.

        Raises:
            StoreDamagedError: They are not those that were built.
            ValueError: The name is another one; the test images are sealed.
        """
        if name not in ("train", "validation"):
            raise ValueError(f"part must be 'train' or 'validation', not {name!r}")
        return self._read(name)

    def open_test(self) -> Part:
        """Map the sealed test images: for evaluation alone, after the search."""
        return self._read("test")

    def check(self, *names: Split) -> None:
        """See that all that was read of some parts since the store was opened was right.

        Raises:
            StoreDamagedError: A file of theirs has changed since then, or is gone.
        """
        if not self.files.are_unchanged([file for name in names for file in _files_of(name)]):
            raise StoreDamagedError(f"The pixel store {self.directory} changed while it was read.")

    def _read(self, name: Split) -> Part:
        self.check(name)
        masks = self.directory / f"{name}_masks.npy"
        try:
            with _opened_index(self.directory / f"{name}_index.npz") as index:
                part = Part(
                    pixels_NHW=_mapped(self.directory / f"{name}.npy"),
                    masks_NHW=_mapped(masks) if masks.exists() else None,
                    has_mask_N=index["has_mask"],
                    labels_N=index["labels"],
                    image_ids=tuple(index["image_ids"].tolist()),
                )
        except (OSError, ValueError, KeyError, EOFError, MemoryError, BadZipFile) as error:
            if is_of_the_system(error):
                raise
            raise StoreDamagedError(_damaged_text(self.directory)) from error
        self.check(name)
        return part


def _files_of(name: Split) -> tuple[str, str, str]:
    """Name the files of one part; the masks' may not be there."""
    return f"{name}.npy", f"{name}_masks.npy", f"{name}_index.npz"


def _opened_index(path: Path) -> Any:
    """Open an archive of arrays as they are: packed ones, which may unpack to any size, are none of ours."""
    check_regular_file(path)
    index = np.load(path, allow_pickle=False)
    if any(member.compress_type != ZIP_STORED for member in index.zip.infolist()):
        index.close()
        raise DamagedFileError(f"{path.name} is packed.")
    return index


def _mapped(path: Path) -> npt.NDArray[np.uint8]:
    """Map an array so that no change reaches the file; torch takes no memory that it may not write."""
    check_regular_file(path)
    values: npt.NDArray[np.uint8] = np.load(path, mmap_mode="c", allow_pickle=False)
    return values


def _fields(described: "_StoreShape") -> dict[str, Any]:
    return {name: value for name, value in described.items() if name not in ("version", "files", "classes")}


def _damaged_text(directory: Path) -> str:
    return f"The pixel store {directory} is damaged or of another version. It is built again when the search goes on."


@dataclass(frozen=True, kw_only=True)
class DecodedImages:
    """All usable images in one file, before they are split. M counts them."""

    pixels_MHW: npt.NDArray[np.uint8]
    """Grey values."""
    masks_MHW: npt.NDArray[np.uint8] | None
    """Lung masks; None where no image has one."""
    has_mask_M: npt.NDArray[np.bool_]
    """Which images have a mask."""
    labels_M: npt.NDArray[np.int64]
    """Indices into the classes."""
    image_ids: Sequence[str]
    """Their ids."""
    whites: Mapping[int, int]
    """Images by the stored number that has become 255."""
    mask_whites: Mapping[int, int]
    """The same of masks."""
    num_far_below_white: int
    """Images that use so little of their scale that they are near one shade."""
    settled_whites: Whites = WHITES_OF_8_BITS
    """What `whites` were counted by."""
    settled_mask_whites: Whites = WHITES_OF_8_BITS
    """What `mask_whites` were counted by."""


def write_store(
    directory: Path, images: DecodedImages, *, splits: Sequence[Split], classes: Sequence[str], synthetic: bool
) -> None:
    """Write a store's files, the test images into their own.

    Args:
        directory: A folder that the caller makes appear whole; files that lie in it already are part of the store.
        images: The decoded images.
        splits: The part of each image.
        classes: Class names; a label is an index into them.
        synthetic: Whether the images are phantoms.
    """
    image_size = images.pixels_MHW.shape[1]
    digest = hashlib.sha256(json.dumps([list(classes), image_size]).encode())
    if {*images.whites, *images.mask_whites} - {WHITE_OF_8_BITS}:  # what it was before there were others, where there are none
        digest.update(json.dumps([images.whites, images.mask_whites], sort_keys=True).encode())
    num_images: dict[str, int] = {}
    num_masks: dict[str, int] = {}
    for name in ("train", "validation", "test"):
        rows = np.flatnonzero(np.array(splits) == name)
        digest.update(f"{name} {len(rows)}".encode())
        pixels = directory / f"{name}.npy"
        _write_pixels(pixels, images.pixels_MHW, rows, digest)
        if name == "train":
            counts = _histogram(np.load(pixels, mmap_mode="r", allow_pickle=False))
        if images.masks_MHW is not None:
            _write_pixels(directory / f"{name}_masks.npy", images.masks_MHW, rows, digest)
        _write_index(directory / f"{name}_index.npz", images, rows, digest)
        num_images[name] = len(rows)
        num_masks[name] = int(images.has_mask_M[rows].sum())
    mean, deviation = _moments(counts)
    description = {
        "version": STORE_VERSION,
        "files": {path.name: path.stat().st_size for path in sorted(directory.iterdir()) if path.is_file()},
        "classes": list(classes),
        "image_size": image_size,
        "fingerprint": digest.hexdigest(),
        "synthetic": synthetic,
        "train_mean": mean,
        "train_deviation": deviation,
        "num_images": num_images,
        "num_masks": num_masks,
        "whites": images.whites,
        "mask_whites": images.mask_whites,
        "settled_whites": images.settled_whites.facts(),
        "settled_mask_whites": images.settled_mask_whites.facts(),
        "num_far_below_white": images.num_far_below_white,
    }
    write_text_whole(directory / _DESCRIPTION, json.dumps(description, indent=1), lasts=False)  # a store can be built again


def _write_pixels(path: Path, values_MHW: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], digest: "hashlib._Hash") -> None:
    """Write some rows as an .npy file, and add them to the digest.

    Plain writes, not a memory map: a full disk is then an error, not a dead process.
    """
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *values_MHW.shape[1:])}
        np.lib.format.write_array_header_2_0(file, header)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            chunk = values_MHW[rows[start : start + _ROWS_AT_ONCE]]
            file.write(chunk.data)
            digest.update(chunk.data)


def _histogram(pixels_NHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Count the grey values of images."""
    counts = np.zeros(256, np.int64)
    for start in range(0, len(pixels_NHW), _ROWS_AT_ONCE):
        counts += np.bincount(pixels_NHW[start : start + _ROWS_AT_ONCE].ravel(), minlength=256)
    return counts


def _write_index(path: Path, images: DecodedImages, rows: npt.NDArray[np.int64], digest: "hashlib._Hash") -> None:
    labels, has_mask = images.labels_M[rows], images.has_mask_M[rows]
    digest.update(labels.tobytes())
    digest.update(has_mask.tobytes())
    np.savez(path, labels=labels, has_mask=has_mask, image_ids=np.array([images.image_ids[row] for row in rows], dtype="U16"))


def _moments(counts: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Compute mean and deviation of pixel / 255 from a histogram: exact, and independent of the order of images."""
    values = np.arange(256) / 255
    mean = float((counts * values).sum() / counts.sum())
    return mean, float(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))
