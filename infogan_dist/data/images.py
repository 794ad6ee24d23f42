"""Images as files, as uint8 arrays and as tensors in [-1, 1]: every conversion between them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from infogan_dist.errors import DataError

if TYPE_CHECKING:  # Importing torch takes seconds, and a command line has to answer sooner.
    import torch
    from torch import Tensor

# Members of a tar with another ending are never decoded as images.
IMAGE_TYPES = ("png", "jpg", "jpeg", "webp", "bmp")


def to_float(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uint8 images [N, C, H, W] as floating-point numbers in [-1, 1], the range of tanh."""
    return images.to(dtype) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Return images [N, C, H, W] in [-1, 1] as uint8; values outside are clamped."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


def decode_image(
    member: dict[str, bytes], where: str, shape: tuple[int, int, int] | None, fit: bool
) -> np.ndarray:
    """Decode the image of a sample.

    Args:
        member: the sample's files by ending.
        where: name of the sample in error messages.
        shape: required (channels, height, width); None: any, in grey or colour as in the file.
        fit: scale and crop an image of another size to `shape`, preserving the aspect; else it is refused.

    Returns:
        uint8 [C, H, W].

    Raises:
        DataError: there is no image, it cannot be decoded, or it has another shape.
    """
    kind = next((k for k in IMAGE_TYPES if k in member), None)
    if kind is None:
        raise DataError(
            f"{where}: no image among {sorted(member)}; add a file of type {', '.join(IMAGE_TYPES)}"
        )
    try:
        with Image.open(io.BytesIO(member[kind]), formats=("PNG", "JPEG", "WEBP", "BMP")) as image:
            array = as_array(image, shape if fit else None)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}.{kind}: not a readable image ({error}); replace it") from None
    if shape is not None and array.shape != shape:
        raise DataError(
            f"{where}.{kind}: an image of shape {list(array.shape)} instead of {list(shape)}; "
            "fit it or leave it out"
        )
    return array


def as_array(image: Image.Image, shape: tuple[int, int, int] | None) -> np.ndarray:
    """Convert a PIL image to uint8 [C, H, W].

    Args:
        image: of any size and mode.
        shape: (channels, height, width) to scale and crop to; None: its own size, with one channel if it has
            no colours and three otherwise.
    """
    image = ImageOps.exif_transpose(image)
    if shape is None:
        grey = image.mode in ("1", "L", "LA", "I", "I;16", "F")
        image = image.convert("L" if grey else "RGB")
    else:
        image = image.convert("L" if shape[0] == 1 else "RGB")
        if image.size != (shape[2], shape[1]):
            image = ImageOps.fit(image, (shape[2], shape[1]), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def encode_png(array: np.ndarray) -> bytes:
    """Encode an image, uint8 [C, H, W] with C = 1 or 3, as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)).save(buffer, "png")
    return buffer.getvalue()
