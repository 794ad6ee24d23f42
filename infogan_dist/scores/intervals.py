"""95% intervals of a mean and of a share."""

import math

import numpy as np

NORMAL_95 = 1.96  # standard errors on either side


def mean_interval(values: np.ndarray) -> tuple[float, list[float]]:
    """Return the mean of independent values [N], N >= 2, and its normal 95% interval."""
    mean = float(values.mean())
    error = NORMAL_95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, [mean - error, mean + error]


def wilson_interval(share: float, count: int) -> list[float]:
    """Return the 95% interval of Wilson 1927 for a binomial share.

    In contrast to the normal interval, it stays within [0, 1] and has a width above 0 for shares of 0 and 1.

    Args:
        share: the observed share, in [0, 1].
        count: number of independent trials, at least 1.

    Returns:
        The lower and the upper limit.
    """
    square = NORMAL_95**2 / count
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return [max(centre - half, 0.0), min(centre + half, 1.0)]
