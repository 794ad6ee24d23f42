"""Worlds that cannot share a batch, and batch norm in networks that are frozen or untracked."""

import pytest
import torch
from torch import nn

from infogan_dist.config.batch_share import launched_share
from infogan_dist.config.load import read_config
from infogan_dist.errors import ConfigError
from infogan_dist.runtime.batch_norm import frozen, untracked

QUICK = "configs/mnist5k.yaml"


@pytest.mark.parametrize(
    ("world", "overrides", "message"),
    [
        ("1", ["train.processes=2"], "2 asked for, 1 came up.*torchrun"),
        ("2", ["train.processes=1"], "1 asked for, 2 came up"),
        ("3", [], "data.lanes=6 or 9"),
        ("16", [], "data.lanes=16"),
    ],
)
def test_a_world_that_cannot_share_the_batch_is_refused(
    monkeypatch: pytest.MonkeyPatch, world: str, overrides: list[str], message: str
):
    config = read_config([QUICK, *overrides])
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ConfigError, match=message):
        launched_share(config)


def test_micro_batches_that_no_world_can_share_are_refused_with_the_config():
    with pytest.raises(ConfigError, match=r"train\.batch_size: .* multiple of 128"):
        read_config([QUICK, "train.accumulation=16"])


def test_frozen_networks_pass_gradients_on_and_keep_nothing():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    network[0].bias.requires_grad_(False)
    statistics = {k: v.clone() for k, v in network.state_dict().items()}
    x = torch.randn(5, 3, requires_grad=True)
    with frozen(network):
        y = network(x).square().sum()
    y.backward()
    assert x.grad is not None
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(v, statistics[k]) for k, v in network.state_dict().items())
    assert [p.requires_grad for p in network.parameters()] == [True, False, True, True]  # as before


def test_untracked_batch_norm_normalises_by_the_batch_as_training_does():
    torch.manual_seed(0)
    x = 3 * torch.randn(64, 4) + 7
    tracked, quiet = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    with untracked(quiet):
        assert torch.equal(quiet(x), tracked(x))
    assert torch.equal(quiet.running_mean, torch.zeros(4))  # type: ignore[arg-type]
    assert not torch.equal(tracked.running_mean, torch.zeros(4))  # type: ignore[arg-type]
    quiet(x)
    assert torch.equal(quiet.running_mean, tracked.running_mean)  # type: ignore[arg-type]
