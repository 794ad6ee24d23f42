"""Writing shard sets from a source of images."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from infogan_dist.console import progress
from infogan_dist.data.images import encode_png
from infogan_dist.data.shards import (
    FACTORS_TYPE,
    LABEL_TYPE,
    MANIFEST,
    NO_LABEL,
    Manifest,
    Shard,
    load_manifest,
    write_manifest,
)
from infogan_dist.data.sources import Source
from infogan_dist.errors import DataError
from infogan_dist.files import atomic_write
from infogan_dist.rng import permutation

DEFAULT_SHARDS = 8  # the default number of lanes: an epoch then contains each sample once
SHARD_BYTES = 64 * 2**20  # of a decoded shard; a process has one shard of each of its lanes in memory


def create_once(out: Path, create: Callable[[], Manifest]) -> tuple[Manifest, bool]:
    """Return the manifest of a folder, and whether the shard set was created now.

    Args:
        out: folder of the shard set.
        create: function that creates it; called only if the folder has no manifest.
    """
    if (out / MANIFEST).exists():
        return load_manifest(os.fspath(out)), False
    return create(), True


def write_shard_set(source: Source, out: Path, shards: int | None = None, seed: int = 0) -> Manifest:
    """Write a source's images, shuffled, into shards whose sizes differ by at most one.

    Args:
        source: the images.
        out: folder of the shard set; created where it is missing.
        shards: number of shards; None: a multiple of 8 such that a decoded shard takes at most 64 MiB.
        seed: of the shuffle. The same source, number and seed give the same bytes.

    Returns:
        The manifest, which is written last.

    Raises:
        DataError: there are too few images, or the source cannot read one.
    """
    first = source.read(0)[0]
    if shards is None:
        needed = -(-source.count * first.nbytes // SHARD_BYTES)
        shards = -(-max(needed, 1) // DEFAULT_SHARDS) * DEFAULT_SHARDS
    if not 0 < shards <= source.count:
        raise DataError(
            f"{source.name}: {source.count} images cannot fill {shards} shards; use --shards {source.count}"
        )
    out.mkdir(parents=True, exist_ok=True)
    shuffled = permutation(seed, "make_shards", 0, source.count)

    def samples(rows: np.ndarray) -> Iterator[tuple[str, np.ndarray, int, Sequence[int]]]:
        for i in map(int, rows):
            image, label = source.read(i)
            bar.update()
            yield f"{i:09d}", image, label, source.factors_of(i)

    with progress(source.count, "image", description=f"shards of {source.name}") as bar:
        parts = np.array_split(shuffled, shards)
        written = [write_shard(out / f"{i:06d}.tar", samples(rows)) for i, rows in enumerate(parts)]
    channels, height, width = first.shape
    manifest = Manifest(
        source.name,
        (channels, height, width),
        source.label_names,
        written,
        factors=source.factors,
        location=str(out),
    )
    write_manifest(manifest, out)
    return manifest


def write_shard(path: Path, samples: Iterable[tuple[str, np.ndarray, int, Sequence[int]]]) -> Shard:
    """Write samples (key, image uint8 [C, H, W], label, factors) into a tar, atomically.

    The image becomes a PNG, the label a .cls file, and the factors, if there are any, a .factors.json file.
    The same samples give the same bytes: the file contains neither times nor owners.
    """
    import webdataset as wds  # Imported only now because it imports torch, which takes seconds.

    count = 0
    with (
        atomic_write(path) as partial,
        partial.open("wb") as stream,
        wds.TarWriter(stream, mtime=0, user="", group="") as tar,  # type: ignore[attr-defined]
    ):
        for key, array, label, factors in samples:
            entry: dict[str, str | bytes] = {"__key__": key, "png": encode_png(array)}
            if label != NO_LABEL:
                entry[LABEL_TYPE] = str(label).encode()
            if factors:
                entry[FACTORS_TYPE] = json.dumps(list(factors)).encode()
            tar.write(entry)
            count += 1
    content = path.read_bytes()
    return Shard(path.name, count, len(content), hashlib.sha256(content).hexdigest())
