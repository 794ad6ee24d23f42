"""Fidelity: how close generated images are to real ones, as distances between two sets of features [N, d].

The rows of a set have the same order on every process. Work is divided by a `DistributedMap`, and each part
depends only on its index, so that any number of processes computes the same numbers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from infogan_dist.data.finite import SAMPLE_SEED
from infogan_dist.errors import ConfigError
from infogan_dist.rng import permutation, uniforms
from infogan_dist.scores.distributed_map import DistributedMap
from infogan_dist.scores.feature_cache import real_features
from infogan_dist.scores.features import DIGIT_SHAPE, load_features
from infogan_dist.scores.score import Score, ScoreUnavailableError
from infogan_dist.scores.scored_model import ScoredModel

NEIGHBOURS = 3  # k of precision and recall, as in their paper
SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance, as in its paper
RESAMPLES = 20  # of the bootstrap
CELLS = 2**22  # distances that a process computes at a time: 32 MiB


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution fitted to features.

    Attributes:
        mean: float64 [d].
        root: float64 [min(N, d), d]; root.T @ root is the unbiased covariance. The covariance itself is never
            computed, because that would square the rounding error.
    """

    mean: np.ndarray
    root: np.ndarray


def fit_gaussian(features: np.ndarray) -> Gaussian:
    """Fit a Gaussian to features [N, d]. Raises `ConfigError` for fewer than two rows."""
    _require_rows(2, features)
    mean = features.mean(0)
    root = np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r")
    return Gaussian(mean, np.asarray(root))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return FID between features [N, d] and [M, d] (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    It decreases with the number of rows: compare only distances computed from equal numbers.
    """
    return gaussian_distance(fit_gaussian(a), fit_gaussian(b))


def gaussian_distance(p: Gaussian, q: Gaussian) -> float:
    """Return |m_p - m_q|^2 + tr(S_p + S_q - 2 (S_p S_q)^(1/2)), at least 0.

    With S = R^T R the trace of the root is the sum of the singular values of R_p R_q^T. It is real, and as
    exact for singular covariances as for others.
    """
    cross = np.linalg.svd(p.root @ q.root.T, compute_uv=False).sum()
    traces = np.square(p.root).sum() + np.square(q.root).sum()
    return max(float(np.square(p.mean - q.mean).sum() + traces - 2 * cross), 0.0)


def frechet_deviation(
    real: Gaussian, others: np.ndarray, seed: int, distributed_map: DistributedMap
) -> float:
    """Return the standard deviation of FID between samples of as many images, by the bootstrap.

    Args:
        real: fitted to the features of the real images.
        others: features [N, d] of the images that are compared with them.
        seed: of the `RESAMPLES` resamples of `others`, which are drawn with replacement.
        distributed_map: divides the resamples among the processes.
    """
    count = len(others)

    def resample_distance(i: int) -> list[float]:
        rows = (uniforms(seed, "scores/bootstrap", i, 1, count)[0] * count).astype(np.int64)
        return [gaussian_distance(real, fit_gaussian(others[rows]))]

    return float(distributed_map(RESAMPLES, 1, resample_distance).std(ddof=1))


def kernel_distance(
    a: np.ndarray, b: np.ndarray, seed: int, distributed_map: DistributedMap
) -> tuple[float, float | None]:
    """Return KID (Binkowski et al. 2018, arXiv 1801.01401, section 4).

    It is the mean of `squared_mmd` over 100 random subsets of 1,000 rows of each set; of sets with fewer
    rows, over one subset as large as the smaller set.

    Args:
        a, b: features [N, d] and [M, d].
        seed: of the subsets.
        distributed_map: divides the subsets among the processes.

    Returns:
        The mean, and, as in the paper, the standard deviation between subsets; None where all subsets would
        be equal, because the sets have at most 1,000 rows.

    Raises:
        ConfigError: a set has fewer than two rows.
    """
    _require_rows(2, a, b)
    size = min(SUBSET_SIZE, len(a), len(b))

    def subset_distance(i: int) -> list[float]:
        rows = [permutation(seed, f"scores/kernel/{j}", i, len(s))[:size] for j, s in enumerate((a, b))]
        return [squared_mmd(a[rows[0]], b[rows[1]])]

    differ = size == SUBSET_SIZE and max(len(a), len(b)) > size
    distances = distributed_map(SUBSETS if differ else 1, 1, subset_distance)
    return float(distances.mean()), float(distances.std()) if differ else None


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased estimate of MMD^2 between [N, d] and [M, d], with the kernel (x.y / d + 1)^3.

    It may be negative. Binkowski et al. 2018, arXiv 1801.01401, section 4.
    """

    def kernel(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        base = p @ q.T / x.shape[1] + 1
        return base * base * base  # several times as fast as ** 3

    def within(p: np.ndarray) -> float:
        k = kernel(p, p)
        return (k.sum() - np.trace(k)) / (len(p) * (len(p) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def precision_recall(
    real: np.ndarray, generated: np.ndarray, distributed_map: DistributedMap, k: int = NEIGHBOURS
) -> tuple[float, float]:
    """Return precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2).

    The manifold of a set is the union of balls around its points, each with the distance to the point's k-th
    nearest neighbour as its radius.

    Args:
        real, generated: features [N, d] and [M, d].
        distributed_map: divides the rows among the processes.
        k: number of the neighbour that determines a radius.

    Returns:
        The share of generated features in the manifold of the real ones, and the share of real features in
        the manifold of the generated ones.

    Raises:
        ConfigError: a set has fewer than k + 1 rows.
    """
    _require_rows(k + 1, real, generated)
    real, generated = _on_grid(real, generated)
    return (
        float(_inside(generated, real, _radii(real, k, distributed_map), distributed_map).mean()),
        float(_inside(real, generated, _radii(generated, k, distributed_map), distributed_map).mean()),
    )


def _on_grid(*sets: np.ndarray) -> list[np.ndarray]:
    """Scale the sets, and round them to integers so small that their squared distances are exact.

    A squared distance |x|^2 + |y|^2 - 2 x.y of numbers up to 2^b stays below d 2^(2b + 2). Where that is at
    most 2^53 no sum is rounded, in any order of summation, and equal distances compare as equal. b is 20 for
    d = 2048 and 22 for d = 64, close to the precision of float32 features.
    """
    bits = int(51 - np.log2(sets[0].shape[1])) // 2
    _, exponent = np.frexp(max(np.abs(s).max() for s in sets))
    return [np.rint(np.ldexp(s, bits - exponent)) for s in sets]


def _radii(points: np.ndarray, k: int, distributed_map: DistributedMap) -> np.ndarray:
    """Return the squared distance of each point to its k-th nearest neighbour among the others."""
    # Sorted by distance, the first is the point itself, or another point with the same coordinates.
    return _by_rows(points, points, distributed_map, lambda squares: np.partition(squares, k, axis=1)[:, k])


def _inside(
    queries: np.ndarray, points: np.ndarray, radii: np.ndarray, distributed_map: DistributedMap
) -> np.ndarray:
    """Return 1 for each query within the radius of at least one point, else 0."""
    return _by_rows(queries, points, distributed_map, lambda squares: np.any(squares <= radii, axis=1))


def _by_rows(
    queries: np.ndarray,
    points: np.ndarray,
    distributed_map: DistributedMap,
    reduce: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Map the squared distances [n, M] of each block of queries to [n] by `reduce`; return float64 [N]."""
    rows = max(1, min(CELLS // len(points), len(queries)))
    norms = np.square(points).sum(1)

    def block(i: int) -> np.ndarray:
        # The last block is padded with the last query; the values of the padding are cut off below.
        part = queries[np.minimum(np.arange(i * rows, (i + 1) * rows), len(queries) - 1)]
        squares = part @ points.T
        squares *= -2
        squares += norms
        squares += np.square(part).sum(1)[:, None]
        return reduce(squares)

    return distributed_map(-(-len(queries) // rows), rows, block).reshape(-1)[: len(queries)]


def _require_rows(minimum: int, *sets: np.ndarray) -> None:
    smallest = min(map(len, sets))
    if smallest < minimum:
        raise ConfigError(
            f"fidelity: {smallest} images are too few, at least {minimum} are needed; "
            "increase scores.images or scores.limit"
        )


def fidelity(model: ScoredModel) -> Iterator[Score]:
    """Compute distances of the generated images to the training images.

    Yields:
        `fid` and `kid`, of which lower values are better, `precision` and `recall`, in [0, 1]. If there are
        held-out real images, `fid_of_test_images` is their FID, for comparison: that of a perfect generator.

    Raises:
        ScoreUnavailableError: the images are not digits, and no other network is named.
        ConfigError: there are too few images, or the network does not fit them.
    """
    shape, choice = model.manifests["train"].image_shape, model.config.scores.features
    if choice is None and shape != DIGIT_SHAPE:
        raise ScoreUnavailableError(
            "needs scores.features=FILE, a TorchScript network, for images that are not digits of 28x28"
        )
    features = load_features(choice, shape, model.engine.device)
    distributed_map, seed = model.distributed_map, model.config.seed
    real = real_features(model, "train", features)
    generated = model.per_image(
        model.generated_sizes, features.width, lambda i: features(model.generated_chunk(i)).double().cpu()
    )
    protocol: dict[str, Any] = {
        "samples": len(generated),
        "real_images": len(real),
        "sampling": model.datasets["train"].sampling,
        "split": "train",
        "generator": model.generator_weights,
        "features": f"{features.name}, {features.fingerprint[:12]}",
    }
    yield _frechet_score("fid", real, generated, protocol, model)
    mean, deviation = kernel_distance(real, generated, seed, distributed_map)
    details = {} if deviation is None else {"deviation": deviation}
    yield Score("kid", mean, {**protocol, **details}, higher_is_better=False)
    count = min(len(real), len(generated))
    equal_sizes = {**protocol, "samples": count, "real_images": count, "neighbours": NEIGHBOURS}
    if count < len(real):
        equal_sizes["sampling"] = f"{count:,} random of {model.manifests['train'].samples:,} images"
    manifolds = _random_rows(real, count), generated[:count]
    precision, recall = precision_recall(*manifolds, distributed_map)
    yield Score("precision", precision, equal_sizes)
    yield Score("recall", recall, equal_sizes)
    if "test" in model.manifests:
        test = real_features(model, "test", features)
        names = ("real_images", "features")
        held_out = {"samples": len(test), **{name: protocol[name] for name in names}}
        held_out["sampling"] = f"{protocol['sampling']}; {model.datasets['test'].sampling} of the test split"
        yield _frechet_score("fid_of_test_images", real, test, held_out, model)


def _frechet_score(
    name: str, real: np.ndarray, others: np.ndarray, protocol: dict[str, Any], model: ScoredModel
) -> Score:
    """Return FID with its 95% interval.

    The interval is centred at the distance itself and not at that of the resamples, which is too large,
    because they repeat images.
    """
    gaussian = fit_gaussian(real)
    value = gaussian_distance(gaussian, fit_gaussian(others))
    deviation = frechet_deviation(gaussian, others, model.config.seed, model.distributed_map)
    half = float(student.ppf(0.975, RESAMPLES - 1)) * deviation
    details = {
        "interval_95": [max(value - half, 0.0), value + half],
        "interval": f"{RESAMPLES} bootstrap resamples of the images that are compared with the real ones",
    }
    return Score(name, value, {**protocol, **details}, higher_is_better=False)


def _random_rows(features: np.ndarray, count: int) -> np.ndarray:
    """Return `count` random rows, because the shards, and therefore the rows, may be ordered by class."""
    if count == len(features):
        return features
    return features[np.sort(permutation(SAMPLE_SEED, "scores/manifold", 0, len(features))[:count])]
