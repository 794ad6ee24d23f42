"""Losses that divide images into clusters, against their definitions written out."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from infogan_dist.model.clustering import (
    balanced_targets,
    consistency_loss,
    mean_entropy,
    swapped_prediction_loss,
)

IMAGES, CATEGORIES = 256, 10


def random_log_probs(seed: int, images: int = IMAGES, categories: int = CATEGORIES) -> Tensor:
    """Return log probabilities [N, K] of which the last categories get the largest shares."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, categories, dtype=torch.float64, generator=generator)
    return (logits + torch.linspace(-1, 1, categories, dtype=torch.float64)).log_softmax(1)


def imbalance(targets: Tensor) -> float:
    """Return the largest relative deviation of a category's share from 1 / K."""
    return float((targets.mean(0) * targets.shape[1] - 1).abs().max())


@pytest.mark.parametrize(("sharpness", "iterations"), [(2.0, 4), (1.0, 1), (3.0, 7)])
def test_balanced_targets_scale_the_columns_and_rows_of_powers_in_turn(sharpness: float, iterations: int):
    log_probs = random_log_probs(0)
    expected = log_probs.exp() ** sharpness
    for _ in range(iterations):
        expected = expected / expected.sum(0, keepdim=True)
        expected = expected / expected.sum(1, keepdim=True)
    targets = balanced_targets(log_probs, sharpness, iterations)
    torch.testing.assert_close(targets, expected, rtol=1e-12, atol=0)
    if (sharpness, iterations) == (2.0, 4):
        torch.testing.assert_close(balanced_targets(log_probs), targets, rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_balanced_targets_add_up_to_one_and_categories_have_nearly_equal_shares(seed: int):
    """In these data the largest deviation of a share is 85 to 100% at first, and 1.2 to 1.6% afterwards.

    Each further iteration divides it by about 3.
    """
    log_probs = random_log_probs(seed)
    targets = balanced_targets(log_probs)
    ones = torch.ones(IMAGES, dtype=torch.float64)
    torch.testing.assert_close(targets.sum(1), ones, rtol=0, atol=1e-12)
    assert (targets >= 0).all()
    assert imbalance(log_probs.exp()) > 0.5
    assert 0.005 < imbalance(targets) < 0.03
    deviations = [imbalance(balanced_targets(log_probs, iterations=i)) for i in range(1, 9)]
    assert all(0.2 < after / before < 0.5 for before, after in pairwise(deviations))
    assert imbalance(balanced_targets(log_probs, iterations=40)) < 1e-9


def test_balanced_targets_follow_their_images_and_categories():
    log_probs = random_log_probs(0)
    generator = torch.Generator().manual_seed(1)
    rows, columns = (torch.randperm(n, generator=generator) for n in (IMAGES, CATEGORIES))
    permuted = balanced_targets(log_probs[rows][:, columns])
    torch.testing.assert_close(permuted, balanced_targets(log_probs)[rows][:, columns], rtol=1e-12, atol=0)


def test_balanced_targets_have_no_gradient():
    assert not balanced_targets(random_log_probs(0).requires_grad_()).requires_grad


def test_each_view_predicts_the_target_of_the_other():
    own, partner = random_log_probs(1, 5, 4), random_log_probs(2, 5, 4)
    targets = random_log_probs(3, 10, 4).exp()
    expected = 0.0
    for i in range(5):
        for k in range(4):
            expected -= float(targets[5 + i, k] * own[i, k] + targets[i, k] * partner[i, k]) / (2 * 5)
    loss = swapped_prediction_loss(own, partner, targets)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_consistency_is_the_symmetric_cross_entropy():
    """Of two images, the first with different views; the second, with equal views, has the entropy ln 2."""
    own = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64).log()
    partner = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64).log()
    first = -0.5 * (0.5 * math.log(0.9) + 0.5 * math.log(0.1) + math.log(0.5))
    loss = float(consistency_loss(own, partner))
    assert loss == pytest.approx((first + math.log(2)) / 2, rel=1e-12)
    assert float(consistency_loss(partner, own)) == pytest.approx(loss, rel=1e-12)


def test_consistency_is_lowest_for_equal_and_certain_views():
    """It is 0 there, up to probabilities of e^-40, and positive elsewhere."""
    certain = (40.0 * torch.eye(4, dtype=torch.float64)).log_softmax(1)
    assert 0 <= float(consistency_loss(certain, certain)) < 1e-12
    assert float(consistency_loss(certain, certain.roll(1, 0))) == pytest.approx(40, rel=1e-12)
    views = [random_log_probs(seed, 4, 4) for seed in range(20)]
    assert all(float(consistency_loss(a, b)) > 0.3 for a in views for b in (*views, certain))


@pytest.mark.parametrize("categories", [2, 10, 1000])
def test_entropy_is_largest_for_equal_shares_and_0_for_one_category(categories: int):
    """The constant in the logarithm of a share p changes the entropy by less than 1e-8, K times in all."""
    tolerance = 1e-8 * categories
    equal = torch.full((categories,), 1 / categories, dtype=torch.float64)
    assert float(mean_entropy(equal)) == pytest.approx(math.log(categories), rel=0, abs=tolerance)
    one = torch.eye(categories, dtype=torch.float64)[0].requires_grad_()
    entropy = mean_entropy(one)
    assert float(entropy.detach()) == pytest.approx(0, abs=tolerance)
    entropy.backward()
    assert one.grad is not None
    assert one.grad.isfinite().all()


def test_entropy_is_in_nats():
    shares = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
    assert float(mean_entropy(shares)) == pytest.approx(1.5 * math.log(2), rel=0, abs=4e-8)
