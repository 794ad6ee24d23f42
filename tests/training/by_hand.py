"""Training steps in plain torch, from the papers' equations, without a function of the package.

The networks are called as functions: G(z, c), D(x) = (features, logit), Q(features). Every global batch is
computed at once, whatever the number of micro-batches.
"""

import copy
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infogan_dist.model.latents import Latents
from infogan_dist.training.step import TrainStep
from tests.training.steps import inputs

Terms = dict[str, Tensor]


def adversarial_losses(kind: str, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return D's loss of real images, D's loss of generated ones, and G's loss, each of these logits.

    Goodfellow et al. 2014, eq. 1 and section 3; Miyato et al. 2018, eq. 16 and 17; Mao et al. 2017, eq. 9
    with a = 0, b = c = 1.
    """
    if kind == "nonsaturating":
        real, fake = -F.logsigmoid(logits), -F.logsigmoid(-logits)  # 1 - sigmoid(x) = sigmoid(-x)
        return real.mean(), fake.mean(), real.mean()
    zero = torch.zeros_like(logits)
    if kind == "hinge":
        real, fake = -torch.minimum(zero, logits - 1), -torch.minimum(zero, -logits - 1)
        return real.mean(), fake.mean(), -logits.mean()
    assert kind == "least_squares"
    real, fake = (logits - 1) ** 2 / 2, logits**2 / 2
    return real.mean(), fake.mean(), real.mean()


def information(params: Tensor, codes: dict[str, Tensor]) -> tuple[Tensor, Terms]:
    """Return -lambda L_I (Chen et al. 2016, eq. 5 and 6) of the small config's codes, and its terms.

    Args:
        params: Q's output [N, 14]: 10 logits of `digit`, 2 means and 2 log deviations of `style`.
        codes: the values by name.
    """
    digit = math.log(10) - F.cross_entropy(params[:, :10], codes["digit"][:, 0])
    mean, sigma = params[:, 10:12], params[:, 12:14].exp()
    density = -(((codes["style"] - mean) / sigma) ** 2) / 2 - sigma.log() - math.log(2 * math.pi) / 2
    style = math.log(2) + density.mean(0)
    # The best posterior of U(-1, 1) that ignores x is N(0, 1/3); that of `digit` is uniform, with bound 0.
    ignoring = math.log(2) - math.log(2 * math.pi / 3) / 2 - 1 / 2
    terms = {"bound/digit": digit, "gain/digit": digit, "bound/style": style.sum()}
    terms["gain/style"] = style.sum() - 2 * ignoring
    for i in range(2):
        terms |= {f"bound/style.{i}": style[i], f"gain/style.{i}": style[i] - ignoring}
        terms[f"sigma/style.{i}"] = sigma[:, i].mean()
    return -(digit + 0.1 * style.sum()), terms


def forward_untracked(network: nn.Module, x: Tensor) -> Any:
    """Return a network's output; batch norm normalises by the batch, and its statistics do not change."""
    return torch.func.functional_call(network, {n: b.clone() for n, b in network.named_buffers()}, (x,))


def descend(adam: torch.optim.Adam, loss: Tensor, clip: float | None) -> Tensor:
    """Take a step of Adam on a loss; return the norm of all gradients together, before clipping.

    Parameters without a path to the loss get no gradient, so that Adam does not move them.
    """
    parameters = adam.param_groups[0]["params"]
    adam.zero_grad()
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
    ):
        parameter.grad = gradient
    norm = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm()
    if clip is not None:
        nn.utils.clip_grad_norm_(parameters, clip)
    adam.step()
    return norm


