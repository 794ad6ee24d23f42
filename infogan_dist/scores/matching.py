"""Matching the categories of a code to the classes of labelled images, and classes to classes by their names.

The clustering literature calls the accuracy under the one-to-one matching clustering accuracy (unsupervised
clustering accuracy, ACC, under the Hungarian matching).
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from infogan_dist.data.shards import Manifest
from infogan_dist.scores.score import ScoreUnavailableError
from infogan_dist.scores.scored_model import ScoredModel

NO_CLASS = -1  # class of a category without a partner in a one-to-one matching: its images count as errors
logger = logging.getLogger(__name__)


def contingency(categories: np.ndarray, labels: np.ndarray, size: int, classes: int) -> np.ndarray:
    """Count the images of each category and class.

    Args:
        categories, labels: category and class of each image, int64 [N].
        size, classes: number of categories and of classes.

    Returns:
        int64 [size, classes].
    """
    return np.bincount(categories * classes + labels, minlength=size * classes).reshape(size, classes)


def hungarian(table: np.ndarray) -> np.ndarray:
    """Return the one-to-one matching that classifies the most images correctly (Kuhn 1955).

    Args:
        table: images by category and class, int64 [size, classes].

    Returns:
        The class of each category, int64 [size]. If there are more categories than classes, some have
        `NO_CLASS`.
    """
    classes = np.full(len(table), NO_CLASS)
    rows, columns = linear_sum_assignment(table, maximize=True)
    classes[rows] = columns
    return classes


def majority(table: np.ndarray) -> np.ndarray:
    """Return each category's most frequent class, int64 [size]; several categories may share one.

    Args:
        table: images by category and class, int64 [size, classes].
    """
    return table.argmax(1)


def accuracy(table: np.ndarray, classes: np.ndarray) -> float:
    """Return the share of images whose class is that of their category.

    Under the matching `hungarian` this is the clustering accuracy (ACC).

    Args:
        table: images by category and class, int64 [size, classes].
        classes: the class of each category, or `NO_CLASS`, int64 [size].
    """
    return float(_correct(table, classes).sum() / table.sum())


def class_accuracies(table: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the share of each class's images whose category has that class, float64 [classes].

    It is NaN for a class without images. The arguments are those of `accuracy`.
    """
    with np.errstate(invalid="ignore"):
        return _correct(table, classes) / table.sum(0)


def _correct(table: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Count the correctly classified images of each class."""
    return np.where(classes[:, None] == np.arange(table.shape[1]), table, 0).sum(0)


MATCHINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"hungarian": hungarian, "majority": majority}


@dataclass(frozen=True)
class LabelledSplits:
    """The classes of the images of all splits, in one numbering.

    Attributes:
        names: of the classes, each once.
        labels: number of the class of each image, int64 [N], by split.
    """

    names: list[str]
    labels: dict[str, np.ndarray]


def labelled_splits(model: ScoredModel) -> LabelledSplits:
    """Return the classes of the images of all splits, matched by the class names of both manifests.

    Labels of held-out images are renumbered to those of the training images. Where neither manifest has class
    names, equal labels are the same class.

    Raises:
        ScoreUnavailableError: an image has no label, or the classes of both splits cannot be matched.
    """
    labels = {split: model.labels(split) for split in model.manifests}
    train = model.manifests["train"]
    count = max(len(train.label_names), int(labels["train"].max()) + 1)
    if "test" in labels:
        test = model.manifests["test"]
        if test.label_names == train.label_names:
            count = max(count, int(labels["test"].max()) + 1)
        else:
            labels["test"] = _renumbering(train, test, labels["test"])[labels["test"]]
    return LabelledSplits(_distinct_names(train.label_names, count), labels)


def _renumbering(train: Manifest, test: Manifest, labels: np.ndarray) -> np.ndarray:
    """Return the training label of each label of the held-out images, int64 [classes]."""
    sets = (train.label_names, test.label_names)
    if not all(sets):
        named, unnamed = (train, test) if train.label_names else (test, train)
        problem = f"{named.name} has class names and {unnamed.name} has none"
    elif any(len(set(names)) < len(names) for names in sets):
        problem = "a class name occurs twice"
    elif not set(test.label_names) <= set(train.label_names):
        unknown = [name for name in test.label_names if name not in train.label_names]
        problem = f"{test.name} has the classes {', '.join(unknown[:3])}, which {train.name} lacks"
    elif labels.max() >= len(test.label_names):
        problem = f"{test.name} has labels without a class name"
    else:
        return np.array([train.label_names.index(name) for name in test.label_names])
    raise ScoreUnavailableError(
        f"needs held-out images (data.test) with the class names of the training images, but {problem}"
    )


def _distinct_names(names: list[str], count: int) -> list[str]:
    """Return the names of `count` classes; those without a name, or with another one's, have their number."""
    return [
        names[i] if i < len(names) and names.count(names[i]) == 1 else " ".join([*names[i : i + 1], str(i)])
        for i in range(count)
    ]


def unmatched(variable: str, size: int, classes: int) -> dict[str, int]:
    """Return the number of categories or classes that have no partner, as an entry of a protocol.

    If there are more classes than categories, no matching can classify all images, so that a warning is
    logged, once per variable.

    Args:
        variable: name of the categorical variable.
        size, classes: number of categories and of classes.
    """
    if classes > size:
        _warn_once(
            f"codes.{variable}: {size} categories for {classes} classes, so that {classes - size} classes "
            "cannot be recovered; set the code's size to the number of classes to score all of them"
        )
        return {"unmatched_classes": classes - size}
    return {"unmatched_categories": size - classes} if size > classes else {}


@functools.cache
def _warn_once(message: str) -> None:
    """Log a warning, unless it was logged before, because scores may be computed many times in a run."""
    logger.warning(message)
