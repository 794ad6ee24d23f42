"""Confusion matrices cell by cell, and images written as PNG and NPZ files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infogan_dist.config.codes import CodeConfig
from infogan_dist.model.latents import LatentSpec
from infogan_dist.runtime.pictures import confusion_matrix, save_images, save_picture

WIDTH, HEIGHT = 44, 26
DARKEST = (8, 48, 107)
TABLE = np.array([[3, 1, 0], [0, 0, 0]])


def cell(picture: np.ndarray, row: int, column: int) -> np.ndarray:
    return picture[row * HEIGHT : (row + 1) * HEIGHT, column * WIDTH : (column + 1) * WIDTH]


def test_a_cell_is_the_darker_the_larger_its_share_of_its_row():
    picture = confusion_matrix(TABLE, ["a", "b"], ["x", "y", "z"])
    assert picture.shape == (3 * HEIGHT, 4 * WIDTH, 3)
    shares = np.zeros((3, 4))
    shares[1, 1:3] = 0.75, 0.25
    for row, column in np.ndindex(shares.shape):
        share = float(shares[row, column])
        colour = [round(255 - share * (255 - end)) for end in DARKEST]
        border = cell(picture, row, column)[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert (border == colour).all(), (row, column)


def test_each_cell_has_its_count_or_its_name():
    rows, columns = ["one", "two"], ["x", "y", "z"]
    picture = confusion_matrix(TABLE, rows, columns)
    assert (cell(picture, 0, 0) == 255).all()
    # A matrix of one row and column has the same cells, apart from the colours of the counts.
    for row, name in enumerate(rows, start=1):
        alone = confusion_matrix(np.array([[0]]), [name], ["x"])
        assert np.array_equal(cell(picture, row, 0), cell(alone, 1, 0))
    for column, name in enumerate(columns, start=1):
        alone = confusion_matrix(np.array([[0]]), ["one"], [name])
        assert np.array_equal(cell(picture, 0, column), cell(alone, 0, 1))
    alone = confusion_matrix(TABLE[:1], ["one"], columns)
    assert np.array_equal(picture[: 2 * HEIGHT], alone)
    dark, light, empty = (cell(picture, 1, column).astype(int) for column in (1, 2, 3))
    assert (dark >= dark[0, 0]).all()  # white digits on a dark cell
    assert dark.max() > 200
    for other in (light, empty):  # black digits on the others
        assert (other <= other[0, 0]).all()
        assert other.min() < 100


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_written_with_their_codes(tmp_path: Path, channels: int):
    spec = LatentSpec(3, {"digit": CodeConfig("categorical", 4), "style": CodeConfig("uniform", 2)})
    latents = spec.sample(0, "test", 0, 5)
    pixels = np.random.default_rng(0).integers(0, 256, (5, channels, 4, 6), np.uint8)
    save_images(torch.from_numpy(pixels) / 127.5 - 1, latents, tmp_path / "images.npz")
    with np.load(tmp_path / "images.npz") as file:
        assert set(file.files) == {"images", "codes.digit", "codes.style"}
        assert np.array_equal(file["images"], pixels.transpose(0, 2, 3, 1))
        for name, values in latents.codes.items():
            assert np.array_equal(file[f"codes.{name}"], values.numpy())
    assert list(tmp_path.iterdir()) == [tmp_path / "images.npz"]


def test_a_picture_is_a_png_file_of_its_pixels(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    save_picture(pixels, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        assert np.array_equal(np.asarray(picture), pixels)
