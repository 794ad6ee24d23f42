"""A shard set: WebDataset tar files and the manifest that says what must be in them."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import Image, ImageOps
from webdataset.tariterators import group_by_keys, tar_file_expander

from infogan_dist.data.fetch import Store, shown
from infogan_dist.errors import DataError, write_whole

MANIFEST = "manifest.json"
# Members are decoded by these names alone; anything else in a tar is left unread (no pickles, no code).
IMAGE_TYPES = ("png", "jpg", "jpeg", "webp", "bmp")
LABEL_TYPE = "cls"
FACTORS_TYPE = "factors.json"  # a list of whole numbers: each known factor's value
NO_LABEL = -1


@dataclass(frozen=True)
class Shard:
    """One tar file: its URL or path (relative to the manifest), samples, bytes and SHA-256."""

    url: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a shard set holds.

    Attributes:
        name: the data's name.
        image_shape: (channels, height, width) of every image, uint8.
        label_names: names of the classes by label; empty where there are no labels.
        shards: the tar files.
        fit: images of other sizes or modes are fitted to `image_shape` when read (else refused).
        factors: how many values each known factor of variation has, by name; empty where none is known.
        location: folder or URL that relative shard URLs start from; not part of the file.
    """

    name: str
    image_shape: tuple[int, int, int]
    label_names: list[str]
    shards: list[Shard]
    fit: bool = False
    factors: dict[str, int] = field(default_factory=dict)
    location: str = field(default="", compare=False)

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def fingerprint(self) -> str:
        """SHA-256 of what the images are, wherever they lie: two sets with the same are the same data."""
        content = [self.image_shape, self.fit, [(s.samples, s.sha256) for s in self.shards]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class Block:
    """A decoded shard.

    Attributes:
        images: uint8 [n, C, H, W].
        labels: int64 [n], -1 where there is none.
        substituted: bool [n], whether another image took the place of a broken one.
        notes: what was broken, one line each.
        factors: int64 [n, K], the values of the manifest's K known factors.
    """

    images: np.ndarray
    labels: np.ndarray
    substituted: np.ndarray
    notes: list[str]
    factors: np.ndarray


def load_manifest(location: str) -> Manifest:
    """Reads the manifest of a shard set in a folder or under a URL.

    Raises:
        DataError: there is none, or it is not one.
    """
    base = location.removesuffix(MANIFEST).rstrip("/") or "."
    where = shown(f"{base}/{MANIFEST}")
    try:
        tree = json.loads(Store().read(f"{base}/{MANIFEST}"))
        shards = [Shard(**s) for s in tree["shards"]]
        channels, height, width = tree["image_shape"]
        shape = (int(channels), int(height), int(width))
        factors = {str(name): int(size) for name, size in tree.get("factors", {}).items()}
        manifest = Manifest(
            tree["name"], shape, list(tree["label_names"]), shards, bool(tree["fit"]), factors, base
        )
    except FileNotFoundError:
        raise DataError(
            f"{shown(location)}: no shard set there ({MANIFEST} is missing); make one with "
            f"`python -m infogan_dist.make_shards mnist --out {shown(location)}`, or set data.shards"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: not a manifest of shards ({error!r}); make the set again") from None
    if not shards or min(s.samples for s in shards) < 1:
        raise DataError(f"{where}: lists no shards, or an empty one; make the set again")
    return manifest


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Writes the manifest, whole or not at all: it is what makes a folder of tars a shard set."""
    tree = asdict(manifest)
    del tree["location"]
    write_whole(folder / MANIFEST, json.dumps(tree, indent=1) + "\n")


def resolve(manifest: Manifest, shard: Shard) -> str:
    """The URL or path that a shard is read from."""
    whole = "://" in shard.url or shard.url.startswith(("/", "pipe:"))
    return shard.url if whole else f"{manifest.location}/{shard.url}"


def read_shard(manifest: Manifest, index: int, store: Store | None = None, skip: bool = False) -> Block:
    """Fetches, verifies and decodes a shard.

    Args:
        store: how its bytes are fetched; None: without a cache.
        skip: the place of a sample that does not decode is taken by the next one of the shard that does.

    Raises:
        NetworkError: it cannot be reached.
        DataError: it is missing, its bytes are not the manifest's, or a sample is not as promised.
    """
    shard = manifest.shards[index]
    url, content = fetch_shard(manifest, index, store or Store())
    samples = list(samples_of(content, url))
    if len(samples) != shard.samples:
        raise DataError(
            f"{url}: {len(samples)} samples where the manifest says {shard.samples}; make the set again"
        )
    images = np.empty((shard.samples, *manifest.image_shape), np.uint8)
    labels = np.full(shard.samples, NO_LABEL, np.int64)
    factors = np.zeros((shard.samples, len(manifest.factors)), np.int64)
    broken, notes = np.zeros(shard.samples, bool), []
    for i, (key, member) in enumerate(samples):
        where = f"{url}, {key}"
        try:
            images[i] = decode_image(member, where, manifest.image_shape, manifest.fit)
            labels[i] = decode_label(member, where)
            factors[i] = decode_factors(member, where, manifest.factors)
        except DataError as error:
            if not skip:
                raise
            broken[i] = True
            notes.append(str(error))
    if broken.all():
        raise DataError(f"{url}: not one of its samples is as promised ({notes[0]})")
    whole = np.flatnonzero(~broken)
    stand_in = whole[np.searchsorted(whole, np.flatnonzero(broken)) % len(whole)]
    for column in (images, labels, factors):
        column[broken] = column[stand_in]
    return Block(images, labels, broken, notes, factors)


def fetch_shard(manifest: Manifest, index: int, store: Store) -> tuple[str, bytes]:
    """A shard's URL as it may be told, and its bytes, which are the manifest's. Raises as `read_shard`."""
    shard = manifest.shards[index]
    url = resolve(manifest, shard)
    try:
        return shown(url), store.read(url, shard.bytes, shard.sha256)
    except FileNotFoundError:
        raise DataError(f"{shown(url)}: the shard is missing; restore it, or make the set again") from None


def samples_of(content: bytes, url: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a tar: (key, bytes by file ending), grouped as WebDataset does."""
    try:
        for sample in group_by_keys(tar_file_expander([{"url": url, "stream": io.BytesIO(content)}])):
            members = {k: v for k, v in sample.items() if not k.startswith("__")}
            if members:
                yield sample["__key__"], members
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise DataError(f"{url}: not a readable tar ({error})") from None


def decode_image(
    member: dict[str, bytes], where: str, shape: tuple[int, int, int] | None, fit: bool
) -> np.ndarray:
    """The sample's image as uint8 [C, H, W].

    Args:
        shape: what it must be; None takes it as it is, grey or colour.
        fit: scale and crop to `shape`, keeping the aspect, instead of refusing another size.
    """
    kind = next((k for k in IMAGE_TYPES if k in member), None)
    if kind is None:
        raise DataError(
            f"{where}: no image (a member ending in {', '.join(IMAGE_TYPES)}); it has {sorted(member)}"
        )
    try:
        with Image.open(io.BytesIO(member[kind]), formats=("PNG", "JPEG", "WEBP", "BMP")) as image:
            array = as_array(image, shape if fit else None)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}.{kind}: not a readable image ({error})") from None
    if shape is not None and array.shape != shape:
        raise DataError(
            f"{where}.{kind}: an image of shape {list(array.shape)} where {list(shape)} is promised"
        )
    return array


def as_array(image: Image.Image, shape: tuple[int, int, int] | None) -> np.ndarray:
    """A picture as uint8 [C, H, W]: fitted to `shape`, or as it is, grey where it has no colour channels."""
    image = ImageOps.exif_transpose(image)
    if shape is None:
        grey = image.mode in ("1", "L", "LA", "I", "I;16", "F")
        image = image.convert("L" if grey else "RGB")
    else:
        image = image.convert("L" if shape[0] == 1 else "RGB")
        if image.size != (shape[2], shape[1]):
            image = ImageOps.fit(image, (shape[2], shape[1]), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def decode_label(member: dict[str, bytes], where: str) -> int:
    """The sample's class, -1 where it has none."""
    if LABEL_TYPE not in member:
        return NO_LABEL
    try:
        return int(member[LABEL_TYPE])
    except ValueError:
        raise DataError(f"{where}.{LABEL_TYPE}: not a whole number") from None


def decode_factors(member: dict[str, bytes], where: str, sizes: dict[str, int]) -> list[int]:
    """The values of the known factors of a sample, in the manifest's order."""
    if not sizes:
        return []
    try:
        values = json.loads(member[FACTORS_TYPE])
        if [0 <= int(v) < size for v, size in zip(values, sizes.values(), strict=True)].count(False):
            raise ValueError(f"{values} beyond {list(sizes.values())}")
        return [int(v) for v in values]
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{where}.{FACTORS_TYPE}: not the values of {', '.join(sizes)} ({error})") from None


def write_shard(path: Path, samples: Iterable[tuple[str, np.ndarray, int, Sequence[int]]]) -> Shard:
    """Writes samples (key, uint8 [C, H, W], label, factors) into a tar, whole or not at all.

    The image is a PNG, the label a .cls, the factors (of sets that have some) a .factors.json.

    The same samples give the same bytes: nothing in the file tells when or by whom it was written.
    """
    part, count = path.with_suffix(".part"), 0
    with part.open("wb") as stream, wds.TarWriter(stream, mtime=0, user="", group="") as tar:  # type: ignore[attr-defined]
        for key, array, label, factors in samples:
            entry: dict[str, str | bytes] = {"__key__": key, "png": encode_png(array)}
            if label != NO_LABEL:
                entry[LABEL_TYPE] = str(label).encode()
            if factors:
                entry[FACTORS_TYPE] = json.dumps(list(factors)).encode()
            tar.write(entry)
            count += 1
    content = part.read_bytes()
    os.replace(part, path)
    return Shard(path.name, count, len(content), hashlib.sha256(content).hexdigest())


def encode_png(array: np.ndarray) -> bytes:
    """uint8 [C, H, W], C = 1 or 3, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0)).save(buffer, "png")
    return buffer.getvalue()
