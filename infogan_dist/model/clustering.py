"""Losses that make a classifier divide images into clusters without labels: pure functions of tensors.

An image and a neighbour of it, both distorted, should get the same category, and all categories should be
used equally often.
"""

import torch
from torch import Tensor

EPSILON = 1e-8  # in the logarithm of a category's share, which may be 0


@torch.no_grad()
def balanced_targets(log_probs: Tensor, sharpness: float = 2.0, iterations: int = 4) -> Tensor:
    """Return soft assignments in which all categories have nearly equal shares of the batch.

    These are Sinkhorn-Knopp iterations (Cuturi 2013), by which Asano et al. 2020 ("Self-labelling via
    simultaneous clustering and representation learning") balance clusters.

    Args:
        log_probs: log p(category | image) [N, K] of the global batch.
        sharpness: power of the probabilities to start from.
        iterations: normalisations of categories and images in turn.

    Returns:
        [N, K]; rows add up to 1.
    """
    q = log_probs * sharpness
    for _ in range(iterations):
        q = q - q.logsumexp(0, keepdim=True)
        q = q - q.logsumexp(1, keepdim=True)
    return q.exp()


def swapped_prediction_loss(log_probs: Tensor, partner_log_probs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of each view under the target of the other (Caron et al. 2020, eq. 1).

    Args:
        log_probs, partner_log_probs: log p(category | view) [N, K] of an image and of its partner.
        targets: `balanced_targets` [2N, K] of both, the images first.
    """
    own, partner = targets.chunk(2)
    return -0.5 * ((own * partner_log_probs).sum(1) + (partner * log_probs).sum(1)).mean()


def consistency_loss(log_probs: Tensor, partner_log_probs: Tensor) -> Tensor:
    """Return the symmetric cross entropy between the categories of two views, a mean over the batch.

    It is lowest where both views have the same category with certainty. Van Gansbeke et al. 2020 ("SCAN:
    learning to classify images without labels", eq. 2) use the logarithm of the inner product instead.
    """
    own, partner = log_probs.exp(), partner_log_probs.exp()
    return -0.5 * ((own * partner_log_probs).sum(1) + (partner * log_probs).sum(1)).mean()


def mean_entropy(shares: Tensor) -> Tensor:
    """Return the entropy in nats of the categories' shares [K] of the global batch (SCAN, eq. 2)."""
    return -(shares * (shares + EPSILON).log()).sum()
