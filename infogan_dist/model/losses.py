"""What is minimised: pure functions of tensors, each with its paper and equation.

Losses are means over the local batch, so that their average over processes and micro-batches of equal size is
the mean over the global batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

from infogan_dist.model.latents import LatentSpec

DiscriminatorLoss = Callable[[Tensor | None, Tensor | None], dict[str, Tensor]]
GeneratorLoss = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class AdversarialLoss:
    """An adversarial objective as functions of D's logits.

    Attributes:
        discriminator: D's loss from the logits of real images [N] and of generated ones [N], as terms by
            name, which are logged as `d/NAME` and add up to `d/adversarial`. Under `d_updates=split` one of
            the two is None.
        generator: G's loss from the logits of generated images [N] and, if `paired`, of real ones [N].
        winning_threshold: value of `d/adversarial` below which D separates real from generated images so
            well that G learns next to nothing.
        paired: whether the loss compares real image i with generated image i. Both logits are then always
            given, so `d_updates=split` is refused.
    """

    discriminator: DiscriminatorLoss
    generator: GeneratorLoss
    winning_threshold: float
    paired: bool = False


def separable(
    real: Callable[[Tensor], Tensor], fake: Callable[[Tensor], Tensor], generator: Callable[[Tensor], Tensor]
) -> tuple[DiscriminatorLoss, GeneratorLoss]:
    """Return both parts of an objective in which every image has a loss of its own.

    Args:
        real, fake, generator: a logit's loss for D on a real image, for D and for G on a generated one.
    """

    def discriminator(real_logits: Tensor | None, fake_logits: Tensor | None) -> dict[str, Tensor]:
        terms = {}
        if real_logits is not None:
            terms["real"] = real(real_logits).mean()
        if fake_logits is not None:
            terms["fake"] = fake(fake_logits).mean()
        return terms

    return discriminator, lambda fake_logits, real_logits: generator(fake_logits).mean()


def _given(logits: Tensor | None) -> Tensor:
    """Return the logits that a paired loss always receives."""
    assert logits is not None
    return logits


# The loss of each `objective.loss`.
LOSSES = {
    # -log D(x), -log(1 - D(G(z, c))), -log D(G(z, c)), D = sigmoid(logit): Goodfellow et al. 2014, eq. 1,
    # section 3
    "nonsaturating": AdversarialLoss(
        *separable(lambda x: F.softplus(-x), F.softplus, lambda x: F.softplus(-x)), winning_threshold=0.05
    ),
    # max(0, 1 - logit), max(0, 1 + logit), -logit: Lim & Ye 2017; Miyato et al. 2018, eq. 16 and 17
    "hinge": AdversarialLoss(
        *separable(lambda x: F.relu(1 - x), lambda x: F.relu(1 + x), lambda x: -x), winning_threshold=0.05
    ),
    # (logit - 1)^2 / 2, logit^2 / 2, (logit - 1)^2 / 2: Mao et al. 2017, eq. 9
    "least_squares": AdversarialLoss(
        *separable(
            lambda x: 0.5 * (x - 1).square(), lambda x: 0.5 * x.square(), lambda x: 0.5 * (x - 1).square()
        ),
        winning_threshold=0.05,
    ),
    # -log sigmoid(D(x) - D(G(z, c))) and its opposite: Jolicoeur-Martineau 2019; with R1 and R2, Huang et al.
    # 2024 ("The GAN is dead; long live the GAN!", eq. 2)
    "relativistic": AdversarialLoss(
        lambda real, fake: {"pairs": F.softplus(_given(fake) - _given(real)).mean()},
        lambda fake, real: F.softplus(_given(real) - fake).mean(),
        winning_threshold=0.05,
        paired=True,
    ),
}


def lower_bound(
    spec: LatentSpec, posteriors: dict[str, Distribution], codes: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return L_I = H(c) + E[log Q(c|x)] of each variable of each code, in nats (paper, eq. 5).

    Args:
        spec: the codes.
        posteriors: Q(c|x) by code, batch shape [N, V].
        codes: the values [N, V] by code from which the images were generated.

    Returns:
        [V] by code. For a discrete code it is at most H(c); for a continuous one it is a density's and has no
        upper limit.
    """
    return {
        name: code.entropy + posteriors[name].log_prob(codes[name]).mean(dim=0)
        for name, code in spec.codes.items()
    }


def information_loss(spec: LatentSpec, bounds: dict[str, Tensor]) -> Tensor:
    """Return -lambda L_I, summed over the given codes, each with its own weight lambda (paper, eq. 6)."""
    return torch.stack([-spec.codes[name].weight * bound.sum() for name, bound in bounds.items()]).sum()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Return the mean of |grad_x D(x)|^2 over images (Mescheder et al. 2018, eq. 9, without gamma / 2).

    It is called R1 on real images, and R2 on generated ones.

    Under fp16 the gradient within the penalty is not multiplied by the loss scaler's factor, so that elements
    below 6e-8 become 0; the gradient of the penalty is scaled like that of every other term.

    Args:
        logits: D's logits [N] of the images, with their graph.
        images: [N, C, H, W], requiring gradients. With batch norm in D, where a logit depends on other
            images as well, the penalty is that of the gradient of the sum of all logits.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()
