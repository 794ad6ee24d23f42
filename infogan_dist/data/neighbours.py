"""Nearest neighbours of images in a space of few dimensions: exact, and a pure function of the vectors."""

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 128  # vectors whose distances to all others are in memory at once


def pooled_pixels(images: Tensor) -> Tensor:
    """Return images uint8 [N, C, H, W] at half resolution as float32 vectors [N, D] in [0, 1]."""
    return F.avg_pool2d(images.float() / 255, 2, ceil_mode=True).flatten(1)


def principal_components(vectors: Tensor, count: int) -> Tensor:
    """Return the coordinates [N, min(count, D)] of vectors [N, D] along their directions of largest variance.

    The largest variance comes last.
    """
    centred = vectors - vectors.mean(0)
    covariance = centred.double().T @ centred.double()
    directions = torch.linalg.eigh(covariance).eigenvectors[:, -count:]
    return centred @ directions.to(vectors.dtype)


def nearest(vectors: Tensor, rows: range, count: int) -> Tensor:
    """Return the nearest other vectors of some vectors, by Euclidean distance.

    Args:
        vectors: [N, D].
        rows: the vectors whose neighbours are wanted, at least one.
        count: number of neighbours of each, below N.

    Returns:
        int64 [len(rows), count].
    """
    squares = vectors.square().sum(1)
    parts = []
    for first in range(rows.start, rows.stop, ROWS):
        own = torch.arange(first, min(first + ROWS, rows.stop), device=vectors.device)
        # Of the squared distance only what differs between neighbours, with the sign changed.
        closeness = torch.addmm(-squares[None], vectors[own], vectors.T, alpha=2.0)
        closeness.scatter_(1, own[:, None], float("-inf"))
        parts.append(closeness.topk(count, 1).indices)
    return torch.cat(parts)
