"""Distances between sets of features, compared with their definitions and with torchmetrics."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from scipy.linalg import sqrtm
from torch import nn

from infogan_dist.errors import ConfigError
from infogan_dist.scores import fidelity
from infogan_dist.scores.distributed_map import DistributedMap, serial_map
from infogan_dist.scores.fidelity import frechet_distance, kernel_distance, precision_recall, squared_mmd


def features(rows: int, width: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Return correlated and skewed features with many zeros, as of a network after a ReLU."""
    draw = np.random.default_rng(seed)
    mix = np.random.default_rng(1).normal(size=(width, width)) / np.sqrt(width)
    return np.maximum(draw.normal(size=(rows, width)) @ mix + shift, 0)


def parallel_map(world: int) -> DistributedMap:
    """Return the map of `world` processes: each computes its rows, and all get the sum of their tables."""

    def distributed_map(count: int, width: int, task: Callable[[int], ArrayLike]) -> np.ndarray:
        tables = np.zeros((world, count, width))
        for rank in range(world):
            for i in range(rank, count, world):
                tables[rank, i] = task(i)
        return tables.sum(0)

    return distributed_map


def by_square_root(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Frechet distance by its definition, with scipy's square root of a matrix."""
    p, q = np.cov(a.T), np.cov(b.T)
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(p + q - 2 * np.real(sqrtm(p @ q))))


def test_the_frechet_distance_is_its_definition():
    a, b = features(400, 24), features(300, 24, seed=2, shift=0.2)
    # A square root of a matrix is exact to approximately half of float64's digits; the distance is near 1.
    assert frechet_distance(a, b) == pytest.approx(by_square_root(a, b), rel=1e-6)


class Identity(nn.Module):
    """A feature network for torchmetrics that returns its input, which are features already."""

    num_features = 24

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


# The tolerance is 1e-4, because torchmetrics takes the roots of eigenvalues, which for singular covariances
# include rounding errors.
@pytest.mark.parametrize("rows", [300, 20], ids=["more rows than features", "fewer"])
def test_the_frechet_distance_equals_that_of_torchmetrics(rows: int):
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = features(rows, 24), features(rows + 3, 24, seed=2, shift=0.2)
    theirs = fid.FrechetInceptionDistance(feature=Identity(), normalize=True)
    theirs.set_dtype(torch.float64)
    theirs.update(torch.from_numpy(a), real=True)
    theirs.update(torch.from_numpy(b), real=False)
    assert frechet_distance(a, b) == pytest.approx(float(theirs.compute()), rel=1e-4)


def test_a_shift_adds_its_square_for_any_covariance():
    for rows in (300, 10):
        a, shift = features(rows, 24), np.linspace(-1, 2, 24)
        # Exact except for the rounding of the traces, sums of 24 numbers near 1.
        assert frechet_distance(a, a + shift) == pytest.approx(float(shift @ shift), abs=1e-12)


def test_a_scaled_set_has_the_distance_of_the_scales():
    a = features(10, 24)
    centred = a - a.mean(0)
    # The distance is tr(S) (1 - s)^2 for covariances S and s^2 S; here they are singular.
    expected = np.square(centred).sum() / 9 * (1 - 3) ** 2
    assert frechet_distance(centred, 3 * centred) == pytest.approx(expected, rel=1e-12)


def test_equal_sets_in_any_order_have_distance_0():
    a = features(300, 24)
    assert 0 <= frechet_distance(a, a[::-1]) < 1e-12  # the rounding error of traces near 10
    assert precision_recall(a, a[::-1], serial_map) == (1, 1)


# KernelInceptionDistance warns each time that it stores all features.
@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save:UserWarning")
@pytest.mark.parametrize("sizes", [(60, 60), (1000, 1000)])
def test_the_kernel_distance_equals_that_of_torchmetrics_on_the_same_rows(sizes: tuple[int, int]):
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = features(sizes[0], 24), features(sizes[1], 24, seed=2, shift=0.2)
    theirs = kid.KernelInceptionDistance(feature=Identity(), normalize=True, subsets=1, subset_size=len(a))
    theirs.set_dtype(torch.float64)
    theirs.update(torch.from_numpy(a), real=True)
    theirs.update(torch.from_numpy(b), real=False)
    mean = float(theirs.compute()[0])
    # Both are in float64, but torchmetrics has another order of rows.
    assert squared_mmd(a, b) == pytest.approx(mean, rel=1e-8)
    assert kernel_distance(a, b, 0, serial_map) == pytest.approx((mean, 0), rel=1e-8, abs=1e-12)


