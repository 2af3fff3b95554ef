"""Near-duplicate images: fingerprints that survive re-encoding and resizing, and groups that must stay on one side of a split.

N is the number of images, H and W the 32 pixels of a thumbnail's side, P the number of pairs.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

THUMBNAIL_SIZE = 32
_HASH_SIZE = 8
_REDUCING_GAP = 2.0
"""Images are first averaged down to at least this many times the thumbnail's size: a fifth of the time, and near the same."""
_ROWS_AT_ONCE = 256
_DISTANCES_AT_ONCE = 2**24
_PAIRS_AT_ONCE = 16_384
MOST_PAIRS = 2**24
"""Pairs that are kept, the closest: of 20,000 images that are all alike there are 12 times as many."""

MAX_HASH_DISTANCE = 10
"""Bits of 64 in which the hashes of near-duplicates may differ."""
MIN_CORRELATION = 0.98
"""Least pixel correlation of near-duplicates. On 1,348 real radiographs the pairs under it end at 0.969 (two children
of one hospital), those above begin at 0.992 (one film saved twice)."""
MAX_CHAIN_SHARE = 0.02
"""Largest share of a class that pairs may chain together; a longer chain says that its images are alike, not copies."""


def thumbnail(image: Image.Image) -> npt.NDArray[np.uint8 | np.float32]:
    """Shrink a grey image, mode L or F, to the 32 x 32 pixels that duplicates are found by, whatever size the trials use."""
    size = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP))


def perceptual_hashes(thumbnails_NHW: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Hash thumbnails by the signs of their 64 lowest frequencies; one bit each, as `imagehash.phash` sets them.

    Args:
        thumbnails_NHW: What `thumbnail` returns, stacked.

    Returns:
        One 64-bit hash an image.

    References:
        Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1.
    """
    rows = np.arange(_HASH_SIZE)[:, None]
    columns = np.arange(THUMBNAIL_SIZE)[None, :]
    cosines = np.cos(np.pi * rows * (2 * columns + 1) / (2 * THUMBNAIL_SIZE))
    frequencies_NK = (cosines @ thumbnails_NHW.astype(np.float64) @ cosines.T).reshape(len(thumbnails_NHW), _HASH_SIZE**2)
    bits_NK = frequencies_NK > np.median(frequencies_NK, axis=1, keepdims=True)
    return np.packbits(bits_NK, axis=1).view(np.uint64)[:, 0]


def near_duplicate_pairs(thumbnails_NHW: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Find the pairs of images that show the same film.

    Args:
        thumbnails_NHW: What `thumbnail` returns, stacked.

    Returns:
        The pairs as (P, 2) indices, first under second, and their pixel correlations (P,), from the closest pair on; the
        closest `MOST_PAIRS` of them.
    """
    if len(thumbnails_NHW) < 2:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    pixels, is_flat = _normalized(thumbnails_NHW)
    pairs, correlations = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    num_pairs = 0
    for some in _pairs_by_hash(perceptual_hashes(thumbnails_NHW)):
        of_some = _correlations(pixels, is_flat, some)
        near = of_some >= MIN_CORRELATION
        pairs.append(some[near])
        correlations.append(of_some[near])
        num_pairs += len(pairs[-1])
        if num_pairs > 2 * MOST_PAIRS:
            kept = _closest(np.concatenate(pairs), np.concatenate(correlations))
            pairs, correlations, num_pairs = [kept[0]], [kept[1]], MOST_PAIRS
    return _closest(np.concatenate(pairs), np.concatenate(correlations))


def _closest(
    pairs: npt.NDArray[np.int64], correlations: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    order = np.argsort(-correlations, kind="stable")[:MOST_PAIRS]
    return pairs[order], correlations[order]


def _pairs_by_hash(hashes_N: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the pairs whose hashes are near, in the order of their indices."""
    num_rows = max(1, min(_ROWS_AT_ONCE, _DISTANCES_AT_ONCE // len(hashes_N)))
    for start in range(0, len(hashes_N), num_rows):
        block = hashes_N[start : start + num_rows]
        distances = np.bitwise_count(block[:, None] ^ hashes_N[None, start:])
        first, second = np.nonzero(distances <= MAX_HASH_DISTANCE)
        later = second > first
        yield np.stack([first[later], second[later]], axis=1) + start


def _normalized(thumbnails_NHW: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Bring images to mean 0 and length 1, and say which have one grey level and cannot be."""
    pixels = thumbnails_NHW.reshape(len(thumbnails_NHW), -1).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(pixels, axis=1, keepdims=True)
    pixels /= np.where(norms > 0, norms, 1)
    return pixels, norms[:, 0] == 0


def _correlations(
    pixels: npt.NDArray[np.float32], is_flat: npt.NDArray[np.bool_], pairs: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Correlate the images of pairs; one of one grey level correlates with nothing but another such image."""
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        first, second = pairs[start : start + _PAIRS_AT_ONCE].T
        products = np.einsum("pk,pk->p", pixels[first], pixels[second])
        parts.append(np.where(is_flat[first] & is_flat[second], np.float32(1), products))
    return np.concatenate(parts)


def duplicate_groups(
    thumbnails_NHW: npt.NDArray[np.uint8], *, classes: Sequence[str], sha256s: Sequence[str]
) -> npt.NDArray[np.int64]:
    """Join images that must not be torn apart by a split.

    Files of equal bytes are always joined. Near-duplicates are joined from the closest pair on, as long as the
    chain stays within 2% of each class it touches, or is a pair.

    Args:
        thumbnails_NHW: What `thumbnail` returns, stacked.
        classes: The class of each image.
        sha256s: The digest of each image's file.

    Returns:
        For each image the index of the first image of its group: its own where it stands alone.
    """
    groups = _Groups(classes)
    first_of: dict[str, int] = {}
    for index, sha256 in enumerate(sha256s):
        groups.join(first_of.setdefault(sha256, index), index)
    for first, second in near_duplicate_pairs(thumbnails_NHW)[0].tolist():
        if groups.chain_fits(first, second):
            groups.join(first, second)
    return np.array([groups.first(index) for index in range(len(classes))], np.int64)


class _Groups:
    """Disjoint sets of images, each known by its smallest index."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.parents = list(range(len(classes)))
        self.members = [[index] for index in range(len(classes))]
        self.classes = classes
        self.limits = {name: max(2, int(MAX_CHAIN_SHARE * count)) for name, count in Counter(classes).items()}

    def first(self, index: int) -> int:
        while self.parents[index] != index:
            self.parents[index] = self.parents[self.parents[index]]
            index = self.parents[index]
        return index

    def chain_fits(self, one: int, other: int) -> bool:
        if self.first(one) == self.first(other):
            return True
        members = self.members[self.first(one)] + self.members[self.first(other)]
        return len(members) <= min(self.limits[self.classes[member]] for member in members)

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.first(one), self.first(other)))
        if low != high:
            self.parents[high] = low
            self.members[low] += self.members[high]
