"""Writing shard sets: from a source of images, or as a manifest of WebDataset tars that exist already."""

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import braceexpand
import numpy as np
import webdataset as wds

from infogan_dist.console import progress
from infogan_dist.data.fetch import Store, redact_url
from infogan_dist.data.images import decode_image, encode_png
from infogan_dist.data.shards import (
    FACTORS_TYPE,
    LABEL_TYPE,
    NO_LABEL,
    Manifest,
    Shard,
    decode_label,
    samples_of,
    save_manifest,
)
from infogan_dist.data.sources import Source
from infogan_dist.errors import DataError
from infogan_dist.files import atomic_write
from infogan_dist.rng import permutation

DEFAULT_SHARDS = 8  # the default number of lanes: an epoch then contains each sample once
SHARD_BYTES = 64 * 2**20  # decoded; a process holds one shard of each of its lanes


def write_shard_set(source: Source, out: Path, shards: int | None = None, seed: int = 0) -> Manifest:
    """Writes a source's images, shuffled, into shards whose sizes differ by at most one.

    Args:
        shards: their number; None takes a multiple of 8 that keeps a decoded shard under 64 MiB.
        seed: of the shuffle. The same source, number and seed give the same bytes.

    Raises:
        DataError: too few images, or one that the source cannot read.
    """
    first = source.read(0)[0]
    if shards is None:
        wanted = -(-source.count * first.nbytes // SHARD_BYTES)
        shards = -(-max(wanted, 1) // DEFAULT_SHARDS) * DEFAULT_SHARDS
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
    save_manifest(manifest, out)
    return manifest


def index_tars(
    urls: list[str], out: Path, name: str, shape: tuple[int, int, int] | None, skip_broken: bool = False
) -> Manifest:
    """Writes the manifest of WebDataset tars that are there already; they stay where they are.

    Args:
        urls: paths and http(s) or s3 URLs; `{0000..0099}` and, for paths, `*` are expanded.
        shape: fit every image to it when it is read; None: all must be alike.
        skip_broken: list samples that do not decode too, for a run with data.on_error=skip.

    Raises:
        DataError: a tar is missing or broken, or holds a sample that is not as promised.
    """
    expected, shards, labels, broken = shape, [], {NO_LABEL}, 0
    for url in _expand(urls):
        place = _stored_url(url)
        try:
            content = Store().read(place)
        except FileNotFoundError:
            raise DataError(f"{place}: no such tar") from None
        samples = list(samples_of(content, place))
        if not samples:
            raise DataError(f"{place}: holds no samples; leave it out")
        for key, member in samples:
            where = f"{place}, {key}"
            try:
                image = decode_image(member, where, expected, fit=shape is not None)
                labels.add(decode_label(member, where))
            except DataError:
                if not skip_broken:
                    raise
                broken += 1
                continue
            channels, height, width = image.shape
            expected = expected or (channels, height, width)
        shards.append(Shard(place, len(samples), len(content), hashlib.sha256(content).hexdigest()))
    if expected is None:
        raise DataError(f"{', '.join(urls)}: not one sample decodes")
    if broken:
        print(f"{broken} samples do not decode: train with data.on_error=skip")
    out.mkdir(parents=True, exist_ok=True)
    names = [str(i) for i in range(max(labels) + 1)]
    manifest = Manifest(name, expected, names, shards, fit=shape is not None, location=str(out))
    save_manifest(manifest, out)
    return manifest


def write_shard(path: Path, samples: Iterable[tuple[str, np.ndarray, int, Sequence[int]]]) -> Shard:
    """Writes samples (key, uint8 [C, H, W], label, factors) into a tar, whole or not at all.

    The image is a PNG, the label a .cls, the factors (of sets that have some) a .factors.json.

    The same samples give the same bytes: nothing in the file tells when or by whom it was written.
    """
    count = 0
    with (
        atomic_write(path) as part,
        part.open("wb") as stream,
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


def _stored_url(url: str) -> str:
    """What the manifest says of a tar's place. Raises `DataError` for a URL with credentials in it."""
    if "://" not in url:
        return str(Path(url).resolve())
    if redact_url(url) != url:
        raise DataError(
            f"{redact_url(url)}: a password or a query would be kept in the manifest for all to read; give "
            "a URL without (s3:// takes its credentials from the environment)"
        )
    return url


def _expand(urls: list[str]) -> list[str]:
    found: list[str] = []
    for pattern in urls:
        for url in braceexpand.braceexpand(pattern):
            found += [url] if "://" in url or "*" not in url else sorted(glob.glob(url))
    if not found:
        raise DataError(f"{', '.join(urls)}: no such tars")
    return found
