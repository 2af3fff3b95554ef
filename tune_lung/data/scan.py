"""Find the images, masks and classes of a folder by names alone; no file is opened here.

A class is a folder directly under the root. Its images lie in it (`CLASS/*.png`), in `CLASS/images/` as in the Kaggle
release, or deeper. Folders named `masks` hold lung masks under the names of the images; what starts with a dot is passed over.
"""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tune_lung.data.exclusion import ExclusionReason
from tune_lung.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm"})
SYNTHETIC_MARK = "SYNTHETIC.txt"
"""A file of this name in the root says that the images are phantoms, not radiographs of people."""
_NO_CLASSES = frozenset({"masks", "lost+found"})
"""Folders in the root that are no classes; the second is the file system's own, and closed."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MOST_LEVELS_TOO_HIGH = 3
_SPLIT_NAMES = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})


@dataclass(frozen=True, kw_only=True)
class ImageChoice:
    """Which files of a folder are used."""

    limit: int | None = None
    """Images kept at most, drawn class by class; None keeps all."""
    strict_data: bool = False
    """Stop at the first file that cannot be used, instead of leaving it out."""
    follow_links: bool = False
    """Follow links that lead out of the folder."""


EVERY_IMAGE = ImageChoice()
"""All that can be used."""


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """A file that is an image by its name."""

    path: Path
    """Where it lies."""
    relative: str
    """The same from the root on, with forward slashes."""
    class_name: str
    """Name of the folder directly under the root."""
    mask: Path | None
    """Its lung mask, if there is one."""


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """Something found in a class folder that is no image."""

    relative: str
    """Path from the root on, with forward slashes; bytes that are not UTF-8, and control characters, are replaced."""
    class_name: str
    """Name of the folder directly under the root."""
    reason: ExclusionReason
    """Why it is left out."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a data folder holds."""

    root: Path
    """The data folder."""
    classes: tuple[str, ...]
    """Names of the classes in alphabetical order: a label is an index into them."""
    images: tuple[ImageFile, ...]
    """The images, sorted by class and path."""
    excluded: tuple[Excluded, ...]
    """What lies among them and is left out, sorted by path."""
    synthetic: bool
    """Whether the folder is marked as made of phantoms."""


def scan(root: Path, *, follow_links: bool = False) -> Scan:
    """List the classes and images of a folder.

    Args:
        root: A folder with one folder per class.
        follow_links: Whether links that lead out of the folder are followed. A stranger's folder may lead to files that are
            none of its business; one's own may be made of links.

    Returns:
        What was found; whether a file can be decoded is not known yet.

    Raises:
        InputError: The folder does not exist, is no folder, is empty, or holds fewer than two classes.
    """
    walked = [_ClassWalk.of(folder, root, follow_links=follow_links) for folder in _class_folders(root)]
    walks = [walk for walk in walked if walk.images]
    num_outside = sum(item.reason is ExclusionReason.OUTSIDE_LINK for walk in walked for item in walk.excluded)
    _check_classes(root, [walk.class_name for walk in walks], num_outside=num_outside)
    return Scan(
        root=root,
        classes=tuple(walk.class_name for walk in walks),
        images=tuple(image for walk in walks for image in sorted(walk.with_masks(), key=lambda image: image.relative)),
        excluded=tuple(item for walk in walked for item in sorted(walk.excluded, key=lambda item: item.relative)),
        synthetic=(root / SYNTHETIC_MARK).is_file(),
    )


def _class_folders(root: Path) -> list[Path]:
    try:
        folders = [path for path in root.iterdir() if not path.name.startswith(".") and path.is_dir()]
    except FileNotFoundError:
        raise InputError(f"There is no folder {root}. Give the folder that holds one folder per class.") from None
    except NotADirectoryError:
        raise InputError(f"{root} is not a folder. Give the folder that holds one folder per class.") from None
    except OSError as error:
        raise InputError(f"{root} cannot be read: {error.strerror}.") from None
    if not all(_is_plain(path.name) for path in folders):
        raise InputError(
            f"{root} holds a folder whose name is not UTF-8 or has control characters. Rename it: class names are written into"
            " tables."
        )
    return sorted((path for path in folders if path.name.casefold() not in _NO_CLASSES), key=lambda path: path.name)


