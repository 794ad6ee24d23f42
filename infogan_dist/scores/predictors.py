"""Scores of disentanglement by classifiers that predict the factors of variation from the codes.

The names without a suffix follow disentanglement_lib, the program of Locatello et al. 2019 (arXiv
1811.12359), whose values papers print. In it all codes are numbers: what is added here for categories is
noted with each score. All classifiers are tested on images that they were not trained on.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.special import entr
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from infogan_dist.scores.distributed_map import DistributedMap
from infogan_dist.scores.representation import Representation

SVM_COST = 0.01  # C of the linear SVM of `sap`
BOOSTING_STAGES = 100  # of `dci`: scikit-learn's default, as in disentanglement_lib
TREES, DEPTHS = 10, (2, 4, 8, 16)  # of a forest; the depth is chosen on validation images
MAX_ITERATIONS = 1000  # of a solver


def gaps(table: np.ndarray) -> np.ndarray:
    """Return the largest value of each column minus the second largest (0 if there is none)."""
    ordered = np.sort(np.vstack([table, np.zeros(table.shape[1])]), axis=0)
    return ordered[-1] - ordered[-2]


def sap(representation: Representation, seed: int, distributed_map: DistributedMap) -> float:
    """Return the separated attribute predictability of Kumar et al. 2018 (arXiv 1711.00848), section 3.

    The difference between the accuracies with which a factor is predicted from its best code and from its
    second best code (0 if there is one code only); the score is its mean over factors. As in
    disentanglement_lib, the predictor is a linear SVM, one value against the others, with balanced classes,
    on the code as it is. From a single code it cannot separate a value in the middle of a factor's range, so
    that perfect codes of factors with more than two values score far below 1. A categorical code is given
    to the SVM as one indicator per category.

    Args:
        representation: codes and factors of the images.
        seed: of the division into training and test images.
        distributed_map: divides the work among the processes.

    Returns:
        The score, in [0, 1].
    """
    factors = representation.varying_factors
    width = factors.shape[1]
    train, test = representation.split(seed, "sap")

    def row(i: int) -> float:
        features, factor = representation.features(i // width), factors[:, i % width]
        if len(np.unique(factor[train])) == 1:  # a classifier needs two classes
            return float(np.mean(factor[test] == factor[train[0]]))
        classifier = LinearSVC(C=SVM_COST, class_weight="balanced", random_state=0, max_iter=MAX_ITERATIONS)
        with warnings.catch_warnings():
            # Codes of a very large scale need more iterations; disentanglement_lib stops there as well.
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(features[train], factor[train])
        return float(np.mean(classifier.predict(features[test]) == factor[test]))

    table = distributed_map(representation.codes.shape[1] * width, 1, row)
    return float(gaps(table.reshape(-1, width)).mean())


def sap_threshold(representation: Representation, seed: int, distributed_map: DistributedMap) -> float:
    """Return a variant of `sap` with thresholds as the paper describes them, and balanced accuracies.

    As in the paper, a continuous code is cut at one threshold fewer than the factor has values, and a dead
    code counts 0. The paper leaves open how the thresholds are fitted, and tests on the training images; here
    they are those of a decision tree grown best split first, and other images are tested. A category predicts
    the value that is most likely in it. Even perfect codes score below 1, because the second best code is
    right by chance: for independent factors with n values the score is then approximately 1 - 1/n. The scale
    of a code does not matter.

    Args:
        representation: codes and factors of the images.
        seed: of the division into training and test images.
        distributed_map: divides the work among the processes.

    Returns:
        The score, in [0, 1].
    """
    codes, factors = representation.standard_codes, representation.varying_factors
    width = factors.shape[1]
    train, test = representation.split(seed, "sap")

    def row(i: int) -> float:
        code, factor = codes[:, i // width], factors[:, i % width]
        if not code.any():
            return 0.0
        predict = _predict_by_category if representation.discrete[i // width] else _predict_by_thresholds
        predicted = predict(code, factor, train)
        correct = np.bincount(factor[test], weights=predicted[test] == factor[test])
        count = np.bincount(factor[test])
        return float(np.mean(correct[count > 0] / count[count > 0]))

    return float(gaps(distributed_map(codes.shape[1] * width, 1, row).reshape(-1, width)).mean())


@dataclass(frozen=True)
class DCI:
    """The result of `dci`; each value is in [0, 1].

    Attributes:
        disentanglement: whether each code is important for one factor only.
        completeness: whether each factor is predicted from one code only.
        informativeness: accuracy of the predicted factors.
    """

    disentanglement: float
    completeness: float
    informativeness: float


def dci(representation: Representation, seed: int, distributed_map: DistributedMap) -> DCI:
    """Return disentanglement, completeness and informativeness of Eastwood & Williams 2018, section 2.

    Each factor is predicted from all codes. Disentanglement is a mean over codes, weighted by their
    importance; completeness is a mean over factors. Informativeness is the accuracy on test images; the paper
    uses a regression error, but here values are classes. As in disentanglement_lib, the predictor is
    scikit-learn's `GradientBoostingClassifier` with its default settings; categories are given to it by their
    numbers.

    Args:
        representation: codes and factors of the images.
        seed: of the division into training and test images.
        distributed_map: divides the factors among the processes.

    Returns:
        The three scores.
    """
    codes, factors = representation.standard_codes, representation.varying_factors
    train, test = representation.split(seed, "dci")

    def row(k: int) -> list[float]:
        factor = factors[:, k]
        if len(np.unique(factor[train])) == 1:  # a classifier needs two classes
            return [*np.zeros(codes.shape[1]), float(np.mean(factor[test] == factor[train[0]]))]
        boosted = GradientBoostingClassifier(n_estimators=BOOSTING_STAGES, random_state=0)
        boosted.fit(codes[train], factor[train])
        importances = np.asarray(boosted.feature_importances_)
        return [*importances, float(boosted.score(codes[test], factor[test]))]

    return _dci(distributed_map(factors.shape[1], codes.shape[1] + 1, row))


def dci_forest(representation: Representation, seed: int, distributed_map: DistributedMap) -> DCI:
    """Return a variant of `dci` with random forests, one of the paper's two predictors.

    Each split may use any of the codes, so that importances do not depend on random subsets of them. As in
    the paper, the depth is chosen on validation images, because deep trees fit noise; among depths that
    differ by chance the smallest is taken (the one-standard-error rule of Breiman et al. 1984, section
    3.4.3).

    Args:
        representation: codes and factors of the images.
        seed: of the division into training and test images.
        distributed_map: divides the factors among the processes.

    Returns:
        The three scores.
    """
    codes, factors = representation.standard_codes, representation.varying_factors
    train, test = representation.split(seed, "dci")
    validation, train = train[: len(train) // 5], train[len(train) // 5 :]

    def row(k: int) -> list[float]:
        def fit_forest(depth: int) -> RandomForestClassifier:
            forest = RandomForestClassifier(
                TREES, criterion="entropy", max_depth=depth, random_state=0, n_jobs=1,
                max_features=None,  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
            return forest.fit(codes[train], factors[train, k])

        forests = [fit_forest(depth) for depth in DEPTHS]
        accuracies = np.array([f.score(codes[validation], factors[validation, k]) for f in forests])
        best = accuracies.max()
        standard_error = np.sqrt(best * (1 - best) / len(validation))
        forest = forests[int(np.argmax(accuracies >= best - standard_error))]
        return [*forest.feature_importances_, forest.score(codes[test], factors[test, k])]

    return _dci(distributed_map(factors.shape[1], codes.shape[1] + 1, row))


def explicitness(representation: Representation, seed: int, distributed_map: DistributedMap) -> float:
    """Return the explicitness of Ridgeway & Mozer 2018 (arXiv 1802.05312), section 3; chance is 1/2.

    It is the area under the ROC curve of a logistic regression that predicts one value of a factor against
    the others from all codes, as a mean over values, and then over factors. As in disentanglement_lib, codes
    are shifted and scaled to mean 0 and variance 1, and the area is that of test images. Categories are given
    to it as one indicator per category; a value that no test image has, or all have, is left out.

    Args:
        representation: codes and factors of the images.
        seed: of the division into training and test images.
        distributed_map: divides the factors among the processes.

    Returns:
        The score, in [0, 1].
    """
    factors = representation.varying_factors
    features = np.concatenate([representation.features(i) for i in range(representation.codes.shape[1])], 1)
    train, test = representation.split(seed, "explicitness")
    features = features - features[train].mean(axis=0)
    deviations = np.where(np.ptp(features[train], axis=0) > 0, features[train].std(axis=0), np.inf)
    features = features / deviations

    def row(k: int) -> float:
        factor = factors[:, k]
        if len(np.unique(factor[train])) == 1:  # a classifier needs two classes
            return 0.5
        classifier = LogisticRegression(max_iter=MAX_ITERATIONS).fit(features[train], factor[train])
        likelihoods = classifier.predict_proba(features[test])
        areas = [
            roc_auc_score(factor[test] == value, likelihood)
            for value, likelihood in zip(classifier.classes_, likelihoods.T, strict=True)
            if 0 < np.mean(factor[test] == value) < 1
        ]
        return float(np.mean(areas)) if areas else 0.5

    return float(distributed_map(factors.shape[1], 1, row).mean())


def _dci(table: np.ndarray) -> DCI:
    """Return the scores from a row of importances and the accuracy of each factor."""
    importances = table[:, :-1].T
    weights = importances.sum(axis=1)
    return DCI(
        float(weights @ _concentration(importances)) / (float(weights.sum()) or 1),
        float(_concentration(importances.T).mean()),
        float(table[:, -1].mean()),
    )


def _concentration(weights: np.ndarray) -> np.ndarray:
    """Return 1 minus each row's entropy, divided by the largest possible entropy; 0 for a row of zeros."""
    totals = weights.sum(axis=1, keepdims=True)
    shares = weights / np.where(totals > 0, totals, 1)
    entropy = entr(shares).sum(axis=1) / np.log(max(weights.shape[1], 2))
    return np.where(totals[:, 0] > 0, 1 - entropy, 0.0)


def _predict_by_category(code: np.ndarray, factor: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Predict for each image the value under which its category has the largest share."""
    code = code.astype(np.int64)
    counts = np.zeros((code.max() + 1, factor.max() + 1))
    np.add.at(counts, (code[train], factor[train]), 1)
    likelihoods = counts / np.maximum(counts.sum(axis=0), 1)
    return likelihoods.argmax(axis=1)[code]


def _predict_by_thresholds(code: np.ndarray, factor: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Predict the value of each image by a decision tree with one leaf per value of the factor."""
    tree = DecisionTreeClassifier(
        criterion="entropy", max_leaf_nodes=int(factor.max()) + 1, class_weight="balanced", random_state=0
    )
    return tree.fit(code[train, None], factor[train]).predict(code[:, None])
