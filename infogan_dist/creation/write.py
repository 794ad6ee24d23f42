"""Writing shard sets from a source of images."""

import hashlib
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from infogan_dist.console import progress
from infogan_dist.creation.encode import encode_chunks, end_of_tar, seconds_per_sample, usable_processes
from infogan_dist.creation.shard_folder import fill_folder
from infogan_dist.creation.source import Source
from infogan_dist.data.shards import Manifest, Shard
from infogan_dist.errors import DataError
from infogan_dist.rng import permutation

DEFAULT_SHARDS = 8  # the default number of lanes: an epoch then contains each sample once
SHARD_BYTES = 64 * 2**20  # of a decoded shard; a process has one shard of each of its lanes in memory
CHUNK, CHUNK_BYTES = 32, 2**20  # largest number and decoded size of images that a process encodes at once
JPEG_ENCODING = "JPEG files as they are"
ORIGIN_IMAGES = 16  # which identify a source


def write_shard_set(source: Source, out: Path, shards: int | None = None, seed: int = 0) -> Manifest:
    """Write a source's images, shuffled, into shards whose sizes differ by at most one.

    Args:
        source: the images.
        out: folder of the shard set; created where it is missing.
        shards: number of shards; None: a multiple of 8 such that a decoded shard takes at most 64 MiB.
        seed: of the shuffle. The same source, number and seed give the same bytes.

    Returns:
        The manifest, which appears in the folder last.

    Raises:
        DataError: there are too few images, the source cannot read one, or the folder has a shard set or
            other tars, or cannot be written.
    """
    shards = num_shards(source, shards)
    processes = usable_processes(source.count * seconds_per_sample(source))

    def write(folder: Path) -> Manifest:
        parts = np.array_split(permutation(seed, "make_shards", 0, source.count), shards)
        channels, height, width = source.read(0)[0].shape
        return Manifest(
            source.name,
            (channels, height, width),
            source.label_names,
            _write_tars(source, folder, parts, processes),
            factors=source.factors,
            origin=source_origin(source, seed),
            location=str(out),
        )

    return fill_folder(out, write)


def num_shards(source: Source, shards: int | None) -> int:
    """Return the number of shards, by size where it is None. Raises `DataError` if they cannot be filled."""
    if shards is None:
        needed = -(-source.count * source.read(0)[0].nbytes // SHARD_BYTES)
        shards = -(-max(needed, 1) // DEFAULT_SHARDS) * DEFAULT_SHARDS
    if not 0 < shards <= source.count:
        raise DataError(
            f"{source.name}: {source.count} images cannot fill {shards} shards; use --shards {source.count}"
        )
    return shards


def source_origin(source: Source, seed: int) -> dict[str, Any]:
    """Return what the other fields of a manifest do not contain: seed, and a checksum of some images."""
    digest = hashlib.sha256()
    for i in np.linspace(0, source.count - 1, ORIGIN_IMAGES).astype(int):
        image, label = source.read(int(i))
        digest.update(f"{label} ".encode() + image.tobytes())
    encoding = {} if source.file_of is None else {"encoding": JPEG_ENCODING}
    return {"seed": seed, "sample": digest.hexdigest(), **encoding}


def _write_tars(source: Source, folder: Path, parts: list[np.ndarray], processes: int) -> list[Shard]:
    """Write a tar for each part, an array of the numbers of its images."""
    size = max(1, min(CHUNK, CHUNK_BYTES // source.read(0)[0].nbytes))
    chunks = [[chunk.tolist() for chunk in np.array_split(rows, -(-len(rows) // size))] for rows in parts]
    encoded = encode_chunks(source, [chunk for part in chunks for chunk in part], processes)
    shards = []
    with progress(source.count, "image", description=f"shards of {source.name}") as bar, closing(encoded):
        for i, part in enumerate(chunks):
            path, size, digest = folder / f"{i:06d}.tar", 0, hashlib.sha256()
            with path.open("wb") as stream:
                for chunk in part:
                    content = next(encoded)
                    size += stream.write(content)
                    digest.update(content)
                    bar.update(len(chunk))
                end = end_of_tar(size)
                size += stream.write(end)
                digest.update(end)
            shards.append(Shard(path.name, sum(map(len, part)), size, digest.hexdigest()))
    return shards
