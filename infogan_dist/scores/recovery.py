"""Code recovery: how well a categorical code, learned without labels, classifies real images.

The paper's central number (Chen et al. 2016, section 7.2): each category of the code is matched to a digit
type, and 5% of the digits are then classified wrongly. The matching is fitted on training images here, and
applied to held-out ones.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor
from torch.distributions import Categorical

from infogan_dist.model.codes import CategoricalCode
from infogan_dist.runtime.pictures import confusion_matrix
from infogan_dist.scores.scored_model import CodeReader, NotMeasurable, Picture, Score, ScoredModel

NO_CLASS = -1  # of a category that a one-to-one matching leaves over: each of its images counts as an error


def contingency(categories: np.ndarray, labels: np.ndarray, size: int, classes: int) -> np.ndarray:
    """Images by category and class, int64 [size, classes], from the category and the class of each [N]."""
    return np.bincount(categories * classes + labels, minlength=size * classes).reshape(size, classes)


def hungarian(table: np.ndarray) -> np.ndarray:
    """The one-to-one matching with the most images on it (Kuhn 1955): each category's class, int64 [size].

    With more categories than classes, those left over have `NO_CLASS`.
    """
    classes = np.full(len(table), NO_CLASS)
    rows, columns = linear_sum_assignment(table, maximize=True)
    classes[rows] = columns
    return classes


def majority(table: np.ndarray) -> np.ndarray:
    """Each category's most frequent class, int64 [size]; several categories may share one."""
    return table.argmax(1)


def accuracy(table: np.ndarray, classes: np.ndarray) -> float:
    """The share of images whose category has been given their class."""
    given = classes != NO_CLASS
    return float(table[given, classes[given]].sum() / table.sum())


MATCHINGS = {"hungarian": hungarian, "majority": majority}


def recovery(subject: ScoredModel) -> Iterator[Score | Picture]:
    """Accuracy under each matching, NMI and ARI of each categorical code, and its confusion matrix.

    Yields `accuracy_SPLIT_MATCHING`, `nmi_SPLIT`, `ari_SPLIT`, and each again with `_recalibrated` where the
    networks have batch norm; with several categorical variables each name starts with the variable's.
    """
    variables = subject.variables(CategoricalCode)
    if not variables:
        raise NotMeasurable("needs a categorical code")
    splits = list(subject.manifests)
    labels = {split: subject.labels(split) for split in splits}
    for reader in subject.real_readers():
        read = {split: subject.real_codes(reader, split) for split in splits}
        for name, i, variable in variables:
            prefix = f"{variable}/" if len(variables) > 1 else ""
            categories = {split: _likeliest(codes[name], i) for split, codes in read.items()}
            for found in _variable_scores(subject, reader, categories, labels):
                yield replace(found, name=prefix + found.name)


def _likeliest(posterior: object, variable: int) -> np.ndarray:
    assert isinstance(posterior, Categorical)
    logits: Tensor = posterior.logits[:, variable]
    return logits.argmax(-1).numpy()


def _variable_scores(
    subject: ScoredModel, reader: CodeReader, categories: dict[str, np.ndarray], labels: dict[str, np.ndarray]
) -> Iterator[Score | Picture]:
    size = max(int(c.max()) for c in categories.values()) + 1
    classes = max(int(x.max()) for x in labels.values()) + 1
    tables = {s: contingency(categories[s], labels[s], size, classes) for s in categories}
    for split, table in tables.items():
        about = {
            "split": split,
            "samples": int(table.sum()),
            "batch_norm": reader.treatment,
            "weights": "last",
        }
        for matching, fit in MATCHINGS.items():
            fitted = f"{matching}, fitted on {int(tables['train'].sum()):,} train images"
            value = accuracy(table, fit(tables["train"]))
            name = f"accuracy_{split}_{matching}{reader.suffix}"
            yield Score(name, value, {**about, "matching": fitted})
        nmi = float(normalized_mutual_info_score(labels[split], categories[split]))
        ari = float(adjusted_rand_score(labels[split], categories[split]))
        yield Score(f"nmi_{split}{reader.suffix}", nmi, {**about, "normaliser": "mean of both entropies"})
        yield Score(f"ari_{split}{reader.suffix}", ari, about)
    shown = "test" if "test" in tables else "train"
    names = subject.manifests["train"].label_names or [str(i) for i in range(classes)]
    yield Picture(f"confusion_{shown}{reader.suffix}", _matrix(tables[shown], tables["train"], names))


def _matrix(table: np.ndarray, fitted: np.ndarray, names: list[str]) -> np.ndarray:
    """The confusion matrix as a picture: categories in the order of the classes that they were matched to."""
    classes = hungarian(fitted)
    order = np.argsort(np.where(classes == NO_CLASS, len(names), classes), kind="stable")
    return confusion_matrix(table[order], [str(i) for i in order], names)