def _check_classes(root: Path, names: Sequence[str], *, num_outside: int) -> None:
    if num_outside and len(names) < 2:
        raise InputError(f"{root} is made of links that lead out of it ({num_outside}). If they are yours, use --follow-links.")
    if not names:
        raise InputError(f"{root} holds no images in folders. Give a folder with one folder of images per class.")
    if all(name.casefold() in _SPLIT_NAMES for name in names):
        raise InputError(
            f"{root} is already split ({', '.join(names)}). Give one folder per class; tune_lung splits by its own rules."
        )
    if len(names) == 1:
        inside = _folder_of_classes(root)
        hint = f" Did you mean {inside}?" if inside else ""
        raise InputError(f"{root} holds one class only ('{names[0]}'). Give a folder with at least two class folders.{hint}")


def _folder_of_classes(root: Path) -> Path | None:
    """Find the folder inside another that holds one folder per class, as where an archive's own folder was not named."""
    level = [root]
    for _ in range(_MOST_LEVELS_TOO_HIGH):
        level = [folder for parent in level for folder in _folders_in(parent)]
        for folder in level:
            classes = [inner for inner in _folders_in(folder) if _holds_images(inner) or _holds_images(inner / "images")]
            if len(classes) > 1:
                return folder
    return None


def _folders_in(folder: Path) -> list[Path]:
    """List the folders in a folder that may be those of classes, the first hundred."""
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []
    plain = (path for path in sorted(found) if path.name.casefold() not in ("images", "masks") and _is_plain(path.name))
    return list(islice(plain, 100))


