"""How near generated images are to real ones: distances between two sets of features [N, d].

The rows of a set are in one order, the same on every process. Work is dealt by `distributed_map`; each part depends on
its index alone, so that any number of processes gives the same numbers.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from infogan_dist.errors import ConfigError
from infogan_dist.rng import permutation
from infogan_dist.scores.distributed_map import DistributedMap
from infogan_dist.scores.features import DIGIT_SHAPE, Features, load_features
from infogan_dist.scores.scored_model import NotMeasurable, Score, ScoredModel

NEIGHBOURS = 3  # of a point, within which its ball reaches, as in the paper of precision and recall
SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance, as in its paper
CELLS = 2**22  # distances that a process holds at a time: 32 MiB


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution fitted to features.

    Attributes:
        mean: float64 [d].
        root: float64 [min(N, d), d]; root.T @ root is the unbiased covariance, which is never formed: that
            would square the rounding error.
    """

    mean: np.ndarray
    root: np.ndarray


def fit_gaussian(features: np.ndarray) -> Gaussian:
    """The Gaussian of features [N, d]. Raises `ConfigError` for fewer than two rows."""
    _require(2, features)
    mean = features.mean(0)
    root = np.linalg.qr((features - mean) / np.sqrt(len(features) - 1), mode="r")
    return Gaussian(mean, np.asarray(root))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """FID between features [N, d] and [M, d] (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    It falls with the number of rows: compare only what was computed from as many.
    """
    return gaussian_distance(fit_gaussian(a), fit_gaussian(b))


def gaussian_distance(p: Gaussian, q: Gaussian) -> float:
    """|m_p - m_q|^2 + tr(S_p + S_q - 2 (S_p S_q)^(1/2)), at least 0.

    With S = R^T R the last trace is the sum of the singular values of R_p R_q^T: it is real, and as exact
    for singular covariances as for others.
    """
    cross = np.linalg.svd(p.root @ q.root.T, compute_uv=False).sum()
    traces = np.square(p.root).sum() + np.square(q.root).sum()
    return max(float(np.square(p.mean - q.mean).sum() + traces - 2 * cross), 0.0)


