"""Grids and the pictures of a run."""

import numpy as np
import pytest
import torch
from torch import nn

from infogan_dist.config.codes import CodeConfig
from infogan_dist.model.latents import LatentSpec
from infogan_dist.runtime.pictures import (
    generate_images,
    image_grid,
    picture_latents,
    run_pictures,
)

SPEC = LatentSpec(
    3,
    {
        "digit": CodeConfig("categorical", 4),
        "style": CodeConfig("uniform", 2),
        "coin": CodeConfig("bernoulli"),
    },
)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_images_row_by_row_with_their_values(channels: int):
    images = torch.full((6, channels, 56, 56), -1.0)
    images[4] = 1.0
    picture = image_grid(images, 3)
    assert picture.shape == (2 * 58 + 2, 3 * 58 + 2, 3)
    assert (picture[60:116, 60:116] == 255).all()  # second row, second column
    assert (picture[2:58, 2:58] == 0).all()
    assert (picture[:2] == 128).all()


def test_small_images_are_enlarged_by_a_whole_factor():
    images = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    picture = image_grid(images, 1)[2:-2, 2:-2, 0]
    assert picture.shape == (56, 56)
    assert np.array_equal(picture[::7, ::7], ((images[0, 0] + 1) * 127.5).round().numpy())


def test_generating_uses_running_statistics_and_changes_nothing():
    network = nn.Sequential(nn.Linear(SPEC.width, 4), nn.BatchNorm1d(4), nn.Unflatten(1, (1, 2, 2)))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    latents = picture_latents(SPEC, 0, 300)
    one_by_one = torch.cat([generate_images(network, latents[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(generate_images(network, latents)[:5], one_by_one)
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_run_has_pictures_of_samples_and_of_each_variable():
    network = nn.Sequential(nn.Linear(SPEC.width, 4), nn.Unflatten(1, (1, 2, 2)))
    pictures = run_pictures(network, SPEC, 0)
    assert list(pictures) == [
        "samples",
        "traversal/digit",
        "traversal/style.0",
        "traversal/style.1",
        "traversal/coin",
    ]
    assert all(
        np.array_equal(a, b)
        for a, b in zip(pictures.values(), run_pictures(network, SPEC, 0).values(), strict=True)
    )
