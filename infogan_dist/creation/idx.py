"""Sources of images in IDX files, the format of the MNIST site: MNIST itself and sets like it."""

import gzip
import logging
import zlib
from pathlib import Path

import numpy as np

from infogan_dist.creation.source import Source, array_source, read_class_names
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
# Names of classes that the files of a known set do not contain (Xiao, Rasul & Vollgraf 2017).
CLASS_NAMES = {
    "fashion-mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
}  # fmt: skip
logger = logging.getLogger(__name__)


def mnist(folder: Path | None, split: str) -> Source:
    """Return MNIST from its official IDX files.

    Args:
        folder: contains the files, gzipped or not; None: they are downloaded, and checked by SHA-256.
        split: `train` or `test`.

    Raises:
        DataError: files are missing or damaged, or the download fails.
    """
    images, labels = (
        _downloaded(name, digest) if folder is None else _find(folder, name)
        for name, digest in MNIST_FILES[split].items()
    )
    return _labelled_images(f"mnist-{split}", images, labels, DIGITS)


def idx(folder: Path, split: str, name: str | None = None, names: str | None = None) -> Source:
    """Return the images of a folder of IDX files with the names of MNIST's, such as those of Fashion-MNIST.

    Args:
        folder: contains `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, or `t10k-...`, with a hyphen
            or a dot before `idx`, gzipped or not.
        split: `train` or `test`.
        name: the data's name, to which the split is appended; None: the folder's.
        names: a file with one class name per line, or a set of `CLASS_NAMES`; None: the labels as numbers.

    Raises:
        DataError: files are missing or damaged, or a label has no name.
    """
    images, labels = (_find(folder, file) for file in MNIST_FILES[split])
    class_names = None if names is None else _class_names(names)
    return _labelled_images(f"{name or folder.resolve().name}-{split}", images, labels, class_names)


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
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: not a complete IDX file of bytes ({error}); replace it") from None


def _labelled_images(name: str, images: Path, labels: Path, label_names: list[str] | None) -> Source:
    """Return the source of a file of images [N, H, W] and one of labels [N]."""
    pixels, numbers = read_idx(images), read_idx(labels)
    for path, array, dimensions in ((images, pixels, 3), (labels, numbers, 1)):
        if array.ndim != dimensions:
            raise DataError(
                f"{path}: an array of {array.ndim} dimensions instead of {dimensions}; replace it"
            )
    return array_source(name, pixels[:, None], numbers, label_names)


def _class_names(names: str) -> list[str]:
    """Return the names of a known set, or the lines of a file."""
    if names in CLASS_NAMES:
        return list(CLASS_NAMES[names])
    remedy = f"--names takes a file with one class name per line, or one of {', '.join(CLASS_NAMES)}"
    return read_class_names(Path(names), remedy)


def _find(folder: Path, name: str) -> Path:
    """Return an official file of a folder, which may be unpacked, and have a dot before `idx`."""
    for candidate in (name, name.removesuffix(".gz")):
        for path in (folder / candidate, folder / candidate.replace("-idx", ".idx")):
            if path.is_file():
                return path
    raise DataError(
        f"{folder}: {name} is missing; give the folder of the IDX files (an image file and a label file)"
    )


def _downloaded(name: str, digest: str) -> Path:
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