def test_the_squared_mmd_is_its_definition():
    a, b = features(5, 3), features(7, 3, seed=2, shift=0.2)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float(x @ y / 3 + 1) ** 3

    own = [
        np.mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)
    ]
    cross = np.mean([kernel(x, y) for x in a for y in b])
    assert squared_mmd(a, b) == pytest.approx(float(own[0] + own[1] - 2 * cross), rel=1e-10)


def test_the_kernel_distance_is_near_0_for_equal_distributions_only(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(fidelity, "SUBSETS", 20)  # for speed
    a, b, c = features(3000, 8), features(3000, 8, seed=1), features(3000, 8, seed=2, shift=0.2)
    mean, deviation = kernel_distance(a, b, 0, serial_map)
    # The estimate is unbiased: its error is the chance difference of sets of 3,000, less than of sets of
    # 1,000.
    assert abs(mean) < deviation
    assert kernel_distance(a, c, 0, serial_map)[0] > 10 * deviation
    assert kernel_distance(a, b, 1, serial_map) != (mean, deviation)


def by_definition(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    """Return precision and recall in integer arithmetic, pair by pair."""

    def squares(x: np.ndarray, points: np.ndarray) -> list[int]:
        return [sum((int(u) - int(v)) ** 2 for u, v in zip(x, y, strict=True)) for y in points]

    def share(queries: np.ndarray, points: np.ndarray) -> float:
        radii = [sorted(squares(p, np.delete(points, i, 0)))[k - 1] for i, p in enumerate(points)]
        inside = [any(s <= r for s, r in zip(squares(q, points), radii, strict=True)) for q in queries]
        return sum(inside) / len(queries)

    return share(fake, real), share(real, fake)


@pytest.mark.parametrize(("largest", "width"), [(3, 2), (40, 3), (100_000, 8)])
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_their_definition_even_if_points_coincide(largest: int, width: int, k: int):
    draw = np.random.default_rng(largest + k)
    real = draw.integers(0, largest, (60, width))
    fake = draw.integers(largest // 4, largest, (50, width))
    expected = by_definition(real, fake, k)
    # Integers, and their eighths, lie on the grid, so no pair may differ.
    assert precision_recall(real.astype(float), fake.astype(float), serial_map, k) == expected
    assert precision_recall(real / 8, fake / 8, serial_map, k) == expected
    assert largest == 3 or 0 < expected[0] < 1 or 0 < expected[1] < 1


def test_disjoint_sets_have_precision_0_and_recall_0():
    a = features(100, 8)
    assert precision_recall(a, a + 100, serial_map) == (0, 0)


def test_a_generator_of_one_image_has_precision_1_and_recall_0():
    real = features(100, 8)
    assert precision_recall(real, np.repeat(real[:1] + 1e-3, 50, 0), serial_map) == (1, 0)


def test_distances_are_exact_for_any_width_and_scale():
    for width in (1, 64, 2048):
        for scale in (1e-20, 1.0, 1e20):
            x, y = fidelity._on_grid(*(scale * features(4, width, seed) for seed in (0, 2)))
            norms = [sum(int(v) ** 2 for v in p) for p in (x[0], y[0])]
            product = sum(int(u) * int(v) for u, v in zip(x[0], y[0], strict=True))
            assert max(norms) * 4 <= 2**53
            # The numbers use as many bits as fit, so that they are rounded as little as possible.
            assert 4 * width * np.abs(np.concatenate([x, y])).max() ** 2 > 2**48
            assert norms[0] + norms[1] - 2 * product == np.square(x[0]).sum() + np.square(y[0]).sum() - (
                2 * x[0] @ y[0]
            )


def test_any_number_of_processes_computes_the_same_bits(monkeypatch: pytest.MonkeyPatch):
    a, b = features(1100, 8), features(1050, 8, seed=2, shift=0.2)
    expected = precision_recall(a, b, serial_map)
    assert 0 < expected[0] < 1
    monkeypatch.setattr(fidelity, "SUBSETS", 7)
    monkeypatch.setattr(fidelity, "CELLS", 100 * 1100)  # eleven blocks; the last one may be incomplete
    for world in (1, 2, 3):
        assert precision_recall(a, b, parallel_map(world)) == expected
        assert kernel_distance(a, b, 5, parallel_map(world)) == kernel_distance(a, b, 5, serial_map)


def test_too_few_images_are_refused_in_one_line():
    few, many = features(3, 4), features(10, 4)
    for call in (
        lambda: precision_recall(many, few, serial_map),
        lambda: frechet_distance(many[:1], many),
        lambda: kernel_distance(many, many[:1], 0, serial_map),
    ):
        with pytest.raises(
            ConfigError, match=r"^fidelity: \d images are too few, at least \d are needed; increase .*$"
        ):
            call()
