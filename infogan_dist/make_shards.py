"""Makes a shard set of images: `python -m infogan_dist.make_shards mnist --out shards/mnist`."""

import argparse
import os
from pathlib import Path

from infogan_dist.console import exit_on_user_error
from infogan_dist.data.shards import (
    MANIFEST,
    load_manifest,
)
from infogan_dist.data.sources import Source, folder, mnist, mnist5k, sprites
from infogan_dist.data.write import index_tars, write_shard_set
from infogan_dist.errors import ConfigError


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
    with exit_on_user_error():
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
            manifest = write_shard_set(_source(arguments), out, arguments.shards, arguments.seed)
        channels, height, width = manifest.image_shape
        print(
            f"{out}: {manifest.samples:,} images of {channels}x{height}x{width} "
            f"in {len(manifest.shards)} shards, {len(manifest.label_names)} classes"
        )


if __name__ == "__main__":
    main()
