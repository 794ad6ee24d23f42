"""Scores of disentanglement by interventions: sets of images that agree in one factor of variation."""

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from infogan_dist.rng import uniforms
from infogan_dist.scores.distributed_map import DistributedMap
from infogan_dist.scores.representation import TEST_SIZE, TRAIN_SIZE, Representation

BATCH = 64  # images of a vote, pairs of images of a feature vector
PRUNING_THRESHOLD = 0.05  # standard deviation of a code that `factor_vae` uses (Locatello et al. 2019)


def vote_protocol() -> dict[str, int]:
    """Return the numbers of images and votes, for protocols."""
    return {"batch": BATCH, "train_votes": TRAIN_SIZE, "test_votes": TEST_SIZE}


def factor_vae(
    representation: Representation,
    seed: int,
    distributed_map: DistributedMap,
    threshold: float = PRUNING_THRESHOLD,
) -> float:
    """Return the score of Kim & Mnih 2018 (arXiv 1802.05983), section 4; chance is approximately 1 / K.

    A vote takes a batch of images that agree in one factor, and the code with the smallest variance in the
    batch relative to all images. Each code then predicts the factor with which it occurs most often; the
    score is the accuracy. As in disentanglement_lib, codes with a small standard deviation are left out, and
    the accuracy is that of votes that were not counted for the majority; the score is 0 if all codes are left
    out. The variance of a category is Gini's (Gini 1971). In contrast to the paper, images are drawn with
    replacement from the given ones, each value with its frequency.

    Args:
        representation: codes and factors of the images.
        seed: of the votes.
        distributed_map: divides the votes among the processes.
        threshold: standard deviation below which a code is left out; 0: only dead codes are, and without any
            other code the score is chance.

    Returns:
        The score, in [0, 1].
    """
    codes, factors = representation.standard_codes, representation.varying_factors
    sampler = _FactorSampler(factors)
    discrete = representation.discrete
    variances = _variances(codes, discrete)
    scales = np.where(discrete, np.sqrt(variances), representation.codes.std(axis=0, ddof=1))
    live = (variances > 0) & (scales >= threshold)
    if threshold > 0 and not live.any():
        return 0.0

    def vote(i: int) -> tuple[int, int]:
        u = uniforms(seed, "factor_vae", i, 1, BATCH + 2)[0]
        factor, image = int(u[0] * factors.shape[1]), int(u[1] * len(factors))
        batch = codes[sampler.draw(factor, np.full(BATCH, image), u[2:])]
        ratio = np.full(len(live), np.inf)
        np.divide(_variances(batch, discrete), variances, out=ratio, where=live)
        return factor, int(ratio.argmin())

    votes = distributed_map(TRAIN_SIZE + TEST_SIZE, 2, vote).astype(np.int64)
    counts = np.zeros((factors.shape[1], codes.shape[1]))
    np.add.at(counts, tuple(votes[:TRAIN_SIZE].T), 1)
    factor, code = votes[TRAIN_SIZE:].T
    return float(np.mean(counts.argmax(axis=0)[code] == factor))


def beta_vae(
    representation: Representation,
    seed: int,
    distributed_map: DistributedMap,
    standardised: bool = False,
) -> float:
    """Return the score of Higgins et al. 2017 ("beta-VAE"), section 3; chance is approximately 1 / K.

    A feature vector is the mean absolute difference of the codes over a batch of pairs of images that agree
    in one factor; the score is the accuracy of a linear classifier that predicts this factor. As in
    disentanglement_lib, it is a regularised logistic regression on the codes as they are, so that a code of
    small scale has little influence. Two categories differ by 0 or 1. Pairs are drawn with replacement from
    the given images. With one factor only the score is 1.

    Args:
        representation: codes and factors of the images.
        seed: of the pairs.
        distributed_map: divides the pairs among the processes.
        standardised: give each code unit variance; the paper leaves the scale of the codes open.

    Returns:
        The score, in [0, 1].
    """
    codes = representation.standard_codes if standardised else representation.codes
    factors = representation.varying_factors
    if factors.shape[1] == 1:
        return 1.0
    sampler = _FactorSampler(factors)
    discrete = np.array(representation.discrete)

    def example(i: int) -> list[float]:
        u = uniforms(seed, "beta_vae", i, 1, 2 * BATCH + 1)[0]
        factor, first = int(u[0] * factors.shape[1]), (u[1 : BATCH + 1] * len(codes)).astype(np.int64)
        difference = np.abs(codes[first] - codes[sampler.draw(factor, first, u[BATCH + 1 :])])
        return [factor, *np.where(discrete, difference > 0, difference).mean(axis=0)]

    examples = distributed_map(TRAIN_SIZE + TEST_SIZE, codes.shape[1] + 1, example)
    targets, features = examples[:, 0].astype(np.int64), examples[:, 1:]

    def accuracy(_: int) -> float:
        with warnings.catch_warnings():
            # Codes of very different scales need more iterations; disentanglement_lib stops after 100.
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier = LogisticRegression(max_iter=1000).fit(features[:TRAIN_SIZE], targets[:TRAIN_SIZE])
        return float(classifier.score(features[TRAIN_SIZE:], targets[TRAIN_SIZE:]))

    return float(distributed_map(1, 1, accuracy)[0, 0])


def _variances(codes: np.ndarray, discrete: Sequence[bool]) -> np.ndarray:
    """Return the variance of each code; of a category Gini's, half the probability that two images differ."""
    size = len(codes)
    variances = codes.var(axis=0, ddof=1)
    for i in np.flatnonzero(discrete):
        counts = np.bincount(codes[:, i].astype(np.int64))
        variances[i] = (size**2 - np.square(counts).sum()) / (2 * size * (size - 1))
    return variances


class _FactorSampler:
    """Draws images that agree with given images in a factor.

    Args:
        factors: int64 [N, K], each with values 0, 1, ...
    """

    def __init__(self, factors: np.ndarray):
        self.factors = factors
        # The images sorted by each factor, so that those with the same value are neighbours.
        self.order = np.argsort(factors, axis=0, kind="stable")
        self.counts = [np.bincount(f) for f in factors.T]
        self.starts = [np.cumsum(count) - count for count in self.counts]

    def draw(self, factor: int, images: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Return, for each image, an image with the same value of the factor, which may be the same image.

        Args:
            factor: column of the factors.
            images: indices, int64 [n].
            u: uniform random numbers in (0, 1), [n].

        Returns:
            Indices, int64 [n].
        """
        values = self.factors[images, factor]
        positions = self.starts[factor][values] + (u * self.counts[factor][values]).astype(np.int64)
        return self.order[positions, factor]
