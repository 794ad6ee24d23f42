"""Data sets of other libraries as sources: of torchvision, the Hugging Face library datasets, or alike."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from infogan_dist.creation.source import Source, channels_first, numbered_names, require_shape
from infogan_dist.data.images import as_array
from infogan_dist.data.shards import NO_LABEL
from infogan_dist.errors import DataError


class MapDataset(Protocol):
    """Samples by number."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return a sample."""
        ...


def dataset_source(
    dataset: MapDataset,
    name: str | None = None,
    image: str = "image",
    label: str = "label",
    shape: tuple[int, int, int] | None = None,
) -> Source:
    """Return the images of a data set.

    Args:
        dataset: its samples are pairs (image, label), as of torchvision, mappings, as of the library
            datasets, or images alone, and the same each time. An image is a PIL image or an array or tensor
            [H, W], [H, W, C] or [C, H, W], uint8, or floating-point in [0, 1]. A label is an integer or None.
            Forked processes read the samples, as with torch's `DataLoader`.
        name: the data's name; None: that of its class.
        image, label: keys of the samples that are mappings.
        shape: (channels, height, width) to which PIL images are fitted; None: all must have the same shape.

    Raises:
        DataError: there are no samples, or some are of other types.
    """
    name = name or type(dataset).__name__.lower()
    if len(dataset) == 0:
        raise DataError(f"{name}: contains no samples; use another data set")

    def read_sample(i: int) -> tuple[np.ndarray, int]:
        where = f"{name}, sample {i}"
        picture, value = _image_and_label(dataset[i], image, label, where)
        return _pixels(picture, shape, where), _label(value, where)

    first = read_sample(0)[0].shape

    names = _class_names(dataset, label)
    if names is None:
        names = numbered_names(name, np.array([read_sample(i)[1] for i in range(len(dataset))]))

    def read(i: int) -> tuple[np.ndarray, int]:
        pixels, number = read_sample(i)
        require_shape(pixels.shape, first, f"{name}, sample {i}")
        if not NO_LABEL <= number < len(names):
            raise DataError(f"{name}, sample {i}: its label {number} is none of {len(names)} classes")
        return pixels, number

    return Source(name, len(dataset), list(names), read)


def _image_and_label(sample: Any, image: str, label: str, where: str) -> tuple[Any, Any]:
    if isinstance(sample, Mapping):
        if image not in sample:
            raise DataError(f"{where}: has no key {image}; choose among {', '.join(map(str, sample))}")
        return sample[image], sample.get(label)
    if isinstance(sample, tuple | list):
        return sample[0], sample[1] if len(sample) > 1 else None
    return sample, None


def _pixels(image: Any, shape: tuple[int, int, int] | None, where: str) -> np.ndarray:
    """Return an image as uint8 [C, H, W]."""
    if isinstance(image, Image.Image):
        try:
            return as_array(image, shape)
        except ValueError as error:
            raise DataError(f"{where}: {error}; or leave it out") from None
    array = np.asarray(image)
    if array.dtype.kind == "f":
        # As by torchvision's ToTensor, which divides by 255.
        if not 0 <= array.min() <= array.max() <= 1:
            raise DataError(f"{where}: values from {array.min()} to {array.max()}; leave the scaling out")
        array = (array * 255).round().astype(np.uint8)
    return channels_first(array[None], where)[0]


def _label(value: Any, where: str) -> int:
    if value is None:
        return NO_LABEL
    try:
        return int(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: its label {value!r} is no integer; convert it") from None


def _class_names(dataset: MapDataset, label: str) -> Sequence[str] | None:
    """Return the names of the classes, as torchvision and the library datasets offer them, or None."""
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        return getattr(features.get(label), "names", None)
    classes = getattr(dataset, "classes", None)
    return None if classes is None else [str(name) for name in classes]
