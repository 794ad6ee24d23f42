"""Parts of a source: some of its classes or images, and a part that is held out.

Which images are taken depends on a hash of each image's own name or number, so that it does not change when
other images are added or removed, and a smaller part is contained in a larger one.
"""

import hashlib
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from infogan_dist.creation.source import Options, Source, read_class_names
from infogan_dist.data.shards import NO_LABEL
from infogan_dist.errors import ConfigError

# `selection` reads all but the last.
SELECTION_OPTIONS: Options = {
    "--classes": {
        "metavar": "A,B",
        "help": "names of the classes to use, numbered in this order [all]",
    },
    "--classes-file": {"type": Path, "metavar": "FILE", "help": "the same, one name per line"},
    "--per-class": {"type": int, "metavar": "N", "help": "largest number of images of each class [all]"},
    "--limit": {"type": int, "metavar": "N", "help": "largest number of images [all]"},
    "--no-labels": {"action": "store_true", "help": "write images only"},
    "--holdout": {
        "type": float,
        "metavar": "SHARE",
        "help": "write this share of the images, such as 0.1, into a second folder OUT-holdout",
    },
}
HOLDOUT_SUFFIX = "-holdout"  # of name and folder


@dataclass(frozen=True)
class Selection:
    """Which images of a source are used; the fields apply in this order.

    Attributes:
        classes: names of the classes, which are numbered in this order; None: all.
        per_class: largest number of images of each class; None: all.
        limit: largest number of images; None: all.
        labels: whether the images have labels.
    """

    classes: Sequence[str] | None = None
    per_class: int | None = None
    limit: int | None = None
    labels: bool = True


def selection(options: Namespace) -> Selection:
    """Return the selection of the `SELECTION_OPTIONS`. Raises `ConfigError` or `DataError`."""
    classes = None if options.classes is None else options.classes.split(",")
    if options.classes_file is not None:
        if classes is not None:
            raise ConfigError("--classes: given together with --classes-file; use one of them")
        classes = read_class_names(options.classes_file)
    return Selection(classes, options.per_class, options.limit, not options.no_labels)


def select(source: Source, part: Selection) -> Source:
    """Return a part of a source.

    Raises:
        ConfigError: a class is unknown, or a number is not positive.
    """
    for flag, number in (("--per-class", part.per_class), ("--limit", part.limit)):
        if number is not None and number < 1:
            raise ConfigError(f"{flag}: {number} is not a number of images; use 1 or more")
    if part.classes is not None:
        source = _with_classes(source, part.classes)
    if part.per_class is not None:
        labels = _labels(source)
        if not source.label_names:
            raise ConfigError(f"--per-class: the images of {source.name} have no classes; use --limit")
        parts = [_first(source, np.flatnonzero(labels == k), part.per_class) for k in np.unique(labels)]
        source = _subset(source, np.concatenate(parts))
    if part.limit is not None:
        source = _subset(source, _first(source, np.arange(source.count), part.limit))
    return source if part.labels else _without_labels(source)


def hold_out(source: Source, share: float) -> tuple[Source, Source]:
    """Return two parts of a source: the images for training, and those that are held out.

    Args:
        source: the images.
        share: probability of each image to be held out.

    Raises:
        ConfigError: the share is not between 0 and 1, or one part is empty.
    """
    if not 0 < share < 1:
        raise ConfigError(f"--holdout: {share} is not a share of the images; use a number such as 0.1")
    held_out = _hashes(source, range(source.count), "holdout") < share
    if held_out.all() or not held_out.any():
        raise ConfigError(
            f"--holdout: {int(held_out.sum())} of {source.count} images would be held out; use another share"
        )
    name = source.name + HOLDOUT_SUFFIX
    return (
        _subset(source, np.flatnonzero(~held_out)),
        replace(_subset(source, np.flatnonzero(held_out)), name=name),
    )


def _with_classes(source: Source, classes: Sequence[str]) -> Source:
    unknown = [name for name in classes if name not in source.label_names]
    if unknown or not classes:
        available = ", ".join(source.label_names[:20]) or "none"
        raise ConfigError(
            f"--classes: {', '.join(unknown) or 'nothing'} is no class of {source.name}; "
            f"its classes are {available}"
        )
    if len(set(classes)) < len(classes):
        raise ConfigError(f"--classes: {', '.join(classes)} contains a class twice; name each once")
    new_labels = np.full(len(source.label_names) + 1, NO_LABEL)  # the last one is of images without a label
    new_labels[[source.label_names.index(name) for name in classes]] = np.arange(len(classes))
    labels = new_labels[_labels(source)]
    rows = np.flatnonzero(labels != NO_LABEL)
    part = replace(_subset(source, rows), label_names=list(classes))
    return _with_labels(part, labels[rows].tolist())


def _with_labels(source: Source, labels: Sequence[int]) -> Source:
    return replace(source, read=lambda i: (source.read(i)[0], labels[i]), label_of=lambda i: labels[i])


def _without_labels(source: Source) -> Source:
    return replace(_with_labels(source, [NO_LABEL] * source.count), label_names=[])


def _subset(source: Source, rows: np.ndarray) -> Source:
    """Return the images of these numbers, in the order of the source."""
    numbers: list[int] = np.sort(rows).tolist()
    return replace(
        source,
        count=len(numbers),
        read=lambda i: source.read(numbers[i]),
        factors_of=lambda i: source.factors_of(numbers[i]),
        label_of=lambda i: source.label(numbers[i]),
        key_of=lambda i: source.key_of(numbers[i]),
        file_of=None if source.file_of is None else _renumbered(source.file_of, numbers),
    )


def _renumbered(file_of: Callable[[int], bytes], numbers: list[int]) -> Callable[[int], bytes]:
    return lambda i: file_of(numbers[i])


def _first(source: Source, rows: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` images of these numbers whose hashes are the smallest; all if there are fewer."""
    return rows[np.argsort(_hashes(source, rows, "limit"), kind="stable")[:count]]


def _labels(source: Source) -> np.ndarray:
    return np.array([source.label(i) for i in range(source.count)])


def _hashes(source: Source, rows: Iterable[int], purpose: str) -> np.ndarray:
    """Return a number in [0, 1) for each image, a function of purpose and the image's key."""
    digests = (hashlib.sha256(f"{purpose} {source.key_of(int(i))}".encode()).digest() for i in rows)
    return np.array([int.from_bytes(digest[:6], "big") / 2**48 for digest in digests])
