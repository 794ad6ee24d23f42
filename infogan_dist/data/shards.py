"""A shard set: WebDataset tar files and the manifest that says what must be in them."""

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from webdataset.tariterators import group_by_keys, tar_file_expander

from infogan_dist.data.fetch import Store, redact_url
from infogan_dist.data.images import decode_image
from infogan_dist.errors import DataError
from infogan_dist.files import write_text

MANIFEST = "manifest.json"
# Members are decoded by these names alone; anything else in a tar is left unread (no pickles, no code).
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
        """Number of images."""
        return sum(self.shard_sizes)

    @property
    def shard_sizes(self) -> list[int]:
        """Number of images of each shard."""
        return [shard.samples for shard in self.shards]

    @property
    def decoded_sample_bytes(self) -> int:
        """Bytes of a decoded sample in memory: image, label (8) and whether it is a substitute (1)."""
        return math.prod(self.image_shape) + 9

    def fingerprint(self) -> str:
        """SHA-256 of what the images are, wherever they lie: two sets with the same are the same data."""
        content = [self.image_shape, self.fit, [(s.samples, s.sha256) for s in self.shards]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class DecodedShard:
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
    where = redact_url(f"{base}/{MANIFEST}")
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
            f"{redact_url(location)}: no shard set there ({MANIFEST} is missing); make one with "
            f"`python -m infogan_dist.make_shards mnist --out {redact_url(location)}`, or set data.shards"
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
    write_text(folder / MANIFEST, json.dumps(tree, indent=1) + "\n")


def resolve(manifest: Manifest, shard: Shard) -> str:
    """The URL or path that a shard is read from."""
    whole = "://" in shard.url or shard.url.startswith(("/", "pipe:"))
    return shard.url if whole else f"{manifest.location}/{shard.url}"


def read_shard(
    manifest: Manifest, index: int, store: Store | None = None, skip: bool = False
) -> DecodedShard:
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
    return DecodedShard(images, labels, broken, notes, factors)


def fetch_shard(manifest: Manifest, index: int, store: Store) -> tuple[str, bytes]:
    """A shard's URL as it may be told, and its bytes, which are the manifest's. Raises as `read_shard`."""
    shard = manifest.shards[index]
    url = resolve(manifest, shard)
    try:
        return redact_url(url), store.read(url, shard.bytes, shard.sha256)
    except FileNotFoundError:
        raise DataError(
            f"{redact_url(url)}: the shard is missing; restore it, or make the set again"
        ) from None


def samples_of(content: bytes, url: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a tar: (key, bytes by file ending), grouped as WebDataset does."""
    try:
        for sample in group_by_keys(tar_file_expander([{"url": url, "stream": io.BytesIO(content)}])):
            members = {k: v for k, v in sample.items() if not k.startswith("__")}
            if members:
                yield sample["__key__"], members
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise DataError(f"{url}: not a readable tar ({error})") from None


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
