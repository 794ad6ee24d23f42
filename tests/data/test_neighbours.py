"""Nearest neighbours against all distances, principal components against scikit-learn, pixels by hand."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from infogan_dist.data.neighbours import GROUPS, ROWS, nearest, pooled_pixels, principal_components


def random_vectors(count: int, width: int = 6) -> Tensor:
    """Return vectors with a mean far from 0, so that their lengths matter."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, width, dtype=torch.float64, generator=generator) + 2


def sorted_by_distance(vectors: Tensor) -> Tensor:
    """Return the other vectors of each vector, nearest first, from the differences themselves."""
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(float("inf")).argsort(1)[:, :-1]


@pytest.mark.parametrize("count", [2, 7, ROWS - 1, ROWS, ROWS + 1, GROUPS, 2 * GROUPS + 203])
def test_neighbours_are_the_nearest_other_vectors(count: int):
    vectors = random_vectors(count)
    neighbours = min(5, count - 1)
    table = nearest(vectors, range(count), neighbours)
    assert table.dtype == torch.int64
    assert torch.equal(table, sorted_by_distance(vectors)[:, :neighbours])


def test_all_other_vectors_can_be_neighbours():
    vectors = random_vectors(9)
    assert torch.equal(nearest(vectors, range(9), 8), sorted_by_distance(vectors))


def test_a_copy_is_the_nearest_neighbour_and_never_the_vector_itself():
    half = ROWS - 50
    twins = nearest(random_vectors(half).repeat(2, 1), range(2 * half), 1)[:, 0]
    assert torch.equal(twins, torch.arange(2 * half).roll(half))
    same = nearest(torch.ones(20, 3), range(20), 19).sort(1).values
    assert all(row.tolist() == [j for j in range(20) if j != i] for i, row in enumerate(same))


def test_neighbours_do_not_depend_on_how_rows_are_divided():
    """In shares smaller and larger than the rows that are in memory at once, as processes divide them."""
    count = GROUPS + 203
    vectors, bounds = random_vectors(count), [0, 1, 38, ROWS + 100, count - 7, count]
    parts = [nearest(vectors, range(a, b), 5) for a, b in pairwise(bounds)]
    assert [len(part) for part in parts] == [b - a for a, b in pairwise(bounds)]
    assert torch.equal(torch.cat(parts), nearest(vectors, range(count), 5))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_principal_components_are_those_of_scikit_learn(dtype: torch.dtype, tolerance: float):
    """Up to their signs, the largest variance last; coordinates are of size 10, with fp32's error in them."""
    vectors = random_vectors(200, 8) * torch.arange(1, 9) @ random_vectors(8, 8)
    vectors = (vectors / vectors.std()).to(dtype)
    coordinates = principal_components(vectors, 3)
    assert coordinates.dtype == dtype
    expected = PCA(3, svd_solver="full").fit_transform(vectors.double().numpy())[:, ::-1]
    signs = np.sign((coordinates.double().numpy() * expected).sum(0))
    np.testing.assert_allclose(coordinates.double().numpy() * signs, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3), (1, 2)])
def test_pooled_pixels_are_means_of_squares_of_four_pixels(height: int, width: int):
    """At the border of an odd side, means of the pixels that exist."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, height, width), np.uint8)
    vectors = pooled_pixels(torch.from_numpy(pixels))
    expected = [
        [
            image[c, i : i + 2, j : j + 2].mean() / 255
            for c in range(2)
            for i in range(0, height, 2)
            for j in range(0, width, 2)
        ]
        for image in pixels
    ]
    assert vectors.dtype == torch.float32
    # An fp32 number below 1 has an error of at most 6e-8; a mean of four has a few of them.
    np.testing.assert_allclose(vectors.numpy(), expected, rtol=0, atol=3e-7)