def kernel_distance(
    a: np.ndarray, b: np.ndarray, seed: int, distributed_map: DistributedMap
) -> tuple[float, float]:
    """KID: `squared_mmd` over 100 random subsets of 1,000 rows of each set, its mean and deviation.

    Of sets with fewer rows, one subset as large as the smaller. The deviation is that between the subsets,
    as in the paper (Binkowski et al. 2018, arXiv 1801.01401, section 4).
    """
    _require(2, a, b)
    size = min(SUBSET_SIZE, len(a), len(b))

    def one(i: int) -> list[float]:
        rows = [permutation(seed, f"scores/kernel/{j}", i, len(s))[:size] for j, s in enumerate((a, b))]
        return [squared_mmd(a[rows[0]], b[rows[1]])]

    found = distributed_map(SUBSETS if size == SUBSET_SIZE else 1, 1, one)
    return float(found.mean()), float(found.std())


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of MMD^2 between [N, d] and [M, d], kernel (x.y / d + 1)^3; may be negative.

    Binkowski et al. 2018, arXiv 1801.01401, section 4.
    """

    def kernel(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        base = p @ q.T / x.shape[1] + 1
        return base * base * base  # several times as fast as ** 3

    def within(p: np.ndarray) -> float:
        k = kernel(p, p)
        return (k.sum() - np.trace(k)) / (len(p) * (len(p) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def precision_recall(
    real: np.ndarray, fake: np.ndarray, distributed_map: DistributedMap, k: int = NEIGHBOURS
) -> tuple[float, float]:
    """The share of fakes [M, d] inside the manifold of the real [N, d], and of real ones inside the fakes'.

    A set's manifold is the union of balls around its points, each reaching to the point's k-th nearest
    neighbour (Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2).
    """
    _require(k + 1, real, fake)
    real, fake = _on_grid(real, fake)
    return (
        float(_inside(fake, real, _radii(real, k, distributed_map), distributed_map).mean()),
        float(_inside(real, fake, _radii(fake, k, distributed_map), distributed_map).mean()),
    )


def _on_grid(*sets: np.ndarray) -> list[np.ndarray]:
    """The sets, scaled and rounded to whole numbers so small that their squared distances are exact.

    A squared distance |x|^2 + |y|^2 - 2 x.y of numbers up to 2^b stays under d 2^(2b + 2). Where that is
    within 2^53 no sum rounds, in whatever order it is taken, and ties are ties. b is 20 for d = 2048 and 22
    for d = 64: near what float32 features hold.
    """
    bits = int(51 - np.log2(sets[0].shape[1])) // 2
    _, exponent = np.frexp(max(np.abs(s).max() for s in sets))
    return [np.rint(np.ldexp(s, bits - exponent)) for s in sets]


def _radii(points: np.ndarray, k: int, distributed_map: DistributedMap) -> np.ndarray:
    """The squared distance of each point to its k-th nearest neighbour among the others."""
    # Sorted by distance, a point itself comes first, or another that lies where it lies.
    return _by_rows(points, points, distributed_map, lambda squares: np.partition(squares, k, axis=1)[:, k])


def _inside(
    queries: np.ndarray, points: np.ndarray, radii: np.ndarray, distributed_map: DistributedMap
) -> np.ndarray:
    """1 for each query within the radius of at least one point, else 0."""
    return _by_rows(queries, points, distributed_map, lambda squares: np.any(squares <= radii, axis=1))


def _by_rows(
    queries: np.ndarray,
    points: np.ndarray,
    distributed_map: DistributedMap,
    of: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """`of` the squared distances of each query to all points, a block of queries at a time, float64 [N]."""
    rows = max(1, min(CELLS // len(points), len(queries)))
    norms = np.square(points).sum(1)

    def block(i: int) -> np.ndarray:
        # The last block is filled with its last query, whose further values are cut off.
        part = queries[np.minimum(np.arange(i * rows, (i + 1) * rows), len(queries) - 1)]
        squares = part @ points.T
        squares *= -2
        squares += norms
        squares += np.square(part).sum(1)[:, None]
        return of(squares)

    return distributed_map(-(-len(queries) // rows), rows, block).reshape(-1)[: len(queries)]


def _require(least: int, *sets: np.ndarray) -> None:
    fewest = min(map(len, sets))
    if fewest < least:
        raise ConfigError(
            f"fidelity: {fewest} images where {least} are the least; raise scores.images or scores.limit"
        )


def fidelity(subject: ScoredModel) -> Iterator[Score]:
    """`fid`, `kid`, `precision` and `recall` of drawn images against the training images.

    Also `fid_of_test_images`, that of held-out real images where there are some: what a perfect generator
    would be told. Yields the protocol with the network whose features were compared.
    """
    shape = subject.manifests["train"].image_shape
    if subject.scores.features is None and shape != DIGIT_SHAPE:
        raise NotMeasurable(
            "needs scores.features=FILE, a TorchScript network for images that are not digits"
        )
    features = load_features(subject.scores.features, shape, subject.engine.device)
    distributed_map, seed = subject.engine.distributed_map, subject.config.seed
    real = _real_features(subject, "train", features)
    fake = subject.per_image(
        subject.fake_sizes, features.width, lambda i: features(subject.fakes(i)).double().cpu()
    )
    about = {
        "samples": len(fake),
        "real_images": len(real),
        "split": "train",
        "generator": subject.which_generator,
        "features": f"{features.name}, {features.fingerprint[:12]}",
    }
    yield Score("fid", frechet_distance(real, fake), about)
    mean, deviation = kernel_distance(real, fake, seed, distributed_map)
    yield Score("kid", mean, {**about, "deviation": deviation})
    same = min(len(real), len(fake))
    alike = {**about, "samples": same, "real_images": same, "neighbours": NEIGHBOURS}
    precision, recall = precision_recall(real[:same], fake[:same], distributed_map)
    yield Score("precision", precision, alike)
    yield Score("recall", recall, alike)
    if "test" in subject.manifests:
        test = _real_features(subject, "test", features)
        held_out = {"samples": len(test), "real_images": len(real), "features": about["features"]}
        yield Score("fid_of_test_images", frechet_distance(real, test), held_out)


def _real_features(subject: ScoredModel, split: str, features: Features) -> np.ndarray:
    """A split's features, float64 [N, d], kept on disk by what they are made of: data, limit and network."""
    data = subject.images[split]
    made_of = [subject.manifests[split].fingerprint(), sum(data.sizes), features.fingerprint]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    path = Path(pooch.os_cache("infogan_dist")) / "features" / f"{key}.safetensors"
    # All processes take it from disk or none does: it is made together.
    world = subject.engine.world
    if subject.engine.distributed_map(world, 1, lambda i: [path.is_file()]).all():
        return load_file(path)["features"].astype(np.float64)
    made = subject.per_image(
        data.sizes,
        features.width,
        lambda i: features(torch.from_numpy(data.read(i).images)).double().cpu(),
    )
    _keep(path, made)
    return made


def _keep(path: Path, made: np.ndarray) -> None:
    """Keeps features for the next time; a folder that cannot be written costs time, and no more."""
    part = path.with_suffix(f".{os.getpid()}.part")
    with contextlib.suppress(OSError, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": made.astype(np.float32)}, part)
        os.replace(part, path)
