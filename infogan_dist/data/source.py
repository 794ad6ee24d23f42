"""What a source of images is: images by number, with labels and known factors of variation."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

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
    """

    name: str
    count: int
    label_names: list[str]
    read: Callable[[int], tuple[np.ndarray, int]]
    factors: dict[str, int] = field(default_factory=dict)
    factors_of: Callable[[int], Sequence[int]] = lambda i: ()
    label_of: Callable[[int], int] | None = None
    key_of: Callable[[int], str] = str

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


def labelled_arrays(name: str, images: np.ndarray, labels: np.ndarray, label_names: list[str]) -> Source:
    """Return the source of images in memory.

    Args:
        name: the data's name.
        images: uint8 [N, C, H, W].
        labels: integers [N].
        label_names: names of the classes by label.

    Raises:
        DataError: there are no images, another number of labels, or labels without a name.
    """
    if not len(images) == len(labels) > 0:
        raise DataError(f"{name}: {len(images)} images but {len(labels)} labels; replace the files")
    if not 0 <= labels.min() <= labels.max() < len(label_names):
        raise DataError(
            f"{name}: labels from {labels.min()} to {labels.max()}, but names of {len(label_names)} classes "
            f"(0 to {len(label_names) - 1}); give one name for each class"
        )
    return Source(
        name,
        len(images),
        label_names,
        lambda i: (images[i], int(labels[i])),
        label_of=lambda i: int(labels[i]),
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
