"""Scores of disentanglement, on data whose factors are known.

All take what Q reads from N images, and the factors from which those images were made:

    codes     float64 [N, D]: a column a code variable, category numbers where `discrete[i]`
    discrete  D flags
    factors   int64 [N, K]: a column a factor, its values 0, 1, ...

Two images or more, codes finite. A factor with a single value says nothing and is left out; where all are
such, each score raises `DataError`. A code with a single value is dead: it tells nothing of any factor, and
no score divides by its distributed_map. No score depends on the place or scale of a continuous code, nor, but for
the forests of `dci`, on the numbers of categories. Numbers of bins, images and votes are those of Locatello
et al. 2019 (arXiv 1811.12359), who ran all these scores side by side, where a paper leaves them open.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import entr
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score
from sklearn.tree import DecisionTreeClassifier

from infogan_dist.errors import DataError
from infogan_dist.rng import permutation, uniforms
from infogan_dist.scores.distributed_map import DistributedMap

BINS = 20  # of a continuous code, for its mutual information
FITTED, JUDGED = 10_000, 5_000  # images, votes or points that a classifier is fitted to and judged on
BATCH = 64  # images of a vote, pairs of a point
TREES, DEPTHS = 10, (2, 4, 8, 16)  # of a forest; the depth is chosen on images that it has not seen
NOTHING = 1e-9  # nats: rounding, where a code says nothing at all


def disentanglement(
    codes: np.ndarray,
    discrete: Sequence[bool],
    factors: np.ndarray,
    seed: int,
    distributed_map: DistributedMap,
) -> Iterator[tuple[str, float]]:
    """Yields every score of this module as (name, value); each is at most 1, and 1 is best."""
    yield "mig", mig(codes, discrete, factors, distributed_map)
    yield "sap", sap(codes, discrete, factors, seed, distributed_map)
    found = dci(codes, discrete, factors, seed, distributed_map)
    yield "dci_disentanglement", found.disentanglement
    yield "dci_completeness", found.completeness
    yield "dci_informativeness", found.informativeness
    yield "factor_vae", factor_vae(codes, discrete, factors, seed, distributed_map)
    yield "beta_vae", beta_vae(codes, discrete, factors, seed, distributed_map)
    yield "modularity", modularity(codes, discrete, factors, distributed_map)


def mutual_information(
    codes: np.ndarray, discrete: Sequence[bool], factors: np.ndarray, distributed_map: DistributedMap
) -> np.ndarray:
    """The empirical mutual information of each code and each varying factor, in nats: float64 [D, K].

    A continuous code is cut into `BINS` bins of equal width over its range.
    """
    factors = _varying(factors)

    def row(i: int) -> list[float]:
        return [mutual_info_score(_bins(codes[:, i], discrete[i]), factor) for factor in factors.T]

    return distributed_map(codes.shape[1], factors.shape[1], row)


def mig(
    codes: np.ndarray, discrete: Sequence[bool], factors: np.ndarray, distributed_map: DistributedMap
) -> float:
    """The mutual information gap of Chen et al. 2018 (arXiv 1802.04942), eq. 6, in [0, 1].

    How much more of a factor its best code knows than its second best (0 if there is one code), as a share
    of the factor's entropy; the mean over factors. The paper takes the information under q(z|x); what is
    here is Q's point estimate, in bins. The bins cannot tell all values of a factor with more than `BINS`
    values apart, so its gap stays below 1.
    """
    shares = (np.bincount(f) / len(f) for f in _varying(factors).T)
    entropies = np.array([entr(share).sum() for share in shares])
    return float((_gaps(mutual_information(codes, discrete, factors, distributed_map)) / entropies).mean())


def modularity(
    codes: np.ndarray, discrete: Sequence[bool], factors: np.ndarray, distributed_map: DistributedMap
) -> float:
    """The modularity of Ridgeway & Mozer 2018 (arXiv 1802.05312), section 3, in [0, 1].

    1 for a code that knows one factor alone, 0 for one that knows all alike; the mean over codes. The
    paper's ratio is 0 / 0 for a code that says nothing of any factor: it is left out, and the score is 0
    where all are such.
    """
    information = mutual_information(codes, discrete, factors, distributed_map)
    squares = np.square(information[information.max(axis=1) > NOTHING])
    if not len(squares):
        return 0.0
    largest = squares.max(axis=1)
    others = max(squares.shape[1] - 1, 1)
    return float(np.mean(1 - (squares.sum(axis=1) - largest) / (largest * others)))


def sap(
    codes: np.ndarray,
    discrete: Sequence[bool],
    factors: np.ndarray,
    seed: int,
    distributed_map: DistributedMap,
) -> float:
    """The separated attribute predictability of Kumar et al. 2018 (arXiv 1711.00848), section 3, in [0, 1].

    By how much a factor is better told from its best code than from its second best (0 if there is one
    code), in balanced accuracy; the mean over factors. As in the paper, a continuous code is cut at
    thresholds, one fewer than the factor has values, and a dead code counts 0. The paper leaves open how the
    thresholds are found and scores on the images they were fitted to; here they are those of a decision tree
    grown best cut first, and other images judge. A category stands for the value that is likeliest in it.
    Chance keeps the score of perfect codes below 1: of independent factors with n values it is about 1 - 1/n.
    """
    codes, factors = _standard(codes, discrete), _varying(factors)
    width = factors.shape[1]
    fitted, judged = _split(seed, "sap", len(codes))

    def row(i: int) -> float:
        code, factor = codes[:, i // width], factors[:, i % width]
        if not code.any():
            return 0.0
        told = (_told_by_category if discrete[i // width] else _told_by_thresholds)(code, factor, fitted)
        right = np.bincount(factor[judged], weights=told[judged] == factor[judged])
        count = np.bincount(factor[judged])
        return float(np.mean(right[count > 0] / count[count > 0]))

    return float(_gaps(distributed_map(codes.shape[1] * width, 1, row).reshape(-1, width)).mean())


@dataclass(frozen=True)
class DCI:
    """What `dci` finds, each in [0, 1]."""

    disentanglement: float
    completeness: float
    informativeness: float


def dci(
    codes: np.ndarray,
    discrete: Sequence[bool],
    factors: np.ndarray,
    seed: int,
    distributed_map: DistributedMap,
) -> DCI:
    """Disentanglement, completeness and informativeness of Eastwood & Williams 2018, section 2.

    Each factor is told from all codes; `disentanglement` says how far a code serves one factor alone (the
    mean over codes, weighted by what they serve), `completeness` how far a factor is told from one code
    alone (the mean over factors), `informativeness` how often it is told right on images not seen before
    (the paper gives the error of regression; here values are classes). Of the paper's two predictors, lasso
    and random forests, it is the forest: it tells classes, and from curved codes too. Each cut may choose
    among all codes, so that no importance comes from a lottery. The depth is chosen on images held out, as
    in the paper, for deep trees find use for noise; among depths that differ by chance it is the smallest
    (the one-standard-error rule of Breiman et al. 1984, section 3.4.3).
    """
    codes, factors = _standard(codes, discrete), _varying(factors)
    fitted, judged = _split(seed, "dci", len(codes))
    chosen_on, grown_on = fitted[: len(fitted) // 5], fitted[len(fitted) // 5 :]

    def row(k: int) -> list[float]:
        def grown(depth: int) -> RandomForestClassifier:
            forest = RandomForestClassifier(
                TREES, criterion="entropy", max_depth=depth, random_state=0, n_jobs=1,
                max_features=None,  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
            return forest.fit(codes[grown_on], factors[grown_on, k])

        forests = [grown(depth) for depth in DEPTHS]
        right = np.array([f.score(codes[chosen_on], factors[chosen_on, k]) for f in forests])
        error = np.sqrt(right.max() * (1 - right.max()) / len(chosen_on))
        best = forests[int(np.argmax(right >= right.max() - error))]
        return [*best.feature_importances_, best.score(codes[judged], factors[judged, k])]

    table = distributed_map(factors.shape[1], codes.shape[1] + 1, row)
    importance = table[:, :-1].T
    served = importance.sum(axis=1)
    return DCI(
        float(served @ _concentration(importance)) / (float(served.sum()) or 1),
        float(_concentration(importance.T).mean()),
        float(table[:, -1].mean()),
    )


def factor_vae(
    codes: np.ndarray,
    discrete: Sequence[bool],
    factors: np.ndarray,
    seed: int,
    distributed_map: DistributedMap,
) -> float:
    """The score of Kim & Mnih 2018 (arXiv 1802.05983), section 4; chance is about 1 / K.

    A vote fixes one factor at a value, draws a batch of images that have it, and names the code that varies
    least there, compared with all images. Each code is then taken for the factor it was named for most
    often; the score is how often that is right. A category's variance is Gini's (Gini 1971). Here the
    images come, with replacement, from those given, a value as often as they have it; and votes that were
    not counted for the majority judge it. Dead codes are never named.
    """
    codes, factors = _standard(codes, discrete), _varying(factors)
    alike = _Alike(factors)
    overall = _variances(codes, discrete)
    live = overall > 0

    def vote(i: int) -> tuple[int, int]:
        u = uniforms(seed, "factor_vae", i, 1, BATCH + 2)[0]
        factor, image = int(u[0] * factors.shape[1]), int(u[1] * len(factors))
        batch = codes[alike.draw(factor, np.full(BATCH, image), u[2:])]
        ratio = np.full(len(live), np.inf)
        np.divide(_variances(batch, discrete), overall, out=ratio, where=live)
        return factor, int(ratio.argmin())

    votes = distributed_map(FITTED + JUDGED, 2, vote).astype(np.int64)
    counts = np.zeros((factors.shape[1], codes.shape[1]))
    np.add.at(counts, tuple(votes[:FITTED].T), 1)
    factor, code = votes[FITTED:].T
    return float(np.mean(counts.argmax(axis=0)[code] == factor))


def beta_vae(
    codes: np.ndarray,
    discrete: Sequence[bool],
    factors: np.ndarray,
    seed: int,
    distributed_map: DistributedMap,
) -> float:
    """The score of Higgins et al. 2017 ("beta-VAE"), section 3; chance is about 1 / K.

    A point is the mean of |difference| of the codes over a batch of pairs of images that agree in one
    factor; the score is how often a linear classifier, fitted to other points, tells which factor it was.
    The paper leaves the codes' scale open: here each has unit variance. Two categories differ by 0 or 1.
    Pairs come, with replacement, from the images given.
    """
    codes, factors = _standard(codes, discrete), _varying(factors)
    if factors.shape[1] == 1:
        return 1.0  # there is nothing else to tell
    alike = _Alike(factors)
    categories = np.array(discrete)

    def point(i: int) -> list[float]:
        u = uniforms(seed, "beta_vae", i, 1, 2 * BATCH + 1)[0]
        factor, first = int(u[0] * factors.shape[1]), (u[1 : BATCH + 1] * len(codes)).astype(np.int64)
        difference = np.abs(codes[first] - codes[alike.draw(factor, first, u[BATCH + 1 :])])
        return [factor, *np.where(categories, difference > 0, difference).mean(axis=0)]

    points = distributed_map(FITTED + JUDGED, codes.shape[1] + 1, point)
    told, read = points[:, 0].astype(np.int64), points[:, 1:]

    def accuracy(_: int) -> float:
        classifier = LogisticRegression(max_iter=1000).fit(read[:FITTED], told[:FITTED])
        return float(classifier.score(read[FITTED:], told[FITTED:]))

    return float(distributed_map(1, 1, accuracy)[0, 0])


def _varying(factors: np.ndarray) -> np.ndarray:
    """The factors with more than one value, each with all of its values 0, 1, ..., n - 1."""
    columns = [np.unique(f, return_inverse=True)[1] for f in factors.T if f.min() < f.max()]
    if not columns:
        raise DataError("factors: none has more than one value among these images; score images that differ")
    return np.stack(columns, axis=1)


def _standard(codes: np.ndarray, discrete: Sequence[bool]) -> np.ndarray:
    """Each continuous code with mean 0 and variance 1, categories numbered from 0; dead codes exactly 0."""
    standard = np.zeros(codes.shape)
    for i, code in enumerate(codes.T):
        if discrete[i]:
            standard[:, i] = np.unique(code, return_inverse=True)[1]
        elif code.min() < code.max():
            standard[:, i] = (code - code.mean()) / code.std()
    return standard


def _split(seed: int, purpose: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images a classifier is fitted to and which judge it: two to one, drawn from all."""
    order = permutation(seed, purpose, 0, size)[: FITTED + JUDGED]
    cut = len(order) * FITTED // (FITTED + JUDGED)
    return order[:cut], order[cut:]


