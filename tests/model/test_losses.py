"""Losses against their papers' equations, written out."""

import pytest
import torch

from infogan_dist.model.losses import fake_loss, generator_loss, r1_penalty, real_loss

LOGITS = torch.tensor([-3.0, -0.5, 0.0, 0.7, 4.0], dtype=torch.float64)
D = torch.sigmoid(LOGITS)
EXPECTED = {
    "nonsaturating": (-D.log(), -(1 - D).log(), -D.log()),
    "hinge": (-torch.clamp(LOGITS - 1, max=0), -torch.clamp(-LOGITS - 1, max=0), -LOGITS),
    "least_squares": ((LOGITS - 1) ** 2 / 2, LOGITS**2 / 2, (LOGITS - 1) ** 2 / 2),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_losses_are_the_papers_equations(kind: str):
    for ours, equation in zip((real_loss, fake_loss, generator_loss), EXPECTED[kind], strict=True):
        torch.testing.assert_close(ours(kind, LOGITS), equation.mean(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", EXPECTED)
def test_losses_push_the_right_way(kind: str):
    for loss, sign in ((real_loss, -1), (fake_loss, 1), (generator_loss, -1)):
        logits = torch.zeros(3, requires_grad=True)
        loss(kind, logits).backward()
        assert logits.grad is not None
        if not (kind == "least_squares" and loss is fake_loss):  # whose minimum is at 0
            assert (logits.grad * sign > 0).all()


def test_losses_of_sure_networks_stay_finite():
    sure = torch.tensor([-1e4, 1e4])
    for kind in ("nonsaturating", "hinge"):
        for loss in (real_loss, fake_loss, generator_loss):
            assert loss(kind, sure).isfinite()


def test_r1_is_the_squared_gradient_norm_of_a_known_function():
    # D(x) = sum_i w_i x_i^2 / 2: its gradient is w x
    torch.manual_seed(0)
    weight = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)
    images = torch.randn(6, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty((weight * images.square() / 2).flatten(1).sum(1), images)
    torch.testing.assert_close(penalty, (weight * images).square().flatten(1).sum(1).mean())
    penalty.backward()  # a double backward: it reaches D's weights
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, (2 * weight * images.square()).mean(0).detach())
