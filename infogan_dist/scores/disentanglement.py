"""Scores of disentanglement, on images whose factors of variation are known.

The names without a suffix follow disentanglement_lib, the program of Locatello et al. 2019 (arXiv
1811.12359), whose values papers print; a suffix marks a variant. Unlike in that program, the images are a
given set, from which images are drawn with replacement where a score needs images with certain factors. Each
score raises `DataError` if no factor varies.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.special import entr
from sklearn.metrics import mutual_info_score

from infogan_dist.scores.distributed_map import DistributedMap
from infogan_dist.scores.interventions import PRUNING_THRESHOLD, beta_vae, factor_vae, vote_protocol
from infogan_dist.scores.predictors import (
    BOOSTING_STAGES,
    DEPTHS,
    SVM_COST,
    TREES,
    dci,
    dci_forest,
    explicitness,
    gaps,
    sap,
    sap_threshold,
)
from infogan_dist.scores.representation import Representation

BINS = 20  # of a continuous code, for its mutual information
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
    yield "sap_threshold", sap_threshold(representation, seed, distributed_map)
    for prefix, predict in (("dci", dci), ("dci_forest", dci_forest)):
        result = predict(representation, seed, distributed_map)
        yield f"{prefix}_disentanglement", result.disentanglement
        yield f"{prefix}_completeness", result.completeness
        yield f"{prefix}_informativeness", result.informativeness
    yield "factor_vae", factor_vae(representation, seed, distributed_map)
    yield "factor_vae_unpruned", factor_vae(representation, seed, distributed_map, threshold=0.0)
    yield "beta_vae", beta_vae(representation, seed, distributed_map)
    yield "beta_vae_standardised", beta_vae(representation, seed, distributed_map, standardised=True)
    yield "modularity", modularity(representation, distributed_map)
    yield "modularity_live", modularity(representation, distributed_map, live_only=True)
    yield "explicitness", explicitness(representation, seed, distributed_map)


def protocols(representation: Representation) -> dict[str, dict[str, Any]]:
    """Return the predictor, bins, votes and numbers of images of each score, by its name."""
    train, test = representation.split_sizes
    images = {"train_images": train, "test_images": test}
    information = {"bins": BINS}
    boosted = {"predictor": f"gradient boosting, {BOOSTING_STAGES} stages of depth 3", **images}
    validation = {
        "train_images": train - train // 5,
        "validation_images": train // 5,
        "test_images": test,
    }
    depths = ", ".join(map(str, DEPTHS))
    forest = {"predictor": f"random forest, {TREES} trees of depth {depths} by validation", **validation}
    votes, parts = vote_protocol(), ("disentanglement", "completeness", "informativeness")
    standardised = {"codes": "mean 0 and variance 1"}
    return {
        "mig": information,
        "sap": {"predictor": f"linear SVM, C = {SVM_COST}, balanced classes", "codes": "raw", **images},
        "sap_threshold": {"predictor": "thresholds of a decision tree", **images},
        **{f"dci_{part}": boosted for part in parts},
        **{f"dci_forest_{part}": forest for part in parts},
        "factor_vae": {"predictor": "majority vote", "smallest_deviation": PRUNING_THRESHOLD, **votes},
        "factor_vae_unpruned": {"predictor": "majority vote", **votes},
        "beta_vae": {"predictor": "logistic regression", "codes": "raw", **votes},
        "beta_vae_standardised": {"predictor": "logistic regression", **standardised, **votes},
        "modularity": {**information, "dead_codes": "score 0"},
        "modularity_live": {**information, "dead_codes": "left out"},
        "explicitness": {"predictor": "logistic regression", **standardised, **images},
    }


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
    takes the information under q(z|x), whereas here, as in disentanglement_lib, it is that of a point
    estimate in bins. The bins cannot distinguish all values of a factor with more than `BINS` values, so that
    its gap stays below 1.
    """
    shares = (np.bincount(f) / len(f) for f in representation.varying_factors.T)
    entropies = np.array([entr(share).sum() for share in shares])
    return float((gaps(mutual_information(representation, distributed_map)) / entropies).mean())


def modularity(
    representation: Representation, distributed_map: DistributedMap, live_only: bool = False
) -> float:
    """Return the modularity of Ridgeway & Mozer 2018 (arXiv 1802.05312), section 3, in [0, 1].

    A code that has information on one factor only scores 1, one that has the same information on all factors
    scores 0; the result is the mean over codes.

    Args:
        representation: codes and factors of the images.
        distributed_map: divides the codes among the processes.
        live_only: leave out codes without information on any factor, for which the paper's ratio is 0 / 0,
            instead of counting them as 0, as disentanglement_lib does.

    Returns:
        The score; 0 if there is no code with information.
    """
    information = mutual_information(representation, distributed_map)
    live = information.max(axis=1) > MIN_INFORMATION
    squares = np.square(information[live])
    if not len(squares):
        return 0.0
    largest = squares.max(axis=1)
    others = max(squares.shape[1] - 1, 1)
    modularities = 1 - (squares.sum(axis=1) - largest) / (largest * others)
    return float(np.mean(modularities) if live_only else modularities.sum() / len(live))


def _bins(code: np.ndarray, discrete: bool) -> np.ndarray:
    """Return the number of the bin or the category of each value, int64 [N]."""
    low, high = code.min(), code.max()
    if discrete or low == high:
        return np.unique(code, return_inverse=True)[1]
    return np.minimum((code - low) / (high - low) * BINS, BINS - 1).astype(np.int64)
