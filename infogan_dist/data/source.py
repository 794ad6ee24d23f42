"""What a source of images is: images by number, with labels and known factors of variation."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    """

    name: str
    count: int
    label_names: list[str]
    read: Callable[[int], tuple[np.ndarray, int]]
    factors: dict[str, int] = field(default_factory=dict)
    factors_of: Callable[[int], Sequence[int]] = lambda i: ()


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
    return Source(name, len(images), label_names, lambda i: (images[i], int(labels[i])))