def _holds_images(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(_has_image_name(entry.name) for entry in entries)
    except OSError:
        return False


def _is_plain(name: str) -> bool:
    """Whether a name is UTF-8, and leaves a terminal that shows it as it was."""
    return _CONTROL.search(name) is None and not any("\ud800" <= letter <= "\udfff" for letter in name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _no_file(entry: os.DirEntry[str]) -> ExclusionReason | None:
    """Tell why something is no file; None for one."""
    try:
        if entry.is_file():
            return None
    except OSError as error:
        return ExclusionReason.BROKEN_LINK if error.errno == errno.ELOOP else ExclusionReason.UNREADABLE
    return ExclusionReason.BROKEN_LINK if entry.is_symlink() else ExclusionReason.NOT_A_FILE


def _has_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 - 40,000 names: Path costs a second


@dataclass(kw_only=True)
class _ClassWalk:
    """The walk through one class folder."""

    root: Path
    class_name: str
    folder: Path
    follow_links: bool
    images: list[ImageFile] = field(default_factory=list)
    excluded: list[Excluded] = field(default_factory=list)
    mask_folders: dict[Path, Path] = field(default_factory=dict)
    """Folder of masks by the folder that it lies in."""
    seen_folders: set[tuple[int, int]] = field(default_factory=set)
    """Device and inode of every folder read, so that no link leads into it again."""

    @classmethod
    def of(cls, folder: Path, root: Path, *, follow_links: bool) -> "_ClassWalk":
        walk = cls(root=root.resolve(), class_name=folder.name, folder=folder, follow_links=follow_links)
        if folder.is_symlink() and walk.leads_outside(folder):
            walk.exclude(folder.name, ExclusionReason.OUTSIDE_LINK)
            return walk
        for known in (root, folder):
            status = known.stat()
            walk.seen_folders.add((status.st_dev, status.st_ino))
        walk.read_folders(folder)
        return walk

    def read_folders(self, folder: Path) -> None:
        """Read a folder and all in it, each before its next neighbour; folders may lie deeper than Python can call itself."""
        under_way = [self.read_folder(folder, folder.name)]
        while under_way:
            deeper = next(under_way[-1], None)
            if deeper is None:
                under_way.pop()
            else:
                under_way.append(self.read_folder(*deeper))

    def read_folder(self, folder: Path, relative: str) -> Iterator[tuple[Path, str]]:
        """Take what lies in a folder, and yield each folder in it that is to be read before the rest."""
        try:
            # Real folders come before links, so that a link to a sibling is the one that is left out.
            entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError:
            self.exclude(relative, ExclusionReason.UNREADABLE)
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not _is_plain(entry.name):
                self.exclude(f"{relative}/{entry.name}", ExclusionReason.BAD_NAME)
            elif entry.is_symlink() and self.leads_outside(Path(entry.path)):
                self.exclude(f"{relative}/{entry.name}", ExclusionReason.OUTSIDE_LINK)
            elif _is_folder(entry):
                if self.takes_folder(entry, folder, f"{relative}/{entry.name}"):
                    yield Path(entry.path), f"{relative}/{entry.name}"
            else:
                self.take_file(entry, f"{relative}/{entry.name}")

    def takes_folder(self, entry: os.DirEntry[str], parent: Path, relative: str) -> bool:
        """Whether a folder is to be read; one of masks is remembered, any other that is not is left out."""
        if entry.name.casefold() == "masks":
            self.mask_folders[parent] = Path(entry.path)
        elif _has_image_name(entry.name):
            self.exclude(relative, ExclusionReason.FOLDER)
        elif self.is_known(entry):
            self.exclude(relative, ExclusionReason.LINK_LOOP)
        else:
            return True
        return False

    def leads_outside(self, link: Path) -> bool:
        """Whether a link leads to something that is neither in the root nor holds it."""
        if self.follow_links:
            return False
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError):  # it leads nowhere, or to itself
            return False
        return not (target.is_relative_to(self.root) or self.root.is_relative_to(target))

    def is_known(self, entry: os.DirEntry[str]) -> bool:
        status = entry.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in self.seen_folders or (entry.is_symlink() and self.root.is_relative_to(Path(entry.path).resolve())):
            return True
        self.seen_folders.add(identity)
        return False

    def take_file(self, entry: os.DirEntry[str], relative: str) -> None:
        if not _has_image_name(entry.name):
            self.exclude(relative, ExclusionReason.OTHER_FILE)
        elif (reason := _no_file(entry)) is None:
            path = Path(entry.path)
            self.images.append(ImageFile(path=path, relative=relative, class_name=self.class_name, mask=None))
        else:
            self.exclude(relative, reason)

    def exclude(self, relative: str, reason: ExclusionReason) -> None:
        readable = _CONTROL.sub("\ufffd", os.fsencode(relative).decode("utf-8", "replace"))
        self.excluded.append(Excluded(relative=readable, class_name=self.class_name, reason=reason))

    def with_masks(self) -> list[ImageFile]:
        """Pair every image with the mask of its name, or of its name with another ending."""
        masks = {parent: self.masks_by_name(folder) for parent, folder in self.mask_folders.items()}
        return [self.with_mask(image, masks) for image in self.images] if masks else self.images

    def with_mask(self, image: ImageFile, masks: dict[Path, dict[str, Path]]) -> ImageFile:
        folder = image.path.parent
        own = masks.get(folder.parent if folder.name.casefold() == "images" else folder, {})
        mask = own.get(image.path.name, own.get(image.path.stem))
        return ImageFile(path=image.path, relative=image.relative, class_name=image.class_name, mask=mask)

    def masks_by_name(self, folder: Path) -> dict[str, Path]:
        """List the masks of a folder by name, with ending and without."""
        relative = f"{self.class_name}/{folder.relative_to(self.folder)}"
        files = []
        try:
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                reason = _no_file(entry) if _has_image_name(entry.name) else ExclusionReason.OTHER_FILE
                if reason is None:
                    files.append(Path(entry.path))
                elif reason is ExclusionReason.UNREADABLE:
                    self.exclude(f"{relative}/{entry.name}", reason)
        except OSError:
            self.exclude(relative, ExclusionReason.UNREADABLE)
        return {path.stem: path for path in files} | {path.name: path for path in files}
