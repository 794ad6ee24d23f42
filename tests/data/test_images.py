"""Conversions between uint8 and floating-point images."""

import numpy as np
import pytest
import torch

from infogan_dist.data.images import decode_image, encode_png, to_float, to_uint8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_value_survives_the_way_there_and_back(dtype: torch.dtype):
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    images = to_float(values, dtype)
    assert images.dtype == dtype
    assert (images.min(), images.max()) == (-1, 1)
    assert torch.equal(to_uint8(images), values)


def test_values_outside_the_range_are_clamped():
    assert to_uint8(torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_encoded_image_is_decoded_without_loss(channels: int):
    image = np.random.default_rng(0).integers(0, 256, (channels, 5, 7), np.uint8)
    decoded = decode_image({"png": encode_png(image)}, "x", (channels, 5, 7), fit=False)
    assert np.array_equal(decoded, image)
