"""Biases and initial weights of the networks."""

import pytest
import torch
from torch import nn

from infogan_dist.config.load import read_config
from infogan_dist.model.latents import LatentSpec
from infogan_dist.model.networks import build_networks

WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
SHAPE_CHANGES = (nn.Unflatten, nn.Flatten, nn.ZeroPad2d)


def networks(preset: str, seed: int = 0) -> tuple[nn.Module, ...]:
    config = read_config([f"configs/{preset}.yaml", f"seed={seed}"])
    spec = LatentSpec(config.noise, config.codes)
    return build_networks(config.networks, spec, (1, 28, 28), config.seed)


@pytest.mark.parametrize("preset", ["mnist", "mnist_tutorial"])
def test_a_layer_has_a_bias_unless_batch_norm_follows_directly(preset: str):
    seen = set()
    for network in networks(preset):
        leaves = [m for m in network.modules() if not list(m.children())]
        leaves = [m for m in leaves if not isinstance(m, SHAPE_CHANGES)]
        for module, following in zip(leaves, [*leaves[1:], None], strict=True):
            if isinstance(module, WEIGHTED):
                normed = isinstance(following, NORMS)
                assert (module.bias is None) == normed
                assert module.bias is None or not module.bias.any()  # biases start at 0
                seen.add(normed)
            elif isinstance(module, NORMS):
                assert torch.equal(module.weight, torch.ones_like(module.weight))
                assert not module.bias.any()
    assert seen == {True, False}


def test_initial_weights_are_those_of_earlier_versions():
    """Runs of one seed are compared across versions, so that their initial weights must not change."""
    first = [next(n.parameters()).detach().flatten()[:3].tolist() for n in networks("mnist", seed=3)]
    # torch's draws are equal on all CPUs up to the rounding of logarithm and cosine.
    assert first == [
        pytest.approx([-0.0005549053, 0.0250742529, 0.0057823979], abs=1e-6),
        pytest.approx([-0.0257680044, 0.0158607122, -0.0194145981], abs=1e-6),
        pytest.approx([-0.0214859955, -0.0243401490, 0.0038297570], abs=1e-6),
    ]
