"""Code recovery: how well a categorical code, learned without labels, classifies real images.

This is the paper's central number (Chen et al. 2016, section 7.2): after each category of the code has been
matched to a digit type, 5% of the digits are classified wrongly. Here the matching is fitted on training
images, and applied to held-out images.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from infogan_dist.runtime.pictures import confusion_matrix
from infogan_dist.scores.code_reader import CodeReader
from infogan_dist.scores.intervals import wilson_interval
from infogan_dist.scores.matching import (
    MATCHINGS,
    NO_CLASS,
    LabelledSplits,
    accuracy,
    class_accuracies,
    contingency,
    hungarian,
    labelled_splits,
    unmatched,
)
from infogan_dist.scores.score import Picture, Score, ScoreUnavailableError
from infogan_dist.scores.scored_model import CodeVariable, ScoredModel


def recovery(model: ScoredModel) -> Iterator[Score | Picture]:
    """Compute accuracy, NMI, ARI and the confusion matrix of each categorical variable, for each reader.

    Yields:
        `accuracy_SPLIT_MATCHING`, `nmi_SPLIT` and `ari_SPLIT`, in [0, 1] (ARI: at most 1), the picture
        `confusion_SPLIT`, and each again with `_recalibrated` where the networks have batch norm. With
        several categorical variables each name starts with that of the variable and `/`.

    Raises:
        ScoreUnavailableError: there is no categorical code, the images have no labels, or the classes of the
            held-out images cannot be matched to those of the training images.
    """
    variables = model.categorical_variables()
    if not variables:
        raise ScoreUnavailableError("needs a categorical code")
    classes = labelled_splits(model)
    for reader in model.real_readers():
        posteriors = {split: model.real_posteriors(reader, split) for split in model.manifests}
        for variable in variables:
            code = model.spec.codes[variable.code]
            categories = {
                split: code.point_estimate(posterior[variable.code])[:, variable.index].numpy()
                for split, posterior in posteriors.items()
            }
            prefix = f"{variable.name}/" if len(variables) > 1 else ""
            result = _VariableResult(variable, code.categories or 0, categories, classes)
            for item in _variable_scores(result, reader):
                yield replace(item, name=prefix + item.name)


@dataclass(frozen=True)
class _VariableResult:
    """The categories that a reader infers for one variable.

    Attributes:
        variable: the categorical variable.
        size: number of its categories.
        categories: the category of each image, int64 [N], by split.
        classes: the classes of the images.
    """

    variable: CodeVariable
    size: int
    categories: dict[str, np.ndarray]
    classes: LabelledSplits


def _variable_scores(result: _VariableResult, reader: CodeReader) -> Iterator[Score | Picture]:
    """Compute the scores of one variable."""
    categories, labels, names = result.categories, result.classes.labels, result.classes.names
    tables = {s: contingency(categories[s], labels[s], result.size, len(names)) for s in categories}
    comment = unmatched(result.variable.name, result.size, len(names))
    for split, table in tables.items():
        count = int(table.sum())
        protocol = {"split": split, "samples": count, "batch_norm": reader.batch_norm, "weights": "last"}
        for matching, fit in MATCHINGS.items():
            description = f"{matching}, fitted on {int(tables['train'].sum()):,} train images"
            classes = fit(tables["train"])
            value = accuracy(table, classes)
            details = {
                **protocol,
                "matching": description,
                **comment,
                "interval_95": wilson_interval(value, count),
                **_tables(table, classes, names),
            }
            yield Score(f"accuracy_{split}_{matching}{reader.suffix}", value, details)
        nmi = float(normalized_mutual_info_score(labels[split], categories[split]))
        ari = float(adjusted_rand_score(labels[split], categories[split]))
        yield Score(f"nmi_{split}{reader.suffix}", nmi, {**protocol, "normaliser": "mean of both entropies"})
        yield Score(f"ari_{split}{reader.suffix}", ari, protocol)
    split = "test" if "test" in tables else "train"
    picture = _confusion_picture(tables[split], hungarian(tables["train"]), names)
    yield Picture(f"confusion_{split}{reader.suffix}", picture)


def _tables(table: np.ndarray, classes: np.ndarray, names: list[str]) -> dict[str, Any]:
    """Return the tables of an accuracy's protocol.

    Args:
        table: images by category and class, int64 [size, classes].
        classes: the class of each category, or `NO_CLASS`, int64 [size].
        names: of the classes.

    Returns:
        `class_of_category`: the class's name by category, None without one; `confusion`: the number of images
        by category and class's name, without zeros; `class_accuracy`: the share of a class's images that are
        classified correctly by its name, without classes that have no images.
    """
    shares = class_accuracies(table, classes)
    return {
        "class_of_category": {str(i): None if c == NO_CLASS else names[c] for i, c in enumerate(classes)},
        "confusion": {
            str(i): {names[c]: int(row[c]) for c in np.flatnonzero(row)} for i, row in enumerate(table)
        },
        "class_accuracy": {name: float(share) for name, share in zip(names, shares, strict=True)
                           if not np.isnan(share)},
    }  # fmt: skip


def _confusion_picture(table: np.ndarray, classes: np.ndarray, names: list[str]) -> np.ndarray:
    """Return the confusion matrix as a picture, its rows in the order of the classes of the categories."""
    order = np.argsort(np.where(classes == NO_CLASS, len(names), classes), kind="stable")
    return confusion_matrix(table[order], [str(i) for i in order], names)
