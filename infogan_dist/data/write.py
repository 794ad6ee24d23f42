"""Writing shard sets: from a source of images, or as a manifest of existing WebDataset tars."""

import glob
import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np

from infogan_dist.console import progress
from infogan_dist.data.encode import encode_chunks, end_of_tar, seconds_per_sample, usable_processes
from infogan_dist.data.fetch import Store
from infogan_dist.data.images import decode_image
from infogan_dist.data.shard_folder import fill_folder, locked
from infogan_dist.data.shards import (
    MANIFEST,
    NO_LABEL,
    Manifest,
    Shard,
    decode_label,
    load_manifest,
    samples_of,
    write_manifest,
)
from infogan_dist.data.source import Source
from infogan_dist.data.urls import is_remote, redact_url
from infogan_dist.errors import DataError
from infogan_dist.rng import permutation

DEFAULT_SHARDS = 8  # the default number of lanes: an epoch then contains each sample once
SHARD_BYTES = 64 * 2**20  # of a decoded shard; a process has one shard of each of its lanes in memory
CHUNK = 32  # images that a process encodes at once
ORIGIN_IMAGES = 16  # which identify a source
logger = logging.getLogger(__name__)


def create_once(
    out: Path, create: Callable[[], Manifest], differences: Callable[[Manifest], list[str]]
) -> tuple[Manifest, bool]:
    """Return the manifest of a folder, and whether the shard set was created now.

    Args:
        out: folder of the shard set.
        create: function that creates it; called only if the folder has no manifest.
        differences: function from an existing manifest to what would be different in a new one.

    Raises:
        DataError: the folder has a shard set that `create` would not create.
    """
    if not (out / MANIFEST).exists():
        return create(), True
    manifest = load_manifest(os.fspath(out))
    changed = differences(manifest)
    if changed:
        raise DataError(
            f"{out}: already another shard set ({'; '.join(changed)}); choose another folder with --out, or "
            "remove it"
        )
    return manifest, False


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
    shards = _num_shards(source, shards)
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
            origin=_origin(source, seed),
            location=str(out),
        )

    return fill_folder(out, write)


def source_differences(manifest: Manifest, source: Source, shards: int | None, seed: int) -> list[str]:
    """Return what `write_shard_set` would make different, as `NAME: EXISTING -> NEW`, with its arguments."""
    new = {
        "source": source.name,
        "images": source.count,
        "shape": list(source.read(0)[0].shape),
        "classes": source.label_names,
        "factors": source.factors,
        "shards": _num_shards(source, shards),
    }
    existing = {
        "source": manifest.name,
        "images": manifest.samples,
        "shape": list(manifest.image_shape),
        "classes": manifest.label_names,
        "factors": manifest.factors,
        "shards": len(manifest.shards),
    }
    if manifest.origin:
        new["seed"], existing["seed"] = seed, manifest.origin["seed"]
    changed = [
        f"{name}: {existing[name]} -> {value}" for name, value in new.items() if existing[name] != value
    ]
    if not changed and manifest.origin and manifest.origin != _origin(source, seed):
        changed.append("pixels or labels")
    return changed


