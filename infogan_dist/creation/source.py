"""What a source of images is: images by number, with labels and known factors of variation."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infogan_dist.data.shards import MAX_CLASSES, NO_LABEL
from infogan_dist.errors import DataError

Options = dict[str, dict[str, Any]]  # by flag, the keyword arguments of `ArgumentParser.add_argument`


@dataclass(frozen=True)
class Source:
    """Images by number.

    Attributes:
        name: the data's name.
        count: number of images.
        label_names: names of the classes by label; empty if there are no labels.
        read: function that returns the i-th image, uint8 [C, H, W] of one shape for all, and its label, -1
            if it has none.
        factors: number of values of each known factor of variation, by name.
        factors_of: function that returns the i-th image's values of these factors.
        label_of: function that returns the i-th image's label without reading the image; None: `read` does.
        key_of: function that returns a name of the i-th image that does not depend on the other images.
        file_of: function that returns the bytes of the i-th image's file, which is stored as it is if it is a
            JPEG of the same pixels; None: all images are stored as PNG.
    """

    name: str
    count: int
    label_names: list[str]
    read: Callable[[int], tuple[np.ndarray, int]]
    factors: dict[str, int] = field(default_factory=dict)
    factors_of: Callable[[int], Sequence[int]] = lambda i: ()
    label_of: Callable[[int], int] | None = None
    key_of: Callable[[int], str] = str
    file_of: Callable[[int], bytes] | None = None

    def label(self, i: int) -> int:
        """Return the i-th image's label, -1 if it has none."""
        return self.read(i)[1] if self.label_of is None else self.label_of(i)


@dataclass(frozen=True)
class SourceEntry:
    """A kind of source as `make_shards` offers it.

    Attributes:
        help: one line for `--help`.
        create: function from the parsed command line to the source; it raises `DataError` or `ConfigError`.
        options: command-line options of this kind.
        suffix: function from the parsed command line to a suffix of the default output folder's name.
    """

    help: str
    create: Callable[[Namespace], Source]
    options: Options = field(default_factory=dict)
    suffix: Callable[[Namespace], str] = lambda options: ""


def array_source(
    name: str, images: np.ndarray, labels: np.ndarray | None, label_names: list[str] | None = None
) -> Source:
    """Return the source of images in memory.

    Args:
        name: the data's name.
        images: uint8 [N, C, H, W].
        labels: integers [N]; None: there are none.
        label_names: names of the classes by label; None: the labels as numbers.

    Raises:
        DataError: there are no images, another number of labels, or labels without a name.
    """
    if len(images) == 0:
        raise DataError(f"{name}: contains no images; use other files")
    if labels is None:
        return Source(name, len(images), [], lambda i: (images[i], NO_LABEL), label_of=lambda i: NO_LABEL)
    if len(images) != len(labels):
        raise DataError(f"{name}: {len(images)} images but {len(labels)} labels; replace the files")
    names = numbered_names(name, labels) if label_names is None else label_names
    if not 0 <= labels.min() <= labels.max() < len(names):
        raise DataError(
            f"{name}: labels from {labels.min()} to {labels.max()}, but names of {len(names)} classes "
            f"(0 to {len(names) - 1}); give one name for each class"
        )
    return Source(
        name,
        len(images),
        names,
        lambda i: (images[i], int(labels[i])),
        label_of=lambda i: int(labels[i]),
    )


def numbered_names(name: str, labels: np.ndarray) -> list[str]:
    """Return the numbers up to the largest label as names of classes; none if no image has a label.

    Args:
        name: the data's name, for error messages.
        labels: integers [N], -1 where there is none.

    Raises:
        DataError: there are too many.
    """
    if (largest := int(labels.max())) >= MAX_CLASSES:
        raise DataError(f"{name}: labels up to {largest:,}; use at most {MAX_CLASSES:,} classes")
    return [str(i) for i in range(largest + 1)]


def channels_first(images: np.ndarray, where: str) -> np.ndarray:
    """Return images as [N, C, H, W].

    Args:
        images: uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with C = 1 or 3.
        where: their name in error messages.

    Raises:
        DataError: they have another type or shape.
    """
    if images.dtype == np.uint8 and images.ndim == 3:
        return images[:, None]
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    raise DataError(
        f"{where}: images of type {images.dtype} and shape {list(images.shape)}; use uint8 [N, H, W], "
        "[N, H, W, C] or [N, C, H, W] with 1 or 3 channels"
    )


def require_shape(shape: Sequence[int], required: Sequence[int], where: str) -> None:
    """Raise `DataError` if an image has another (channels, height, width) than the first one.

    Args:
        shape: of the image.
        required: of the first image.
        where: name of the image in the error message.
    """
    if tuple(shape) != tuple(required):
        raise DataError(
            f"{where}: shape {list(shape)} (channels, height, width) instead of {list(required)} as of the "
            f"first image; fit all images to one, such as with --size {required[2]}x{required[1]} --mode "
            f"{'grey' if required[0] == 1 else 'colour'}"
        )


def read_class_names(path: Path, remedy: str = "give a file with one class name per line") -> list[str]:
    """Return the lines of a text file that are not empty.

    Args:
        path: of the file.
        remedy: of the error message.

    Raises:
        DataError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable text file ({error}); {remedy}") from None
    return [line.strip() for line in lines if line.strip()]
