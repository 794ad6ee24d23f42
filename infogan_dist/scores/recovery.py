"""Code recovery: how well a categorical code, learned without labels, classifies real images.

This is the paper's central number (Chen et al. 2016, section 7.2): after each category of the code has been
matched to a digit type, 5% of the digits are classified wrongly. In the clustering literature the accuracy
under the one-to-one matching is known as clustering accuracy (unsupervised clustering accuracy, ACC, under
the Hungarian matching). Here the matching is fitted on training images, and applied to held-out images.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from infogan_dist.runtime.pictures import confusion_matrix
from infogan_dist.scores.code_reader import CodeReader
from infogan_dist.scores.score import Picture, Score, ScoreUnavailableError
from infogan_dist.scores.scored_model import ScoredModel

NO_CLASS = -1  # class of a category without a partner in a one-to-one matching: its images count as errors


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
    matched = classes != NO_CLASS
    return float(table[matched, classes[matched]].sum() / table.sum())


MATCHINGS = {"hungarian": hungarian, "majority": majority}


def recovery(model: ScoredModel) -> Iterator[Score | Picture]:
    """Compute accuracy, NMI, ARI and the confusion matrix of each categorical variable, for each reader.

    Yields:
        `accuracy_SPLIT_MATCHING`, `nmi_SPLIT` and `ari_SPLIT`, in [0, 1] (ARI: at most 1), the picture
        `confusion_SPLIT`, and each again with `_recalibrated` where the networks have batch norm. With
        several categorical variables each name starts with that of the variable and `/`.

    Raises:
        ScoreUnavailableError: there is no categorical code, or the images have no labels.
    """
    variables = model.categorical_variables()
    if not variables:
        raise ScoreUnavailableError("needs a categorical code")
    labels = {split: model.labels(split) for split in model.manifests}
    for reader in model.real_readers():
        posteriors = {split: model.real_posteriors(reader, split) for split in model.manifests}
        for variable in variables:
            code = model.spec.codes[variable.code]
            categories = {
                split: code.point_estimate(posterior[variable.code])[:, variable.index].numpy()
                for split, posterior in posteriors.items()
            }
            prefix = f"{variable.name}/" if len(variables) > 1 else ""
            for item in _variable_scores(model, reader, categories, labels):
                yield replace(item, name=prefix + item.name)


def _variable_scores(
    model: ScoredModel, reader: CodeReader, categories: dict[str, np.ndarray], labels: dict[str, np.ndarray]
) -> Iterator[Score | Picture]:
    """Compute the scores of one variable from the category and class of each image, int64 [N] by split."""
    size = max(int(c.max()) for c in categories.values()) + 1
    classes = max(int(x.max()) for x in labels.values()) + 1
    tables = {s: contingency(categories[s], labels[s], size, classes) for s in categories}
    for split, table in tables.items():
        protocol = {
            "split": split,
            "samples": int(table.sum()),
            "batch_norm": reader.batch_norm,
            "weights": "last",
        }
        for matching, fit in MATCHINGS.items():
            description = f"{matching}, fitted on {int(tables['train'].sum()):,} train images"
            value = accuracy(table, fit(tables["train"]))
            name = f"accuracy_{split}_{matching}{reader.suffix}"
            yield Score(name, value, {**protocol, "matching": description})
        nmi = float(normalized_mutual_info_score(labels[split], categories[split]))
        ari = float(adjusted_rand_score(labels[split], categories[split]))
        yield Score(f"nmi_{split}{reader.suffix}", nmi, {**protocol, "normaliser": "mean of both entropies"})
        yield Score(f"ari_{split}{reader.suffix}", ari, protocol)
    split = "test" if "test" in tables else "train"
    names = model.manifests["train"].label_names or [str(i) for i in range(classes)]
    picture = _confusion_picture(tables[split], hungarian(tables["train"]), names)
    yield Picture(f"confusion_{split}{reader.suffix}", picture)


def _confusion_picture(table: np.ndarray, classes: np.ndarray, names: list[str]) -> np.ndarray:
    """Return the confusion matrix as a picture, its rows in the order of the classes of the categories."""
    order = np.argsort(np.where(classes == NO_CLASS, len(names), classes), kind="stable")
    return confusion_matrix(table[order], [str(i) for i in order], names)