def _bins(code: np.ndarray, category: bool) -> np.ndarray:
    low, high = code.min(), code.max()
    if category or low == high:
        return np.unique(code, return_inverse=True)[1]
    return np.minimum((code - low) / (high - low) * BINS, BINS - 1).astype(np.int64)


def _gaps(table: np.ndarray) -> np.ndarray:
    """The largest less the second largest (0 if there is none) of each column."""
    ordered = np.sort(np.vstack([table, np.zeros(table.shape[1])]), axis=0)
    return ordered[-1] - ordered[-2]


def _told_by_category(code: np.ndarray, factor: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    code = code.astype(np.int64)
    counts = np.zeros((code.max() + 1, factor.max() + 1))
    np.add.at(counts, (code[fitted], factor[fitted]), 1)
    likely = counts / np.maximum(counts.sum(axis=0), 1)  # each value of the factor weighs the same
    return likely.argmax(axis=1)[code]


def _told_by_thresholds(code: np.ndarray, factor: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    tree = DecisionTreeClassifier(
        criterion="entropy", max_leaf_nodes=int(factor.max()) + 1, class_weight="balanced", random_state=0
    )
    return tree.fit(code[fitted, None], factor[fitted]).predict(code[:, None])


def _concentration(weights: np.ndarray) -> np.ndarray:
    """1 less each row's entropy as a share of the largest there can be; 0 for a row of zeros."""
    totals = weights.sum(axis=1, keepdims=True)
    shares = weights / np.where(totals > 0, totals, 1)
    entropy = entr(shares).sum(axis=1) / np.log(max(weights.shape[1], 2))
    return np.where(totals[:, 0] > 0, 1 - entropy, 0.0)


def _variances(codes: np.ndarray, discrete: Sequence[bool]) -> np.ndarray:
    """Of each code; of a category Gini's, half the chance that two images differ."""
    size = len(codes)
    variances = codes.var(axis=0, ddof=1)
    for i in np.flatnonzero(discrete):
        counts = np.bincount(codes[:, i].astype(np.int64))
        variances[i] = (size**2 - np.square(counts).sum()) / (2 * size * (size - 1))
    return variances


class _Alike:
    """Draws images that agree in a factor."""

    def __init__(self, factors: np.ndarray):
        self.factors = factors
        self.order = np.argsort(factors, axis=0, kind="stable")
        self.count = [np.bincount(f) for f in factors.T]
        self.start = [np.cumsum(count) - count for count in self.count]

    def draw(self, factor: int, images: np.ndarray, u: np.ndarray) -> np.ndarray:
        """For each image one with its value of the factor, by uniforms: int64 [n]; it may be the same."""
        value = self.factors[images, factor]
        place = self.start[factor][value] + (u * self.count[factor][value]).astype(np.int64)
        return self.order[place, factor]
