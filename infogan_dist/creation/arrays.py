"""A source of arrays in an NPZ file."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from infogan_dist.creation.source import Source, array_source, channels_first
from infogan_dist.errors import DataError

IMAGES, LABELS = "images", "labels"  # default names of the arrays


def npz(
    path: Path, images: str = IMAGES, labels: str | None = None, label_names: list[str] | None = None
) -> Source:
    """Return the images of an NPZ file.

    Args:
        path: of the file.
        images: name of an array, uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels.
        labels: name of an array of integers [N] or [N, 1]; None: `labels`, if there is one.
        label_names: names of the classes by label; None: the labels as numbers.

    Raises:
        DataError: the file or an array is missing, damaged or of another type or shape.
    """
    pixels, numbers = _read(path, images, labels)
    if numbers is not None:
        if numbers.dtype.kind not in "iu" or numbers.size != len(numbers):
            raise DataError(
                f"{path}: {labels or LABELS} is {numbers.dtype} {list(numbers.shape)}; save integers [N]"
            )
        numbers = numbers.reshape(-1)
    return array_source(path.stem, channels_first(pixels, f"{path}: {images}"), numbers, label_names)


def _read(path: Path, images: str, labels: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return both arrays. Arrays of Python objects are refused, since these are pickles."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            for name in (images, labels or images):
                if name not in arrays:
                    raise DataError(
                        f"{path}: contains {', '.join(arrays.files)}, but no array {name}; choose with "
                        "--images and --labels"
                    )
            name = LABELS if labels is None else labels
            return arrays[images], arrays.get(name)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable NPZ file ({error}); replace it") from None
