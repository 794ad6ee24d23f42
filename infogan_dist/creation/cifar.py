"""CIFAR-10 from its official files, of the Python or of the binary version."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from infogan_dist.creation.source import Source, array_source
from infogan_dist.errors import DataError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
FOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin")  # of the archives, within the given folder
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32  # of an image, also bytes


def _encode(text: str, encoding: str) -> bytes:
    """Restore bytes, which Python 3 writes as text into a pickle of protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it contains text in {encoding}")
    return text.encode(encoding)


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # the function by which NumPy restores an array
# The only functions and types that a batch of the Python version contains.
PICKLED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


def cifar10(folder: Path, split: str) -> Source:
    """Return CIFAR-10 (Krizhevsky 2009), 32x32 in colour.

    Args:
        folder: contains the unpacked batches (`data_batch_1` or `data_batch_1.bin`, ...), or their folder.
        split: `train` or `test`.

    Raises:
        DataError: files are missing or damaged.
    """
    paths = _find(folder, split)
    batches = [_read_binary(path) if path.suffix == ".bin" else _read_pickle(path) for path in paths]
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return array_source(f"cifar10-{split}", images, labels, CLASSES)


def _find(folder: Path, split: str) -> list[Path]:
    for name in FOLDERS:
        for ending in ("", ".bin"):
            paths = [folder / name / f"{batch}{ending}" for batch in BATCHES[split]]
            if all(path.is_file() for path in paths):
                return paths
    raise DataError(
        f"{folder}: {', '.join(BATCHES[split])} are not all there; unpack cifar-10-python.tar.gz or "
        "cifar-10-binary.tar.gz, and give its folder"
    )


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images [N, 3, 32, 32] and labels [N] of a file of records: the label, then the pixels."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    if content.size == 0 or content.size % (1 + PIXELS):
        raise DataError(f"{path}: not a complete batch of CIFAR-10; replace it")
    records = content.reshape(-1, 1 + PIXELS)
    return records[:, 1:].reshape(-1, *SHAPE), records[:, 0]


class _BatchUnpickler(pickle.Unpickler):
    """Restores arrays and refuses everything else, since a pickle may name any function to be called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PICKLED:
            raise pickle.UnpicklingError(f"it contains {module}.{name}")
        return PICKLED[module, name]


def _read_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images [N, 3, 32, 32] and labels [N] of a dictionary with the keys b"data" and b"labels"."""
    try:
        batch = _BatchUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        images = np.asarray(batch[b"data"], np.uint8).reshape(-1, *SHAPE)
        labels = np.asarray(batch[b"labels"], np.int64)
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{len(images)} images but {labels.size} labels")
    except Exception as error:  # For a damaged pickle nearly every type of error is raised.
        raise DataError(f"{path}: not a complete batch of CIFAR-10 ({error}); replace it") from None
    return images, labels
