"""How far the classes of a shard set are sorted by shard."""

import numpy as np

# Defaults of train.batch_size and data.lanes.
BATCH, LANES = 128, 8
# Of the chi-square of a batch's class counts, relative to a random batch, from which on a set is reported.
MAX_RATIO = 1.5
MAX_CELLS = 10**7  # of the table of shards and classes; a larger one is not examined
MIN_DEVIATIONS = 6.0  # between a set's chi-square and that of random shards, else it is taken for chance


def sorted_warning(labels: list[np.ndarray]) -> str | None:
    """Return a message if a batch from a few shards at a time has other classes than a random one, else None.

    Args:
        labels: of each shard's images, int64 [n]; -1 where there is none.
    """
    labels = [shard[shard >= 0] for shard in labels if (shard >= 0).any()]
    classes = np.unique(np.concatenate(labels)) if labels else np.empty(0, np.int64)
    if min(len(labels), len(classes)) < 2 or len(labels) * len(classes) > MAX_CELLS:
        return None
    indices = [np.searchsorted(classes, shard) for shard in labels]
    counts = np.stack([np.bincount(shard, minlength=len(classes)) for shard in indices]).astype(float)
    lanes = min(LANES, len(counts))
    ratio = _chi_square_ratio(counts, BATCH // lanes)
    if ratio < MAX_RATIO:
        return None
    expected = _distinct_classes(counts, lanes)
    return (
        f"its classes are sorted by tar: a batch of {BATCH} images from {lanes} tars at a time contains "
        f"{expected:.1f} classes on average instead of {_random_classes(counts):.1f}; "
        "create a shuffled set with --reshard, or raise data.lanes"
    )


def _chi_square_ratio(counts: np.ndarray, share: int) -> float:
    """Return the expected chi-square of a batch's class counts, divided by that of a random batch.

    A batch of L lanes takes `share` images of each of L shards. With rho, the correlation of the classes of
    two images of one shard, the ratio is 1 + (share - 1) rho (the design effect of cluster samples).

    Args:
        counts: images by shard and class, [S, K].
        share: number of images that a batch takes from one shard.
    """
    shards, classes = counts.shape
    total = counts.sum()
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / total
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = (shards - 1) * (classes - 1)
    if chi_square < freedom + MIN_DEVIATIONS * np.sqrt(2 * freedom):
        return 1.0
    rho = (chi_square - freedom) / (total * (classes - 1))
    return 1 + (share - 1) * rho


def _distinct_classes(counts: np.ndarray, lanes: int) -> float:
    """Return the expected number of classes in a batch of `lanes` random shards."""
    shares = counts / counts.sum(1, keepdims=True)
    absent = ((1 - shares) ** (BATCH // lanes)).mean(0) ** lanes
    return float((1 - absent).sum())


def _random_classes(counts: np.ndarray) -> float:
    """Return the expected number of classes in a random batch."""
    shares = counts.sum(0) / counts.sum()
    return float((1 - (1 - shares) ** BATCH).sum())
