"""Images in class folders or in one folder."""

import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from infogan_dist.console import progress
from infogan_dist.creation.problems import Problems
from infogan_dist.data.images import TAR_FORMATS, is_animated, read_image, size_options
from infogan_dist.data.shards import NO_LABEL
from infogan_dist.errors import DataError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = (*TAR_FORMATS, "GIF", "TIFF")
# Names of parts of a data set, in the order in which they are recommended as the folder of the classes.
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
CHUNK = 1000  # images that are given to the threads at once
MAX_THREADS = 8  # A photograph takes up to 700 MB while it is decoded.
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFolder:
    """Image files by number, sorted by path.

    Attributes:
        path: the folder.
        files: the image files.
        classes: label by name of a class folder; empty if there are no class folders.
        shape: (channels, height, width) to which images are fitted; None: all have the shape of `example`.
        background: colour under transparent pixels; None: transparency is ignored.
        example: name of a file and its (channels, height, width), which all must have; None: not checked.
    """

    path: Path
    files: list[Path]
    classes: dict[str, int]
    shape: tuple[int, int, int] | None
    background: str | None
    example: tuple[str, tuple[int, ...]] | None = None

    def read(self, i: int) -> tuple[np.ndarray, int]:
        """Return the i-th image, uint8 [C, H, W], and its label, -1 without classes. Raises `DataError`."""
        path = self.files[i]
        image = read_image(path, os.fspath(path), FORMATS, self.shape, self.background)
        self.require_shape(i, image.shape)
        return image, self.label(i)

    def label(self, i: int) -> int:
        """Return the label of the i-th image, -1 without classes."""
        return self.classes[self.files[i].relative_to(self.path).parts[0]] if self.classes else NO_LABEL

    def key(self, i: int) -> str:
        """Return the path of the i-th image within the folder."""
        return self.files[i].relative_to(self.path).as_posix()

    def require_shape(self, i: int, shape: tuple[int, ...]) -> None:
        """Raise `DataError` if the i-th image has another shape than the example."""
        if self.example is not None and shape != self.example[1]:
            name, required = self.example
            side = min(required[1:])
            raise DataError(
                f"{self.files[i]}: shape {list(shape)} (channels, height, width) instead of {list(required)} "
                f"as of {name}; fit them all with {size_options((required[0], side, side))}"
            )


def open_folder(
    path: Path, shape: tuple[int, int, int] | None, background: str | None, skip_broken: bool
) -> ImageFolder:
    """Return the images of a folder, each of which has been read once.

    Args:
        path: the folder, which contains class folders or images.
        shape: (channels, height, width) to which images are fitted; None: all must have the same shape.
        background: colour under transparent pixels; None: transparency is ignored.
        skip_broken: leave out images that cannot be read or have another shape, instead of refusing.

    Raises:
        DataError: there are no images, or some cannot be used.
    """
    files = _image_files(path)
    classes = sorted({p.relative_to(path).parts[0] for p in files if p.parent != path}, key=natural_key)
    if classes and any(p.parent == path for p in files):
        raise DataError(f"{path}: some images are in class folders and some are not; move these into one")
    _warn_of_splits(path, classes)
    labels = {name: i for i, name in enumerate(classes)}
    return _usable(ImageFolder(path, files, labels, shape, background), skip_broken)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return a key by which class 2 comes before class 10."""
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _image_files(path: Path) -> list[Path]:
    """Return the paths of all images, sorted. Raises `DataError`."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; check the path")
    files = sorted(_walk(path, frozenset()))
    if not files:
        raise DataError(f"{path}: no images in it; add files of type {', '.join(IMAGE_ENDINGS)}")
    return files


def _walk(folder: Path, parents: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Yield the images of a folder and its subfolders, also linked ones; hidden ones are left out."""
    try:
        status = folder.stat()
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
    identity = (status.st_dev, status.st_ino)
    if identity in parents:
        raise DataError(f"{folder}: a link to a folder that contains it; remove the link")
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        if entry.is_dir():
            yield from _walk(path, parents | {identity})
        # A link to nothing is reported when it is read.
        elif path.suffix.lower() in IMAGE_ENDINGS and (entry.is_file() or entry.is_symlink()):
            yield path


def _warn_of_splits(path: Path, classes: list[str]) -> None:
    if classes and all(name.lower() in SPLIT_NAMES for name in classes):
        first = min(classes, key=lambda name: SPLIT_NAMES.index(name.lower()))
        logger.warning(
            "%s: its subfolders %s become the classes; if they are parts of a data set, use --from %s",
            path,
            ", ".join(classes),
            path / first,
        )


def _usable(folder: ImageFolder, skip_broken: bool) -> ImageFolder:
    """Read each image once, and return the folder without those that cannot be used.

    Raises:
        DataError: some cannot be used, and `skip_broken` is not set; or none can.
    """
    problems, usable, animated = Problems(), [], 0
    for i, (shape, has_frames) in enumerate(_examined(folder)):
        try:
            if isinstance(shape, DataError):
                raise shape
            folder = folder if folder.example else replace(folder, example=(folder.files[i].name, shape))
            folder.require_shape(i, shape)
        except DataError as error:
            problems.add(str(error))
            continue
        usable.append(folder.files[i])
        animated += has_frames
    share = f"{folder.path}: {problems.count:,} of {len(folder.files):,} images"
    if problems.count and not (skip_broken and usable):
        raise DataError(problems.report(f"{share} cannot be used", "leave them out with --skip-broken"))
    if problems.count:
        logger.warning(problems.report(f"{share} are left out"))
    if animated:
        logger.warning(
            "%s: %d images have several frames or pages; the first of each is used", folder.path, animated
        )
    return replace(folder, files=usable)


def _examined(folder: ImageFolder) -> Iterator[tuple[tuple[int, ...] | DataError, bool]]:
    """Yield the shape of each image, or why it cannot be read, and whether it has several frames."""

    def examine(i: int) -> tuple[tuple[int, ...] | DataError, bool]:
        try:
            return folder.read(i)[0].shape, is_animated(folder.files[i], FORMATS)
        except DataError as error:
            return error, False

    count = len(folder.files)
    with (
        ThreadPoolExecutor(MAX_THREADS) as threads,  # Pillow decodes and scales in parallel.
        progress(count, "image", description=f"check of {folder.path.name}") as bar,
    ):
        for first in range(0, count, CHUNK):
            for result in threads.map(examine, range(first, min(first + CHUNK, count))):
                bar.update()
                yield result
