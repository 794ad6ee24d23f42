"""Random distortions of images: other views of the same content, as pure functions of images and uniforms."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from infogan_dist.config.clustering import ViewsConfig

BEND_GRID = 5  # side of the grid of random displacements that bend an image
VIEW_UNIFORMS = 6 + 2 * BEND_GRID**2  # uniforms that a view of an image is a function of


def distort(images: Tensor, uniforms: Tensor, config: ViewsConfig) -> Tensor:
    """Return a randomly rotated, sheared, scaled, shifted and bent view of each image.

    The bend is a smooth displacement, interpolated from a coarse grid (Simard et al. 2003, "Best practices
    for convolutional neural networks applied to visual document analysis", section 2).

    Args:
        images: [N, C, H, W].
        uniforms: float64 [N, VIEW_UNIFORMS] in (0, 1); in single precision some would be rounded to 1, whose
            normal quantile is infinite.
        config: the largest size of each distortion.

    Returns:
        [N, C, H, W]; pixels beyond the border repeat it.
    """
    affine, bend = (uniforms[:, :6] * 2 - 1).to(images.dtype), uniforms[:, 6:]
    angle, shear = affine[:, 0] * math.radians(config.rotation), affine[:, 1] * config.shear
    scales = (affine[:, 2:4] * config.scale).exp()
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack(
        [
            torch.stack([cos * scales[:, 0], (cos * shear - sin) * scales[:, 1]], 1),
            torch.stack([sin * scales[:, 0], (sin * shear + cos) * scales[:, 1]], 1),
        ],
        1,
    )
    normals = torch.special.ndtri(bend).to(images.dtype).unflatten(1, (2, BEND_GRID, BEND_GRID))
    smooth = F.interpolate(normals * config.bend, images.shape[2:], mode="bicubic", align_corners=False)
    return _warp(images, rows, affine[:, 4:6] * config.shift, smooth.permute(0, 2, 3, 1))


def shear_and_dilate(images: Tensor, shear: Tensor, dilation: Tensor) -> Tensor:
    """Return images that are slanted, and whose strokes are thicker or thinner.

    Args:
        images: [N, C, H, W], bright strokes on a dark ground.
        shear: [N], shift of the upper border to the right, and of the lower one to the left, in half widths
            of the image.
        dilation: [N] in [-1, 1]: share by which an image moves towards its dilation by a pixel (each pixel
            the maximum of its neighbours) or, where it is negative, towards its erosion (the minimum).
    """
    amount = dilation.view(-1, 1, 1, 1)
    dilated = F.max_pool2d(images, 3, 1, 1)
    eroded = -F.max_pool2d(-images, 3, 1, 1)
    restyled = images + amount.clamp_min(0) * (dilated - images) + (-amount).clamp_min(0) * (eroded - images)
    one, zero = torch.ones_like(shear), torch.zeros_like(shear)
    rows = torch.stack([torch.stack([one, shear], 1), torch.stack([zero, one], 1)], 1)
    return _warp(restyled, rows, shear.new_zeros(len(shear), 2), shear.new_zeros(()))


def _warp(images: Tensor, rows: Tensor, shift: Tensor, bend: Tensor) -> Tensor:
    """Sample images where an affine map of [-1, 1]^2 and a displacement lead.

    Args:
        images: [N, C, H, W].
        rows, shift: the linear part [N, 2, 2] of the map, and its translation [N, 2].
        bend: displacements [N, H, W, 2], or a number.
    """
    grid = F.affine_grid(torch.cat([rows, shift[:, :, None]], 2), list(images.shape), align_corners=False)
    return _sample(images, grid + bend)


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    """Interpolate images [N, C, H, W] bilinearly at points [N, H, W, 2] of [-1, 1]^2.

    Gathers are used because `grid_sample` has no deterministic gradient on GPUs.
    """
    height, width = images.shape[2:]
    # Numbers of Python, since a tensor of them would be copied to the device, for which the host waits.
    x, y = _pixel_position(grid[..., 0], width), _pixel_position(grid[..., 1], height)
    x0, y0 = x.floor().long(), y.floor().long()
    x1, y1 = (x0 + 1).clamp_max(width - 1), (y0 + 1).clamp_max(height - 1)
    flat = images.flatten(2)

    def pixels(x: Tensor, y: Tensor) -> Tensor:
        index = (y * width + x).flatten(1)[:, None].expand(-1, images.shape[1], -1)
        return flat.gather(2, index).view_as(images)

    right, down = (x - x0)[:, None].expand_as(images), (y - y0)[:, None].expand_as(images)
    upper = torch.lerp(pixels(x0, y0), pixels(x1, y0), right)
    lower = torch.lerp(pixels(x0, y1), pixels(x1, y1), right)
    return torch.lerp(upper, lower, down)


def _pixel_position(values: Tensor, size: int) -> Tensor:
    """Return coordinates in [-1, 1] of an axis as positions between its pixels 0 and size - 1."""
    return (((values + 1) * size - 1) / 2).clamp(0, size - 1)
