"""Distorted views of images, against torch's own sampling and against results written out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from infogan_dist.config.clustering import ViewsConfig
from infogan_dist.model.views import BEND_GRID, VIEW_UNIFORMS, _sample, distort, shear_and_dilate

NONE = ViewsConfig(rotation=0, shear=0, scale=0, shift=0, bend=0)
# The range of draws for rotation, shear, scale x, scale y, shift x and shift y is [-1, 1].
STILL = (0.0,) * 6
# In fp64, coordinates of a dozen pixels have errors of about 1e-14 pixels, and images differ by at most 2
# from pixel to pixel.
EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-12}


def random_images(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def random_uniforms(count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, VIEW_UNIFORMS, dtype=torch.float64, generator=generator)


def uniforms_of(draws: tuple[float, ...], normals: Tensor | None = None) -> Tensor:
    """Return the uniforms [1, VIEW_UNIFORMS] of an affine map's draws and of the bend's displacements."""
    affine = (torch.tensor([draws], dtype=torch.float64) + 1) / 2
    normals = torch.zeros(2, BEND_GRID, BEND_GRID, dtype=torch.float64) if normals is None else normals
    return torch.cat([affine, torch.special.ndtr(normals).reshape(1, -1)], 1)


def torch_sample(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def torch_grid(images: Tensor, matrix: list[list[float]]) -> Tensor:
    theta = torch.tensor([matrix], dtype=torch.float64)
    return F.affine_grid(theta, list(images.shape), align_corners=False)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_view_without_distortions_is_the_image(dtype: torch.dtype, tolerance: float):
    """In fp32, coordinates of 28 pixels have errors of about 28 * 1.2e-7 pixels."""
    images, uniforms = random_images(8, 2, 28, 28).to(dtype), random_uniforms(8)
    view = distort(images, uniforms, NONE)
    assert view.dtype == dtype
    torch.testing.assert_close(view, images, rtol=0, atol=tolerance)
    assert ((distort(images, uniforms, ViewsConfig()) - images).abs().mean((1, 2, 3)) > 0.1).all()


def test_a_rotation_by_90_degrees_turns_the_image_counterclockwise():
    images, config = random_images(1, 2, 9, 9), ViewsConfig(90, 0, 0, 0, 0)
    for draw in (1, -1):
        view = distort(images, uniforms_of((draw, 0, 0, 0, 0, 0)), config)
        torch.testing.assert_close(view, torch.rot90(images, draw, (2, 3)), **EXACT)


COS, SIN = math.cos(math.radians(15)), math.sin(math.radians(15))
WIDER, LOWER = math.exp(0.1), math.exp(-0.2)


@pytest.mark.parametrize(
    ("draws", "matrix"),
    [
        ((0.5, 0, 0, 0, 0, 0), [[COS, -SIN, 0], [SIN, COS, 0]]),
        ((0, -0.5, 0, 0, 0, 0), [[1, -0.2, 0], [0, 1, 0]]),
        ((0, 0, 0.5, -1, 0, 0), [[WIDER, 0, 0], [0, LOWER, 0]]),
        ((0, 0, 0, 0, 1, -0.5), [[1, 0, 0.3], [0, 1, -0.15]]),
        # Points of the view are scaled first, then sheared, rotated and shifted.
        (
            (0.5, -0.5, 0.5, -1, 1, -0.5),
            [
                [COS * WIDER, (-0.2 * COS - SIN) * LOWER, 0.3],
                [SIN * WIDER, (-0.2 * SIN + COS) * LOWER, -0.15],
            ],
        ),
    ],
    ids=["rotation", "shear", "scale", "shift", "all"],
)
def test_affine_distortions_are_those_of_torch(draws: tuple[float, ...], matrix: list[list[float]]):
    """On an image that is not square, so that its axes cannot be confused."""
    images = random_images(1, 2, 12, 9)
    config = ViewsConfig(rotation=30, shear=0.4, scale=0.2, shift=0.3, bend=0.1)
    expected = torch_sample(images, torch_grid(images, matrix))
    torch.testing.assert_close(distort(images, uniforms_of(draws), config), expected, **EXACT)
    assert (expected - images).abs().mean() > 0.1


@pytest.mark.parametrize("factor", [1, 3])
def test_pixels_at_the_centres_of_the_bend_s_grid_move_by_its_normals(factor: int):
    """There, the smooth displacements are those of the grid, x first, times the standard deviation.

    In an image of an odd multiple of the grid's side, these are the middle pixels of squares.
    """
    images = random_images(1, 2, factor * BEND_GRID, factor * BEND_GRID)
    normals = torch.special.ndtri(random_uniforms(1)[0, 6:]).view(2, BEND_GRID, BEND_GRID)
    view = distort(images, uniforms_of(STILL, normals), ViewsConfig(0, 0, 0, 0, 0.1))
    middle = slice(factor // 2, None, factor)
    grid = torch_grid(images, [[1, 0, 0], [0, 1, 0]])[:, middle, middle] + 0.1 * normals.permute(1, 2, 0)
    # The normals pass through their distribution function, with an error of about 1e-15.
    torch.testing.assert_close(view[..., middle, middle], torch_sample(images, grid), **EXACT)


def test_equal_displacements_shift_an_image_of_any_size():
    images = random_images(1, 1, 13, 11)
    normals = torch.tensor([1.0, -0.5], dtype=torch.float64)[:, None, None].expand(2, BEND_GRID, BEND_GRID)
    view = distort(images, uniforms_of(STILL, normals), ViewsConfig(0, 0, 0, 0, 0.2))
    expected = torch_sample(images, torch_grid(images, [[1, 0, 0.2], [0, 1, -0.1]]))
    torch.testing.assert_close(view, expected, **EXACT)


def test_a_view_depends_on_its_own_row_of_uniforms():
    images, uniforms = random_images(4, 1, 10, 10), random_uniforms(4)
    views = distort(images, uniforms, ViewsConfig())
    for row in range(4):
        changed = random_uniforms(4, seed=2)
        changed[row] = uniforms[row]
        differs = (distort(images, changed, ViewsConfig()) - views).abs().amax((1, 2, 3)) > 1e-3
        assert differs.tolist() == [i != row for i in range(4)]
        alone = distort(images[row : row + 1], uniforms[row : row + 1], ViewsConfig())
        torch.testing.assert_close(alone, views[row : row + 1], **EXACT)


def test_the_smallest_and_largest_uniforms_give_pixels_of_the_image():
    """Each alone, among medians: infinite displacements would give no valid pixel."""
    for extreme in (2.0**-54, 1 - 2.0**-53):
        uniforms = torch.full((VIEW_UNIFORMS, VIEW_UNIFORMS), 0.5, dtype=torch.float64)
        uniforms.fill_diagonal_(extreme)
        view = distort(random_images(VIEW_UNIFORMS, 1, 28, 28).float(), uniforms, ViewsConfig())
        assert (view.abs() <= 1 + 1e-6).all()


def test_sampling_and_its_gradient_are_those_of_grid_sample():
    """At points inside and outside the image, and at its border and corners."""
    grid = random_images(3, 12, 9, 2) * 1.6
    grid[0, :3, :3] = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None, None]
    grid[1, 0, :4] = torch.cartesian_prod(*torch.tensor([[-1.0, 1.0]] * 2, dtype=torch.float64))
    assert 0.3 < (grid.abs() > 1).any(3).double().mean() < 0.9
    weights = random_images(3, 2, 12, 9).flip(0)
    results = []
    for sample in (_sample, torch_sample):
        images = random_images(3, 2, 12, 9).requires_grad_()
        sampled = sample(images, grid)
        (weights * sampled).sum().backward()
        results.append((sampled, images.grad))
    torch.testing.assert_close(results[0], results[1], **EXACT)


def test_an_image_without_a_change_of_style_stays_the_same():
    images, zeros = random_images(3, 2, 12, 9), torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(shear_and_dilate(images, zeros, zeros), images, **EXACT)


def test_dilation_moves_an_image_to_the_maximum_of_its_neighbours_and_erosion_to_the_minimum():
    """By the stated share, one of each image; all pixels are negative, unlike a padding with zeros."""
    amounts = [1.0, -1.0, 0.25, -0.5]
    images = random_images(4, 2, 12, 9) - 1.5
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    neighbours = torch.stack([padded[..., i : i + 12, j : j + 9] for i in range(3) for j in range(3)])
    maxima, minima = neighbours.amax(0), neighbours.amin(0)
    restyled = shear_and_dilate(
        images, torch.zeros(4, dtype=torch.float64), torch.tensor(amounts, dtype=torch.float64)
    )
    for row, amount in enumerate(amounts):
        end = maxima[row] if amount > 0 else minima[row]
        torch.testing.assert_close(restyled[row], images[row].lerp(end, abs(amount)), **EXACT)


def test_a_shear_slants_a_vertical_bar_to_the_right_at_the_top():
    """The bar's centre moves by `shear` half widths at the upper border, and back at the lower one.

    Linear interpolation preserves the mean position of a bar exactly.
    """
    height, width, shears = 12, 31, torch.tensor([0.5, -0.2], dtype=torch.float64)
    brightness = torch.arange(1, height + 1, dtype=torch.float64)  # differs, as rows do not mix
    bar = torch.zeros(2, 1, height, width, dtype=torch.float64)
    bar[..., width // 2] = brightness
    slanted = shear_and_dilate(bar, shears, torch.zeros(2, dtype=torch.float64))[:, 0] / brightness[:, None]
    columns = torch.arange(width, dtype=torch.float64) - width // 2
    heights = 1 - (torch.arange(height, dtype=torch.float64) * 2 + 1) / height  # 1 at the upper border
    torch.testing.assert_close(slanted.sum(2), torch.ones(2, height, dtype=torch.float64), **EXACT)
    centres = (slanted * columns).sum(2)
    torch.testing.assert_close(centres, shears[:, None] * heights * width / 2, **EXACT)
