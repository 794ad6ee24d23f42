"""Losses against their papers' equations, written out."""

import pytest
import torch

from infogan_dist.config.schema import LOSSES as CHOICES
from infogan_dist.config.schema import ObjectiveConfig
from infogan_dist.model.losses import LOSSES, gradient_penalty

LOGITS = torch.tensor([-3.0, -0.5, 0.0, 0.7, 4.0], dtype=torch.float64)
D = torch.sigmoid(LOGITS)
# D's loss on real images, on generated ones, and G's.
EXPECTED = {
    "nonsaturating": (-D.log(), -(1 - D).log(), -D.log()),
    "hinge": (-torch.clamp(LOGITS - 1, max=0), -torch.clamp(-LOGITS - 1, max=0), -LOGITS),
    "least_squares": ((LOGITS - 1) ** 2 / 2, LOGITS**2 / 2, (LOGITS - 1) ** 2 / 2),
}


def losses(kind: str, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    loss = LOSSES[kind]
    return {**loss.discriminator(logits, logits), "generator": loss.generator(logits, None)}


def test_the_table_has_the_losses_that_the_config_offers():
    assert tuple(LOSSES) == CHOICES == ObjectiveConfig.__dataclass_fields__["loss"].metadata["choices"]
    assert EXPECTED.keys() == {kind for kind, loss in LOSSES.items() if not loss.paired}


@pytest.mark.parametrize("kind", EXPECTED)
def test_losses_are_the_equations_of_their_papers(kind: str):
    computed = losses(kind, LOGITS)
    for name, equation in zip(("real", "fake", "generator"), EXPECTED[kind], strict=True):
        torch.testing.assert_close(computed[name], equation.mean(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_half_of_the_discriminator_s_loss_can_be_computed_alone(kind: str):
    both = LOSSES[kind].discriminator(LOGITS, LOGITS)
    assert LOSSES[kind].discriminator(LOGITS, None) == {"real": both["real"]}
    assert LOSSES[kind].discriminator(None, LOGITS) == {"fake": both["fake"]}


@pytest.mark.parametrize("kind", EXPECTED)
def test_losses_push_logits_in_the_right_direction(kind: str):
    for name, sign in (("real", -1), ("fake", 1), ("generator", -1)):
        logits = torch.zeros(3, requires_grad=True)
        losses(kind, logits)[name].backward()
        assert logits.grad is not None
        if (kind, name) != ("least_squares", "fake"):  # whose minimum is at 0
            assert (logits.grad * sign > 0).all()


@pytest.mark.parametrize("kind", ["nonsaturating", "hinge"])
def test_losses_of_extreme_logits_stay_finite(kind: str):
    for value in losses(kind, torch.tensor([-1e4, 1e4])).values():
        assert value.isfinite()


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_discriminator_that_separates_perfectly_is_below_the_winning_threshold(kind: str):
    """An undecided one, with all logits 0, is above it; so is one that is wrong."""
    loss = LOSSES[kind]
    good = {"nonsaturating": (10.0, -10.0), "hinge": (1.0, -1.0), "least_squares": (1.0, 0.0)}[kind]
    for real, fake, wins in ((*good, True), (0.0, 0.0, False), (-1.0, 2.0, False)):
        terms = loss.discriminator(torch.full((4,), real), torch.full((4,), fake))
        assert (sum(float(v) for v in terms.values()) < loss.winning_threshold) == wins


def test_the_relativistic_loss_compares_pairs():
    """-log sigmoid(D(x_i) - D(G_i)) and its opposite, not the differences of other pairs."""
    loss, fake = LOSSES["relativistic"], LOGITS.flip(0) * 0.3
    difference = torch.sigmoid(LOGITS - fake)
    expected = {"pairs": -difference.log().mean()}
    torch.testing.assert_close(loss.discriminator(LOGITS, fake), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        loss.generator(fake, LOGITS), -(1 - difference).log().mean(), rtol=1e-12, atol=0
    )
    # log 2 where D cannot tell them apart; below the threshold where it can.
    assert float(loss.discriminator(LOGITS, LOGITS)["pairs"]) == pytest.approx(0.6931, abs=1e-4)
    assert float(loss.discriminator(LOGITS + 10, LOGITS)["pairs"]) < loss.winning_threshold


def test_r1_is_the_squared_gradient_norm_of_a_known_function():
    # D(x) = sum_i w_i x_i^2 / 2: its gradient is w x
    torch.manual_seed(0)
    weight = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)
    images = torch.randn(6, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty((weight * images.square() / 2).flatten(1).sum(1), images)
    torch.testing.assert_close(penalty, (weight * images).square().flatten(1).sum(1).mean())
    penalty.backward()  # a double backward, which reaches D's weights
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, (2 * weight * images.square()).mean(0).detach())
