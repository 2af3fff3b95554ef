"""Why a file found in an image folder is no image of the data; and what is no reason for that, and ends the reading."""

from enum import StrEnum
from typing import Self

from tune_lung.errors import InputError


class NotReadError(InputError):
    """A file could not be read, or memory ran out meanwhile: that says nothing of its content, and no file is left out for it."""

    def __init__(self, cause: str) -> None:
        """Say what happened, without the name of the file."""
        super().__init__(
            f"A file of the data could not be read: {cause.rstrip('.')}. That says nothing of what is in it, so it is not left"
            " out, and nothing was kept. Mend it and start again; `python -m tune_lung.data scan DIR` names files that cannot be"
            " read."
        )
        self.cause = cause

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        """Say how it is made again by another process, such as the driver of a node's worker."""
        return type(self), (self.cause,)


class ChangedError(NotReadError):
    """A file is another one than a moment ago."""

    def __init__(self, cause: str = "it changed meanwhile") -> None:
        """Say so."""
        super().__init__(cause)


class ExclusionReason(StrEnum):
    """The fixed words of `excluded_reason` in the `images` table."""

    OTHER_FILE = "other_file"
    """Its name does not end like an image's: a text, a table."""
    FOLDER = "folder"
    """A folder whose name ends like an image's."""
    LINK_LOOP = "link_loop"
    """A link to a folder that is read already, or that holds the data folder itself."""
    OUTSIDE_LINK = "outside_link"
    """A link that leads out of the data folder."""
    BROKEN_LINK = "broken_link"
    """A link that leads nowhere."""
    NOT_A_FILE = "not_a_file"
    """A pipe, socket or device."""
    UNREADABLE = "unreadable"
    """The system refuses to read it."""
    BAD_NAME = "bad_name"
    """Its name is not UTF-8, or has control characters."""
    EMPTY = "empty"
    """It has no bytes."""
    NOT_AN_IMAGE = "not_an_image"
    """Its bytes are no image, whatever its name says."""
    TRUNCATED = "truncated"
    """An image whose end is missing."""
    DAMAGED = "damaged"
    """An image that cannot be decoded for another reason."""
    TOO_LARGE = "too_large"
    """It has more pixels, or bytes, than a radiograph can have."""
    TOO_COSTLY = "too_costly"
    """To decode it takes more time or memory than any radiograph does."""
    UNSUPPORTED_PIXELS = "unsupported_pixels"
    """Numbers without a known range: floats, or integers below zero."""
    LIMIT = "limit"
    """A good file left aside by `--limit`."""

    @property
    def is_bad(self) -> bool:
        """Whether the file should have been an image and is not: what `--strict-data` stops at."""
        return self not in (ExclusionReason.OTHER_FILE, ExclusionReason.LIMIT)
