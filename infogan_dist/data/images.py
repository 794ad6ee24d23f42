"""Images as files, as uint8 arrays and as tensors in [-1, 1]: every conversion between them."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from infogan_dist.errors import DataError

if TYPE_CHECKING:  # Importing torch takes seconds, and a command line has to answer sooner.
    import torch
    from torch import Tensor

# Members of a tar with another ending are never decoded as images.
IMAGE_TYPES = ("png", "jpg", "jpeg", "webp", "bmp")
# Formats of Pillow. Without a restriction it starts other programs for some, whatever a file's ending is.
TAR_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# The number above which Pillow warns; a decoded image takes 4 bytes per pixel.
MAX_PIXELS = 89_478_485
# Transpositions that undo the orientations of EXIF. `ImageOps.exif_transpose` also encodes the image's other
# EXIF tags, and fails if one of them is broken.
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_float(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uint8 images [N, C, H, W] as floating-point numbers in [-1, 1], the range of tanh."""
    return images.to(dtype) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Return images [N, C, H, W] in [-1, 1] as uint8; values outside are clamped."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


def decode_image(
    member: dict[str, bytes],
    where: str,
    shape: tuple[int, int, int] | None,
    fit: bool,
    background: str | None = None,
    ending: str | None = None,
) -> np.ndarray:
    """Decode the image of a sample.

    Args:
        member: the sample's files by ending.
        where: name of the sample in error messages.
        shape: required (channels, height, width); None: any, in grey or colour as in the file.
        fit: scale and crop an image of another size to `shape`, preserving the aspect; else it is refused.
        background: colour under transparent pixels; None: transparency is ignored.
        ending: of the image among the sample's files; None: there must be one image only.

    Returns:
        uint8 [C, H, W].

    Raises:
        DataError: there is no image, or more than one, it cannot be decoded, or it has another shape.
    """
    kind = image_ending(member, where, ending)
    where = f"{where}.{kind}"
    array = read_image(io.BytesIO(member[kind]), where, TAR_FORMATS, shape if fit else None, background)
    if shape is not None and array.shape != shape:
        raise DataError(
            f"{where}: an image of shape {list(array.shape)} instead of {list(shape)}; "
            f"leave it out, or fit all with {size_options(shape)}"
        )
    return array


def size_options(shape: tuple[int, ...]) -> str:
    """Return the options of `make_shards` that fit images to (channels, height, width)."""
    channels, height, width = shape
    size = f"{height}" if height == width else f"{width}x{height}"
    return f"--size {size} --mode {'grey' if channels == 1 else 'colour'}"


def has_image(endings: Collection[str]) -> bool:
    """Return whether files with these endings contain an image; if not, they are no sample."""
    return any(ending.rpartition(".")[2] in IMAGE_TYPES for ending in endings)


def image_ending(endings: Collection[str], where: str, chosen: str | None = None) -> str:
    """Return the ending of a sample's image.

    Args:
        endings: of the sample's files.
        where: name of the sample in error messages.
        chosen: the image's ending; None: there must be one image only.

    Raises:
        DataError: there is no image, or it is ambiguous which one is meant.
    """
    if chosen is not None:
        if chosen in endings:
            return chosen
        raise DataError(f"{where}: no .{chosen} among {sorted(endings)}; add it, or change --image")
    images = sorted(ending for ending in endings if has_image([ending]))
    if not images:
        raise DataError(
            f"{where}: no image among {sorted(endings)}; add a file of type {', '.join(IMAGE_TYPES)}"
        )
    # The key of a sample ends at the first dot of the file name, so that scan_0.5.png and scan_0.7.png are
    # files of one sample.
    dotted = "the key of a sample ends at the first dot of the file name; rename the files, or "
    if len(images) > 1:
        note = dotted if any("." in ending for ending in images) else ""
        raise DataError(
            f"{where}: several images, {', '.join(images)}; {note}choose with --image {images[0]}"
        )
    if "." in images[0]:
        raise DataError(f"{where}: an image .{images[0]}; {dotted}choose with --image {images[0]}")
    return images[0]


def read_image(
    file: Path | IO[bytes],
    where: str,
    formats: Collection[str],
    shape: tuple[int, int, int] | None,
    background: str | None = None,
) -> np.ndarray:
    """Read an image file; of several frames or pages the first.

    Args:
        file: path, or the open file.
        where: name of the file in error messages.
        formats: of Pillow; a file of another format is refused.
        shape: (channels, height, width) to scale and crop to; None: its own size, with one channel if it has
            no colours and three otherwise.
        background: colour under transparent pixels; None: transparency is ignored.

    Returns:
        uint8 [C, H, W].

    Raises:
        DataError: it cannot be decoded.
    """
    try:
        with Image.open(file, formats=tuple(formats)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
            return as_array(image, shape, background)
    except UnidentifiedImageError:
        reason = f"none of {', '.join(formats)}, damaged, or with channels or bits that Pillow cannot read"
    except Exception as error:  # For a damaged file Pillow raises errors of nearly every type.
        reason = str(error) if isinstance(error, (OSError, ValueError)) else repr(error)
    raise DataError(f"{where}: not a readable image ({reason}); replace or remove it")


def is_animated(file: Path | IO[bytes], formats: Collection[str]) -> bool:
    """Return whether an image file, which can be read, has several frames or pages.

    The additional pictures of a camera's JPEG, such as a preview, are no frames.
    """
    with Image.open(file, formats=tuple(formats)) as image:
        return bool(getattr(image, "is_animated", False)) and image.format != "MPO"


def as_array(
    image: Image.Image, shape: tuple[int, int, int] | None, background: str | None = None
) -> np.ndarray:
    """Convert a PIL image to uint8 [C, H, W], upright as by its EXIF orientation.

    Args:
        image: of any size; 8 or 16 bits per channel.
        shape: (channels, height, width) to scale and crop to; None: its own size, with one channel if it has
            no colours and three otherwise.
        background: colour under transparent pixels; None: transparency is ignored.

    Raises:
        ValueError: its pixels have no known range.
    """
    image.load()  # A PNG file may contain EXIF behind its pixels.
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    image = _with_8_bits(image)
    if orientation in TRANSPOSITIONS:
        image = image.transpose(TRANSPOSITIONS[orientation])
    is_grey = image.mode in ("1", "L", "LA") if shape is None else shape[0] == 1
    if background is not None and ("A" in image.getbands() or "transparency" in image.info):
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA"))
    mode = "L" if is_grey else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if shape is not None and image.size != (shape[2], shape[1]):
        image = ImageOps.fit(image, (shape[2], shape[1]), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _with_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of 16 bits to 8. Raises `ValueError` for values whose range is unknown."""
    # Pillow before 11.3 returns a grey PNG file of 16 bits in a mode of 32 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"its pixels are {kind} of unknown range: convert them to 8 or 16 bits")
    return image


def encode_png(array: np.ndarray) -> bytes:
    """Encode an image, uint8 [C, H, W] with C = 1 or 3, as a PNG file. Raises `DataError` for another C."""
    if array.shape[0] not in (1, 3):
        raise DataError(f"an image of {array.shape[0]} channels; convert it to 1 (grey) or 3 (colour)")
    buffer = io.BytesIO()
    Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)).save(buffer, "png")
    return buffer.getvalue()
