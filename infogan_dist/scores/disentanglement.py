"""Scores of disentanglement, on images whose factors of variation are known.

No score depends on the location or the scale of a continuous code, nor, except for the forests of `dci`, on
the numbering of categories. Where a paper leaves the numbers of bins, images and votes open, they are those
of Locatello et al. 2019 (arXiv 1811.12359), a comparison of all these scores. Each score raises `DataError`
if no factor varies.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import entr
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import mutual_info_score
from sklearn.tree import DecisionTreeClassifier

from infogan_dist.scores.distributed_map import DistributedMap
from infogan_dist.scores.interventions import beta_vae, factor_vae
from infogan_dist.scores.representation import Representation

BINS = 20  # of a continuous code, for its mutual information
TREES, DEPTHS = 10, (2, 4, 8, 16)  # of a forest; the depth is chosen on validation images
MIN_INFORMATION = 1e-9  # nats; less is a rounding error


def disentanglement(
    representation: Representation, seed: int, distributed_map: DistributedMap
) -> Iterator[tuple[str, float]]:
    """Compute every score of disentanglement.

    Args:
        representation: codes and factors of the images.
        seed: of the random numbers.
        distributed_map: divides the work among the processes.

    Yields:
        Names and values; each value is at most 1, and 1 is best.
    """
    yield "mig", mig(representation, distributed_map)
    yield "sap", sap(representation, seed, distributed_map)
    result = dci(representation, seed, distributed_map)
    yield "dci_disentanglement", result.disentanglement
    yield "dci_completeness", result.completeness
    yield "dci_informativeness", result.informativeness
    yield "factor_vae", factor_vae(representation, seed, distributed_map)
    yield "beta_vae", beta_vae(representation, seed, distributed_map)
    yield "modularity", modularity(representation, distributed_map)


def mutual_information(representation: Representation, distributed_map: DistributedMap) -> np.ndarray:
    """Return the empirical mutual information of each code and each varying factor, in nats, float64 [D, K].

    A continuous code is cut into `BINS` bins of equal width over its range.
    """
    codes, factors = representation.codes, representation.varying_factors

    def row(i: int) -> list[float]:
        values = _bins(codes[:, i], representation.discrete[i])
        return [mutual_info_score(values, factor) for factor in factors.T]

    return distributed_map(codes.shape[1], factors.shape[1], row)


def mig(representation: Representation, distributed_map: DistributedMap) -> float:
    """Return the mutual information gap of Chen et al. 2018 (arXiv 1802.04942), eq. 6, in [0, 1].

    The gap is the mutual information of a factor with its best code minus that with its second best code (0
    if there is one code only), divided by the factor's entropy; the score is its mean over factors. The paper
    takes the information under q(z|x), whereas here it is that of Q's point estimate in bins. The bins cannot
    distinguish all values of a factor with more than `BINS` values, so that its gap stays below 1.
    """
    shares = (np.bincount(f) / len(f) for f in representation.varying_factors.T)
    entropies = np.array([entr(share).sum() for share in shares])
    return float((_gaps(mutual_information(representation, distributed_map)) / entropies).mean())


def modularity(representation: Representation, distributed_map: DistributedMap) -> float:
    """Return the modularity of Ridgeway & Mozer 2018 (arXiv 1802.05312), section 3, in [0, 1].

    A code that has information on one factor only scores 1, one that has the same information on all factors
    scores 0; the result is the mean over codes. The paper's ratio is 0 / 0 for a code without information on
    any factor: such codes are left out, and the score is 0 if there are no others.
    """
    information = mutual_information(representation, distributed_map)
    squares = np.square(information[information.max(axis=1) > MIN_INFORMATION])
    if not len(squares):
        return 0.0
    largest = squares.max(axis=1)
    others = max(squares.shape[1] - 1, 1)
    return float(np.mean(1 - (squares.sum(axis=1) - largest) / (largest * others)))


def sap(representation: Representation, seed: int, distributed_map: DistributedMap) -> float:
    """Return the separated attribute predictability of Kumar et al. 2018 (arXiv 1711.00848), section 3.

    The difference between the balanced accuracies with which a factor is predicted from its best code and
    from its second best code (0 if there is one code only); the score is its mean over factors. As in the
    paper, a continuous code is cut at one threshold fewer than the factor has values, and a dead code counts
    0. The paper leaves open how the thresholds are fitted, and tests on the training images; here they are
    those of a decision tree grown best split first, and other images are tested. A category predicts the
    value that is most likely in it. Even perfect codes score below 1, because the second best code is right
    by chance: for independent factors with n values the score is then approximately 1 - 1/n.

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

    return float(_gaps(distributed_map(codes.shape[1] * width, 1, row).reshape(-1, width)).mean())


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
    uses a regression error, but here values are classes. Of the paper's two predictors, lasso and random
    forests, this is the forest, because it predicts classes and also works for curved codes. Each split may
    use any of the codes, so that importances do not depend on random subsets of them. As in the paper, the
    depth is chosen on validation images, because deep trees fit noise; among depths that differ by chance the
    smallest is taken (the one-standard-error rule of Breiman et al. 1984, section 3.4.3).

    Args:
        representation: codes and factors of the images.
        seed: of the division into training and test images.
        distributed_map: divides the work among the processes.

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

    table = distributed_map(factors.shape[1], codes.shape[1] + 1, row)
    importances = table[:, :-1].T
    weights = importances.sum(axis=1)
    return DCI(
        float(weights @ _concentration(importances)) / (float(weights.sum()) or 1),
        float(_concentration(importances.T).mean()),
        float(table[:, -1].mean()),
    )


def _bins(code: np.ndarray, discrete: bool) -> np.ndarray:
    """Return the number of the bin or the category of each value, int64 [N]."""
    low, high = code.min(), code.max()
    if discrete or low == high:
        return np.unique(code, return_inverse=True)[1]
    return np.minimum((code - low) / (high - low) * BINS, BINS - 1).astype(np.int64)


def _gaps(table: np.ndarray) -> np.ndarray:
    """Return the largest value of each column minus the second largest (0 if there is none)."""
    ordered = np.sort(np.vstack([table, np.zeros(table.shape[1])]), axis=0)
    return ordered[-1] - ordered[-2]


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


def _concentration(weights: np.ndarray) -> np.ndarray:
    """Return 1 minus each row's entropy, divided by the largest possible entropy; 0 for a row of zeros."""
    totals = weights.sum(axis=1, keepdims=True)
    shares = weights / np.where(totals > 0, totals, 1)
    entropy = entr(shares).sum(axis=1) / np.log(max(weights.shape[1], 2))
    return np.where(totals[:, 0] > 0, 1 - entropy, 0.0)
