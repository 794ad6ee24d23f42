"""Create a shard set of images: `python -m infogan_dist.make_shards mnist --out shards/mnist`."""

import argparse
from pathlib import Path

from infogan_dist.console import exit_on_user_error, set_up_logging
from infogan_dist.creation.dataset import MapDataset, dataset_source
from infogan_dist.creation.existing import create_index, create_source_set
from infogan_dist.creation.reshard import tar_source
from infogan_dist.creation.selection import HOLDOUT_SUFFIX, SELECTION_OPTIONS, hold_out, select, selection
from infogan_dist.creation.source import Source, read_class_names
from infogan_dist.creation.sources import (
    BACKGROUND_OPTION,
    IMAGE_OPTIONS,
    SOURCES,
    SourceEntry,
    image_background,
    image_shape,
)
from infogan_dist.creation.tar_index import TarOptions
from infogan_dist.creation.write import num_shards
from infogan_dist.data.class_names import check_label_file
from infogan_dist.data.images import IMAGE_TYPES, has_image
from infogan_dist.data.shards import Manifest
from infogan_dist.errors import ConfigError

ShardSet = tuple[Path, Manifest, bool]  # folder, manifest, whether the set is new


def make_shards(
    dataset: Source | MapDataset,
    out: str | Path,
    *,
    name: str | None = None,
    image: str = "image",
    label: str = "label",
    shape: tuple[int, int, int] | None = None,
    shards: int | None = None,
    seed: int = 0,
) -> Manifest:
    """Return the shard set of a data set in a folder, which is written unless it is there already.

    Args:
        dataset: of torchvision, of the library datasets, or alike (see `dataset_source`); or a `Source`, for
            which name, image, label and shape are not used.
        out: folder of the shard set; created where it is missing.
        name: the data's name; None: that of the data set's class.
        image, label: keys of the samples that are mappings.
        shape: (channels, height, width) to which PIL images are fitted; None: all must have the same shape.
        shards: number of shards; None: a multiple of 8 such that a decoded shard takes at most 64 MiB.
        seed: of the shuffle.

    Raises:
        DataError: a sample is of another type, the folder has another shard set or other tars, or it cannot
            be written.
    """
    source = dataset if isinstance(dataset, Source) else dataset_source(dataset, name, image, label, shape)
    return create_source_set(source, Path(out), shards, seed)[0]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser, with a subcommand for every source and one for existing tars.

    Each sets `create`, a function from the options and the output folder to the shard sets, and
    `folder_name`, a function from the options to the name of the default output folder.
    """
    parser = argparse.ArgumentParser(prog="make_shards", description=__doc__)
    subcommands = parser.add_subparsers(dest="kind", required=True, metavar="SOURCE")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=Path, help="folder of the shard set [shards/SOURCE]")
    common.add_argument(
        "--quiet", action="store_true", help="print warnings and errors only, and no progress"
    )
    for name, entry in SOURCES.items():
        _add_source(subcommands.add_parser(name, help=entry.help, parents=[common]), name, entry)
    _add_tars(subcommands.add_parser("tars", help="index existing WebDataset tars", parents=[common]))
    return parser


def _add_source(parser: argparse.ArgumentParser, name: str, entry: SourceEntry) -> None:
    for flag, arguments in entry.options.items():
        parser.add_argument(flag, **arguments)
    _add_shuffle(parser)
    for flag, arguments in SELECTION_OPTIONS.items():
        parser.add_argument(flag, **arguments)

    def create(options: argparse.Namespace, out: Path) -> list[ShardSet]:
        source = select(entry.create(options), selection(options))
        parts = {out: source}
        if options.holdout is not None:
            beside = out if out.name.strip(".") else out.resolve()
            held_out_folder = beside.with_name(beside.name + HOLDOUT_SUFFIX)
            parts = dict(zip((out, held_out_folder), hold_out(source, options.holdout), strict=True))
        for part in parts.values():
            num_shards(part, options.shards)  # refuses a number that is too large before anything is written
        return [
            (folder, *create_source_set(part, folder, options.shards, options.seed))
            for folder, part in parts.items()
        ]

    parser.set_defaults(create=create, folder_name=lambda options: name + entry.suffix(options))


def _add_shuffle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", type=int, help="their number; best a multiple of data.lanes [by size]")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle [0]")


def _add_tars(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("urls", nargs="+", help="paths or URLs; {0000..0099} and * are expanded")
    parser.add_argument(
        "--skip-broken",
        action="store_true",
        help="include samples that cannot be decoded and leave out broken tars, instead of refusing",
    )
    parser.add_argument(
        "--image", metavar="ENDING", help="of the image, such as jpg, if samples contain several"
    )
    parser.add_argument(
        "--label",
        metavar="FILE",
        help="ending of the file of a sample that contains its class name, such as cls or txt, or json:KEY "
        "[the number in .cls]",
    )
    parser.add_argument(
        "--classes-file", type=Path, metavar="FILE", help="names of the classes, one per line, by number"
    )
    parser.add_argument("--name", default="tars", help="the data's name")
    parser.add_argument(
        "--reshard",
        action="store_true",
        help="write the images, shuffled, into new shards, instead of indexing the tars where they are",
    )
    _add_shuffle(parser)
    for flag, arguments in {**IMAGE_OPTIONS, **BACKGROUND_OPTION}.items():
        parser.add_argument(flag, **arguments)

    def create(options: argparse.Namespace, out: Path) -> list[ShardSet]:
        image = None if options.image is None else options.image.lower().lstrip(".")
        if image is not None and not has_image([image]):
            raise ConfigError(f"--image: {image} is no image; use one of {', '.join(IMAGE_TYPES)}")
        read = TarOptions(
            image_shape(options),
            image_background(options),
            image,
            options.skip_broken,
            None if options.label is None else check_label_file(options.label),
            None if options.classes_file is None else tuple(read_class_names(options.classes_file)),
        )
        if options.reshard:
            with tar_source(options.urls, out, options.name, read) as source:
                return [(out, *create_source_set(source, out, options.shards, options.seed))]
        if options.shards is not None or options.seed:
            raise ConfigError("--shards, --seed: need --reshard; existing tars are not shuffled without it")
        return [(out, *create_index(options.urls, out, options.name, read))]

    parser.set_defaults(create=create, folder_name=lambda options: "tars")


def main(argv: list[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    set_up_logging(options.quiet)
    with exit_on_user_error():
        out = options.out or Path("shards") / options.folder_name(options)
        for folder, manifest, is_new in options.create(options, out):
            _print_set(folder, manifest, is_new)


def _print_set(folder: Path, manifest: Manifest, is_new: bool) -> None:
    if not is_new:
        print(f"{folder}: already a shard set of {manifest.samples:,} images; remove it to create it again")
        return
    channels, height, width = manifest.image_shape
    print(
        f"{folder}: {manifest.samples:,} images of {channels}x{height}x{width} "
        f"in {len(manifest.shards)} shards, {len(manifest.label_names)} classes"
    )


if __name__ == "__main__":
    main()
