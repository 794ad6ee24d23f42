"""Conversions between files, uint8 and floating-point images."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from infogan_dist.data import images
from infogan_dist.data.images import decode_image, encode_png, is_animated, read_image, to_float, to_uint8
from infogan_dist.errors import DataError

ALL = ("PNG", "JPEG", "TIFF", "GIF")


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


@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels_are_not_encoded(channels: int):
    with pytest.raises(DataError, match=f"an image of {channels} channels; convert it to 1"):
        encode_png(np.zeros((channels, 4, 4), np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    """An image as a file in memory."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_grey_values_of_16_bits_are_scaled_to_8(kind: str):
    values = np.array([[0, 100, 129, 257], [1000, 32768, 65406, 65535]], np.uint16)
    image = read_image(encoded(Image.fromarray(values), kind), "x", ALL, None)
    # Each value is the nearest multiple of 257.
    assert image.tolist() == [[[0, 0, 1, 1], [4, 128, 254, 255]]]
    fitted = read_image(encoded(Image.fromarray(values), kind), "x", ALL, (3, 2, 4))
    assert fitted.tolist() == image.repeat(3, 0).tolist()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((4, 4), 0.5, np.float32), "floating-point numbers of unknown range"),
        (np.full((4, 4), 100_000, np.int32), "32-bit integers of unknown range"),
    ],
)
def test_values_of_unknown_range_are_refused(values: np.ndarray, reason: str):
    file = encoded(Image.fromarray(values), "tiff")
    with pytest.raises(DataError, match=rf"x: not a readable image \(its pixels are {reason}"):
        read_image(file, "x", ALL, (1, 4, 4))


def test_a_file_of_a_format_that_is_not_listed_is_refused_whatever_its_name(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with Image.open(path) as image:  # Pillow itself would read it, with a program that interprets PostScript.
        assert image.format == "EPS"
    with pytest.raises(DataError, match=r"a\.png: not a readable image \(none of PNG, JPEG, TIFF, GIF"):
        read_image(path, "a.png", ALL, None)


def test_a_message_names_no_object_of_python():
    with pytest.raises(DataError) as error:
        decode_image({"png": b"no png"}, "x", None, fit=False)
    assert "<" not in str(error.value)


@pytest.mark.parametrize("error", [struct.error("x"), KeyError(1), ZeroDivisionError(), RecursionError()])
def test_any_error_of_pillow_is_reported_as_a_broken_image(error: Exception, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: object) -> np.ndarray:
        raise error

    monkeypatch.setattr(images, "as_array", fail)
    with pytest.raises(DataError, match=r"x\.png: not a readable image \(.+\); replace or remove it"):
        decode_image({"png": encode_png(np.zeros((1, 4, 4), np.uint8))}, "x", None, fit=False)


def test_a_picture_of_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    with pytest.raises(DataError, match="10x10 pixels, more than 99"):
        read_image(encoded(Image.new("L", (10, 10)), "png"), "x", ALL, None)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_as_pillow_does(orientation: int):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = encoded(Image.fromarray(pixels), "png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    file.seek(0)
    assert np.array_equal(read_image(file, "x", ALL, None)[0], expected)


def test_a_broken_exif_tag_does_not_matter():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "abcd"
    content = bytearray(encoded(Image.new("L", (4, 2)), "jpeg", exif=exif).getvalue())
    # Make (0x010F) becomes ResolutionUnit (0x0128), a number, of which the text is none.
    entry = content.index(struct.pack(">HH", 0x010F, 2))
    content[entry : entry + 2] = struct.pack(">H", 0x0128)
    with pytest.raises(Exception, match=r"required argument is not an integer|not supported"):
        ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert read_image(io.BytesIO(content), "x", ALL, None).shape == (1, 4, 2)


def half_transparent(mode: str) -> Image.Image:
    """A white image of 2x1 pixels, the second of which is transparent."""
    image = Image.new("RGBA", (2, 1), "white")
    image.putpixel((1, 0), (255, 255, 255, 0))
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([255, 255, 255, 255, 255, 255])
        image.putpixel((1, 0), 1)
        image.info["transparency"] = 1
        return image
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_have_the_colour_of_the_background(mode: str):
    def read(background: str | None, channels: int = 3) -> list[list[int]]:
        file = encoded(half_transparent(mode), "png")
        return read_image(file, "x", ALL, (channels, 1, 2), background)[:, 0].T.tolist()

    assert read(None) == [[255, 255, 255], [255, 255, 255]]
    assert read("#102030") == [[255, 255, 255], [16, 32, 48]]
    assert read("black", channels=1) == [[255], [0]]


def test_the_first_frame_of_an_animation_is_read():
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    files: list[Callable[[], io.BytesIO]] = [
        lambda: encoded(frames[0], "png", save_all=True, append_images=frames[1:]),
        lambda: encoded(frames[0], "gif", save_all=True, append_images=frames[1:]),
        lambda: encoded(frames[0], "tiff", save_all=True, append_images=frames[1:]),
    ]
    for file in files:
        assert is_animated(file(), ALL)
        assert read_image(file(), "x", ALL, (1, 4, 4)).max() == 10
    assert not is_animated(encoded(frames[0], "png"), ALL)
    # A camera's JPEG with a preview is one picture.
    assert not is_animated(encoded(frames[0], "mpo", save_all=True, append_images=frames[1:]), ALL)


@pytest.mark.parametrize(
    ("endings", "chosen", "expected"),
    [
        (["png", "cls"], None, "png"),
        (["jpg", "png"], "jpg", "jpg"),
        (["left.png", "right.png"], "right.png", "right.png"),
    ],
)
def test_the_image_of_a_sample_is_unambiguous(endings: list[str], chosen: str | None, expected: str):
    assert images.image_ending(endings, "x", chosen) == expected


@pytest.mark.parametrize(
    ("endings", "chosen", "message"),
    [
        (["jpg", "png"], None, "x: several images, jpg, png; choose with --image jpg"),
        (["png", "seg.png"], None, "x: several images, png, seg.png; the key .* ends at the first dot"),
        (["5.png"], None, r"x: an image \.5\.png; the key .* first dot .* --image 5\.png"),
        (["png"], "jpg", r"x: no \.jpg among \['png'\]; .*--image"),
        (["cls", "txt"], None, r"x: no image among \['cls', 'txt'\]"),
    ],
)
def test_an_ambiguous_image_is_refused(endings: list[str], chosen: str | None, message: str):
    with pytest.raises(DataError, match=message):
        images.image_ending(endings, "x", chosen)
