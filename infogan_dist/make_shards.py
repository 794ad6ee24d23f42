"""Makes a shard set of images: `python -m infogan_dist.make_shards mnist --out shards/mnist`."""

import argparse
import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import braceexpand
import numpy as np
from tqdm import tqdm

from infogan_dist.data.fetch import Store, shown
from infogan_dist.data.shards import (
    MANIFEST,
    NO_LABEL,
    Manifest,
    Shard,
    decode_image,
    decode_label,
    load_manifest,
    samples_of,
    save_manifest,
    write_shard,
)
from infogan_dist.data.sources import Source, folder, mnist, mnist5k, sprites
from infogan_dist.errors import ConfigError, DataError, one_line_errors
from infogan_dist.streams import permutation

DEFAULT_SHARDS = 8  # the default number of lanes: a pass then sees each sample once
SHARD_BYTES = 64 * 2**20  # decoded; what a process holds of each of its lanes


def make_shards(source: Source, out: Path, shards: int | None = None, seed: int = 0) -> Manifest:
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
    progress = tqdm(total=source.count, desc=f"shards of {source.name}", unit="image")

    def samples(rows: np.ndarray) -> Iterator[tuple[str, np.ndarray, int, Sequence[int]]]:
        for i in map(int, rows):
            image, label = source.read(i)
            progress.update()
            yield f"{i:09d}", image, label, source.factors_of(i)

    with progress:
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
    for url in tqdm(_expand(urls), desc="reading tars", unit="tar"):
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


def _stored_url(url: str) -> str:
    """What the manifest says of a tar's place. Raises `DataError` for a URL with credentials in it."""
    if "://" not in url:
        return str(Path(url).resolve())
    if shown(url) != url:
        raise DataError(
            f"{shown(url)}: a password or a query would be kept in the manifest for all to read; give "
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make_shards", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="SOURCE")
    five = kinds.add_parser("mnist5k", help="5,000 real MNIST digits that a package carries: no network")
    full = kinds.add_parser("mnist", help="MNIST from its four IDX files, or downloaded")
    full.add_argument(
        "--from", dest="source", type=Path, help="folder of the IDX files [else they are downloaded]"
    )
    full.add_argument("--split", choices=("train", "test"), default="train")
    drawn = kinds.add_parser("sprites", help="drawn shapes whose factors of variation are known: no network")
    pictures = kinds.add_parser("folder", help="pictures in class folders (cats/001.jpg), or in one folder")
    pictures.add_argument("--from", dest="source", type=Path, required=True, help="the folder")
    tars = kinds.add_parser("tars", help="index WebDataset tars that are there already, local or by URL")
    tars.add_argument("urls", nargs="+", help="paths or URLs; {0000..0099} and * are expanded")
    tars.add_argument("--skip-broken", action="store_true", help="list samples that do not decode too")
    tars.add_argument("--name", default="tars", help="the data's name")
    for kind in (pictures, tars):
        kind.add_argument("--size", type=int, help="sides in pixels that images are scaled and cropped to")
        kind.add_argument("--mode", choices=("grey", "colour"), help="with --size [colour]")
    for kind in (five, full, drawn, pictures, tars):
        kind.add_argument("--out", type=Path, help="folder of the shard set [shards/SOURCE]")
    for kind in (five, full, drawn, pictures):
        kind.add_argument(
            "--shards", type=int, help="their number; a multiple of data.lanes is best [by size]"
        )
        kind.add_argument("--seed", type=int, default=0, help="of the shuffle [0]")
    return parser


def _shape(arguments: argparse.Namespace) -> tuple[int, int, int] | None:
    if arguments.size is None:
        if arguments.mode:
            raise ConfigError("--mode: needs --size, such as --size 32")
        return None
    if arguments.size < 1:
        raise ConfigError(f"--size: {arguments.size} is no number of pixels")
    return (1 if arguments.mode == "grey" else 3, arguments.size, arguments.size)


def _source(arguments: argparse.Namespace) -> Source:
    if arguments.kind == "mnist5k":
        return mnist5k()
    if arguments.kind == "mnist":
        return mnist(arguments.source, arguments.split)
    if arguments.kind == "sprites":
        return sprites()
    return folder(arguments.source, _shape(arguments))


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    with one_line_errors():
        name = "mnist-test" if vars(arguments).get("split") == "test" else arguments.kind
        out = arguments.out or Path("shards") / name
        if (out / MANIFEST).exists():
            manifest = load_manifest(os.fspath(out))
            print(f"{out}: already a shard set of {manifest.samples:,} images; remove it to make it anew")
            return
        if arguments.kind == "tars":
            manifest = index_tars(
                arguments.urls, out, arguments.name, _shape(arguments), arguments.skip_broken
            )
        else:
            manifest = make_shards(_source(arguments), out, arguments.shards, arguments.seed)
        channels, height, width = manifest.image_shape
        print(
            f"{out}: {manifest.samples:,} images of {channels}x{height}x{width} "
            f"in {len(manifest.shards)} shards, {len(manifest.label_names)} classes"
        )


if __name__ == "__main__":
    main()