class StepsByHand:
    """Copies of a step's networks, trained by the paper's equations.

    Attributes:
        networks: by name, as in the package's state.
        terms: numbers of the last step, by the name under which they are logged.
    """

    def __init__(self, train_step: TrainStep):
        self.config, self.source, self.step = train_step.config, train_step, 0
        self.networks = {n: copy.deepcopy(net).train() for n, net in train_step.state.networks().items()}
        self.g, self.d, self.q = (self.networks[n] for n in ("generator", "discriminator", "recognition"))
        self.q_with_d = self.config.objective.q_step == "discriminator"
        groups = ([self.d, self.q], [self.g]) if self.q_with_d else ([self.d], [self.g, self.q])
        settings = (self.config.optim.discriminator, self.config.optim.generator)
        self.adams = [
            torch.optim.Adam(
                itertools.chain(*(n.parameters() for n in group)), a.lr, (a.beta1, a.beta2), a.eps
            )
            for group, a in zip(groups, settings, strict=True)
        ]
        self.clips = [a.clip for a in settings]
        self.terms: Terms = {}

    def run(self, steps: int) -> dict[str, Tensor]:
        """Do the steps, and return all weights and buffers."""
        for _ in range(steps):
            real, latents = inputs(self.source, self.step)
            fake = self.g(latents.vector)
            self.terms = {}
            if self.config.objective.d_updates == "joint":
                norm = self._update_d(real, fake, latents)
            else:  # half a batch of real images, then as many generated ones
                first = self._update_d(real, None, latents)
                norm = (first + self._update_d(None, fake[::2], latents[::2])) / 2
            self.terms["grad_norm/d"] = norm
            self._update_g(fake, latents)
            self._average()
            self.step += 1
        return {f"{n}.{k}": v for n, net in self.networks.items() for k, v in net.state_dict().items()}

    def _update_d(self, real: Tensor | None, fake: Tensor | None, latents: Latents) -> Tensor:
        kind, r1 = self.config.objective.loss, self.config.objective.r1
        losses: Terms = {}
        if real is not None:
            real = real.clone().requires_grad_()
            features, logits = self.d(real)
            losses["d/real"] = adversarial_losses(kind, logits)[0]
            if r1:  # gamma / 2 E |grad D(x)|^2: Mescheder et al. 2018, eq. 9
                (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
                losses["d/r1"] = r1 / 2 * (gradient**2).sum((1, 2, 3)).mean()
            self.terms["d/logit_real"] = logits.mean()
            values = forward_untracked(self.q, features)[:, :10].argmax(1)
            self.terms |= {f"usage/digit.{k}": (values == k).double().mean() for k in range(10)}
        if fake is not None:
            features, logits = self.d(fake.detach())
            losses["d/fake"] = adversarial_losses(kind, logits)[1]
            self.terms["d/logit_fake"] = logits.mean()
            if self.q_with_d:
                losses["d/information"] = information(self.q(features), latents.codes)[0]
        loss = torch.stack(list(losses.values())).sum()
        self.terms |= losses
        self.terms["d/loss"] = self.terms.get("d/loss", torch.zeros(())) + loss
        adversarial = torch.stack([v for n, v in losses.items() if n in ("d/real", "d/fake")]).sum()
        self.terms["d/adversarial"] = self.terms.get("d/adversarial", torch.zeros(())) + adversarial
        return descend(self.adams[0], loss, self.clips[0])

    def _update_g(self, fake: Tensor, latents: Latents) -> None:
        features, logits = forward_untracked(self.d, fake)
        params = forward_untracked(self.q, features) if self.q_with_d else self.q(features)
        adversarial = adversarial_losses(self.config.objective.loss, logits)[2]
        negative_bound, terms = information(params, latents.codes)
        loss = adversarial + negative_bound
        self.terms |= {"g/adversarial": adversarial, "g/information": negative_bound, "g/loss": loss, **terms}
        self.terms["grad_norm/g"] = descend(self.adams[1], loss, self.clips[1])

    @torch.no_grad()
    def _average(self) -> None:
        """Average G's weights, with a decay that starts low."""
        decay = min(self.config.train.ema_decay, (1 + self.step) / (10 + self.step))
        live = dict(self.g.named_parameters())
        for name, mean in self.networks["generator_ema"].named_parameters():
            mean.copy_(decay * mean + (1 - decay) * live[name])