def _num_shards(source: Source, shards: int | None) -> int:
    if shards is None:
        needed = -(-source.count * source.read(0)[0].nbytes // SHARD_BYTES)
        shards = -(-max(needed, 1) // DEFAULT_SHARDS) * DEFAULT_SHARDS
    if not 0 < shards <= source.count:
        raise DataError(
            f"{source.name}: {source.count} images cannot fill {shards} shards; use --shards {source.count}"
        )
    return shards


def _origin(source: Source, seed: int) -> dict[str, Any]:
    """Return what the other fields of a manifest do not contain: seed, and a checksum of some images."""
    digest = hashlib.sha256()
    for i in np.linspace(0, source.count - 1, ORIGIN_IMAGES).astype(int):
        image, label = source.read(int(i))
        digest.update(f"{label} ".encode() + image.tobytes())
    return {"seed": seed, "sample": digest.hexdigest()}


def _write_tars(source: Source, folder: Path, parts: list[np.ndarray], processes: int) -> list[Shard]:
    """Write a tar for each part, an array of the numbers of its images."""
    chunks = [[chunk.tolist() for chunk in np.array_split(rows, -(-len(rows) // CHUNK))] for rows in parts]
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


def index_tars(
    urls: list[str], out: Path, name: str, shape: tuple[int, int, int] | None, skip_broken: bool = False
) -> Manifest:
    """Write the manifest of existing WebDataset tars, which are read but not copied.

    Args:
        urls: paths and URLs; `{0000..0099}` and, in paths, `*` are expanded.
        out: folder of the manifest; created where it is missing.
        name: the data's name.
        shape: (channels, height, width) to which images are fitted when read; None: all must have one shape.
        skip_broken: include samples that cannot be decoded, for a run with data.on_error=skip.

    Raises:
        DataError: a tar is missing or broken, or contains a sample that cannot be decoded.
    """
    required, shards, labels, broken = shape, [], {NO_LABEL}, 0
    expanded = _expand(urls)
    with progress(len(expanded), "tar", description=f"index of {name}") as bar:
        for url in expanded:
            shard, samples = _read_tar(url)
            shards.append(shard)
            for key, member in samples:
                where = f"{shard.url}, {key}"
                try:
                    image = decode_image(member, where, required, fit=shape is not None)
                    labels.add(decode_label(member, where))
                except DataError:
                    if not skip_broken:
                        raise
                    broken += 1
                    continue
                channels, height, width = image.shape
                required = required or (channels, height, width)
            bar.update()
    if required is None:
        raise DataError(f"{', '.join(urls)}: no sample can be decoded; use other tars")
    if broken:
        logger.warning("%d samples cannot be decoded; train with data.on_error=skip", broken)
    names = [str(i) for i in range(max(labels) + 1)]
    manifest = Manifest(name, required, names, shards, fit=shape is not None, location=str(out))
    with locked(out):
        write_manifest(manifest, out)
    return manifest


def index_differences(
    manifest: Manifest, urls: list[str], name: str, shape: tuple[int, int, int] | None
) -> list[str]:
    """Return what `index_tars` would make different, as `NAME: EXISTING -> NEW`, with its arguments."""
    tars, existing = list(map(_absolute_url, _expand(urls))), [shard.url for shard in manifest.shards]
    changed = [] if manifest.name == name else [f"name: {manifest.name} -> {name}"]
    if (manifest.image_shape if manifest.fit else None) != shape:
        fitted = f"fitted to {list(manifest.image_shape)}" if manifest.fit else "not fitted"
        changed.append(f"shape: {fitted} -> {'not fitted' if shape is None else f'fitted to {list(shape)}'}")
    if tars != existing:
        other = sorted({*tars} ^ {*existing})
        changed.append(f"tars: {', '.join(map(redact_url, other[:3])) or 'another order'}")
    return changed


def _read_tar(url: str) -> tuple[Shard, list[tuple[str, dict[str, bytes]]]]:
    """Return the manifest's entry for a tar, and its samples by key."""
    location = _absolute_url(url)
    try:
        content = Store().read(location)
    except FileNotFoundError:
        raise DataError(f"{location}: no such tar; check the path or URL") from None
    samples = list(samples_of(content, location))
    if not samples:
        raise DataError(f"{location}: contains no samples; leave it out")
    return Shard(location, len(samples), len(content), hashlib.sha256(content).hexdigest()), samples


def _absolute_url(url: str) -> str:
    """Return a tar's location for the manifest. Raises `DataError` for a URL with credentials."""
    if not is_remote(url):
        return str(Path(url).resolve())
    if redact_url(url) != url:
        raise DataError(
            f"{redact_url(url)}: its password or query would be readable in the manifest; give a URL without "
            "(hf://, s3:// and gs:// URLs take credentials from the environment)"
        )
    return url


def _expand(urls: list[str]) -> list[str]:
    expanded: list[str] = []
    for pattern in urls:
        for url in braceexpand.braceexpand(pattern):
            expanded += [url] if is_remote(url) or "*" not in url else sorted(glob.glob(url))
    if not expanded:
        raise DataError(f"{', '.join(urls)}: no such tars; check the pattern")
    return expanded
