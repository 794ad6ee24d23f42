"""What is minimised: pure functions of tensors, each with its paper and equation.

Losses are means over the local batch, so that their average over processes and micro-batches of equal
size is the mean over the global batch.
"""

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

from infogan_dist.codes import LatentSpec


def real_loss(kind: str, logits: Tensor) -> Tensor:
    """D's loss on real images, from its logits [N].

    `nonsaturating`: -log D(x), D = sigmoid(logit) (Goodfellow et al. 2014, eq. 1);
    `hinge`: max(0, 1 - logit) (Lim & Ye 2017; Miyato et al. 2018, eq. 16);
    `least_squares`: (logit - 1)^2 / 2 (Mao et al. 2017, eq. 9).
    """
    if kind == "nonsaturating":
        return F.softplus(-logits).mean()
    if kind == "hinge":
        return F.relu(1 - logits).mean()
    return 0.5 * (logits - 1).square().mean()


def fake_loss(kind: str, logits: Tensor) -> Tensor:
    """D's loss on generated images, from its logits [N]; the counterpart of `real_loss`."""
    if kind == "nonsaturating":
        return F.softplus(logits).mean()
    if kind == "hinge":
        return F.relu(1 + logits).mean()
    return 0.5 * logits.square().mean()


def generator_loss(kind: str, logits: Tensor) -> Tensor:
    """G's loss from D's logits on its images [N].

    `nonsaturating`: -log D(G(z, c)) (Goodfellow et al. 2014, section 3); `hinge`: -logit (Miyato et al.
    2018, eq. 17); `least_squares`: (logit - 1)^2 / 2 (Mao et al. 2017, eq. 9).
    """
    if kind == "nonsaturating":
        return F.softplus(-logits).mean()
    if kind == "hinge":
        return -logits.mean()
    return 0.5 * (logits - 1).square().mean()


def lower_bound(
    spec: LatentSpec, posteriors: dict[str, Distribution], codes: dict[str, Tensor]
) -> dict[str, Tensor]:
    """L_I = H(c) + E[log Q(c|x)] of each variable of each code, in nats (paper, eq. 5).

    Args:
        posteriors: Q(c|x) by code, batch shape [N, V].
        codes: the values [N, V] from which the images were made.

    Returns:
        [V] by code. Of a discrete code at most H(c); of a continuous one a density's, without upper limit.
    """
    return {
        name: code.entropy + posteriors[name].log_prob(codes[name]).mean(dim=0)
        for name, code in spec.codes.items()
    }


def information_loss(spec: LatentSpec, bounds: dict[str, Tensor]) -> Tensor:
    """-lambda L_I summed over the codes, each with its own weight lambda (paper, eq. 6)."""
    return torch.stack([-code.weight * bounds[name].sum() for name, code in spec.codes.items()]).sum()


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """|grad_x D(x)|^2, the mean over real images (Mescheder et al. 2018, eq. 9, without gamma / 2).

    Args:
        logits: D's logits [N] on the images, with their graph.
        images: [N, C, H, W], requiring gradients. No image's logit may depend on another image.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()
