"""Foreign tars as a source of images, from which a shuffled shard set is written."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from infogan_dist.creation.index import scan_tars
from infogan_dist.creation.source import Source
from infogan_dist.creation.tar_index import IndexedTar, TarIndex, TarOptions, open_tar
from infogan_dist.data.images import TAR_FORMATS, read_image
from infogan_dist.data.tars import uncompressed
from infogan_dist.data.urls import is_remote
from infogan_dist.errors import DataError
from infogan_dist.files import report_unwritable


class TarImages:
    """Images of tars by number, each read from its position, so that one image at a time is in memory.

    Args:
        index: of the tars.
        paths: local, uncompressed copy of each tar, or the tar itself.
    """

    def __init__(self, index: TarIndex, paths: list[Path]):
        self.options, self.shape, self.tars, self.paths = index.options, index.shape, index.tars, paths
        self.starts = np.array(list(accumulate((len(tar.labels) for tar in index.tars), initial=0)))

    def read(self, i: int) -> tuple[np.ndarray, int]:
        """Return the i-th image, uint8 [C, H, W], and its label, -1 if it has none. Raises `DataError`."""
        number = int(np.searchsorted(self.starts, i, "right")) - 1
        tar, row = self.tars[number], i - int(self.starts[number])
        with self.paths[number].open("rb") as stream:
            stream.seek(tar.offsets[row])
            content = stream.read(tar.sizes[row])
        where = f"{tar.location}, byte {tar.offsets[row]:,}"
        options = self.options
        image = read_image(io.BytesIO(content), where, TAR_FORMATS, options.shape, options.background)
        if image.shape != self.shape:
            raise DataError(f"{where}: the tar changes while it is read; start again when it is complete")
        return image, tar.labels[row]


@contextmanager
def tar_source(urls: list[str], out: Path, name: str, options: TarOptions) -> Iterator[Source]:
    """Provide the images of tars as a source, whose images may be read in any order.

    Remote and compressed tars are copied into a temporary folder, which is removed at the end. Samples that
    cannot be decoded are left out with `skip_broken`.

    Args:
        urls: paths and URLs; `{0000..0099}` and, in paths, `*` are expanded.
        out: folder of the shard set that will be written; the temporary folder is beside it.
        name: the data's name.
        options: how images are read.

    Raises:
        NetworkError: a tar cannot be read over the network at the moment.
        DataError: tars are missing or damaged, or contain samples that cannot be decoded.
    """
    index = scan_tars(urls, name, options, broken_remedy="they are left out")
    with _local_copies(index.tars, out) as paths:
        images = TarImages(index, paths)
        yield Source(name, int(images.starts[-1]), index.label_names, images.read)


@contextmanager
def _local_copies(tars: list[IndexedTar], out: Path) -> Iterator[list[Path]]:
    """Provide a local, uncompressed file of each tar."""
    with report_unwritable(out, "choose another folder with --out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
    with folder as temporary:
        yield [_local_copy(tar, Path(temporary) / f"{i}.tar") for i, tar in enumerate(tars)]


def _local_copy(tar: IndexedTar, copy: Path) -> Path:
    """Return the tar's own path, or copy it."""
    with open_tar(tar.location) as stream, uncompressed(stream, tar.location) as content:
        if content is stream and not is_remote(tar.location):
            return Path(tar.location)
        with report_unwritable(copy, "free space, or choose another --out"), copy.open("wb") as file:
            shutil.copyfileobj(content, file)
    return copy
