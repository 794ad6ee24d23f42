"""A shard set: WebDataset tar files, and a manifest that lists them with their sizes and checksums."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infogan_dist.credentials import redact_url
from infogan_dist.data.class_names import class_name
from infogan_dist.data.fetch import Store
from infogan_dist.data.images import decode_image
from infogan_dist.data.manifest_fields import read_fields
from infogan_dist.data.tars import samples_of
from infogan_dist.data.urls import is_remote, join_location, local_path, parent_location, refusal_of_shard
from infogan_dist.errors import DataError
from infogan_dist.files import write_text

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 2**26  # enough for 300,000 shards
# Only these members and images are decoded; other files in a tar are not read (no pickles, no code).
LABEL_TYPE = "cls"
FACTORS_TYPE = "factors.json"  # a list of integers, the value of each known factor
NO_LABEL = -1
MAX_CLASSES = 1_000_000  # Every class up to the largest label gets a name.


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        url: URL or path, which may be relative to the manifest.
        samples: number of samples.
        bytes: size of the file.
        sha256: checksum of the file.
    """

    url: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a shard set.

    Attributes:
        name: the data's name.
        image_shape: (channels, height, width) of every image, uint8.
        label_names: names of the classes by label; empty if there are no labels.
        shards: the tar files.
        fit: whether images of other sizes or modes are fitted to `image_shape` when read (else refused).
        factors: number of values of each known factor of variation, by name; empty if none is known.
        background: colour under transparent pixels; None: transparency is ignored.
        image: ending of the image among the files of a sample; None: a sample has one image only.
        label: file of the class names among those of a sample, as of `class_name`; None: .cls files contain
            the numbers of the classes.
        origin: how `make_shards` created the set: the seed of its shuffle and a checksum of some images of
            the source, or the tars that were left out; empty if unknown.
        location: folder or URL of the manifest, to which shard URLs are relative; not part of the file.
    """

    name: str
    image_shape: tuple[int, int, int]
    label_names: list[str]
    shards: list[Shard]
    fit: bool = False
    factors: dict[str, int] = field(default_factory=dict)
    background: str | None = None
    image: str | None = None
    label: str | None = None
    origin: dict[str, Any] = field(default_factory=dict)
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
        """Return a SHA-256 of the images, wherever the set is stored; equal for two copies of a set."""
        content = [self.image_shape, self.fit, [(s.samples, s.sha256) for s in self.shards]]
        if self.background is not None or self.image is not None:
            content += [self.background, self.image]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class DecodedShard:
    """A decoded shard.

    Attributes:
        images: uint8 [n, C, H, W].
        labels: int64 [n], -1 where there is none.
        substituted: bool [n], whether another image replaces a broken one.
        notes: one line for each broken image.
        factors: int64 [n, K], the values of the manifest's K known factors.
    """

    images: np.ndarray
    labels: np.ndarray
    substituted: np.ndarray
    notes: list[str]
    factors: np.ndarray


def load_manifest(location: str) -> Manifest:
    """Read the manifest of a shard set.

    Args:
        location: folder, URL of a folder, or the manifest itself. The query of an http(s) URL, such as a
            token, is sent for the shards with relative names as well.

    Raises:
        DataError: there is none, or it is not valid.
    """
    base = parent_location(local_path(location), MANIFEST)
    file = join_location(base, MANIFEST)
    try:
        fields = read_fields(json.loads(Store().read(file, limit=MAX_MANIFEST_BYTES)))
    except FileNotFoundError:
        raise _missing_set(base) from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(
            f"{redact_url(file)}: not a manifest of shards ({reason}); create the set again"
        ) from None
    shards = [Shard(**shard) for shard in fields.pop("shards")]
    for shard in shards if is_remote(base) else ():
        if reason := refusal_of_shard(shard.url, base):
            remedy = "a remote manifest names URLs and relative names only"
            raise DataError(f"{redact_url(file)}: {redact_url(shard.url)} is refused: {reason}; {remedy}")
    return Manifest(shards=shards, location=base, **fields)


def _missing_set(base: str) -> DataError:
    """Return the error for a folder or URL without a manifest."""
    where = f"{redact_url(base)}: no shard set there ({MANIFEST} is missing)"
    if any(character in redact_url(base) for character in "*?[{"):
        return DataError(
            f"{where}; data.shards and data.test name one folder or URL, without patterns: index the tars "
            "with `python -m infogan_dist.make_shards tars 'PATTERN' --out FOLDER`, and name that folder"
        )
    if is_remote(base):
        return DataError(f"{where}; check the URL, which is that of the folder with {MANIFEST}")
    return DataError(
        f"{where}; create one with `python -m infogan_dist.make_shards mnist --out {base}`, "
        "or set data.shards"
    )


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the manifest atomically; a folder of tars without it is not a shard set."""
    tree = asdict(manifest)
    del tree["location"]
    write_text(folder / MANIFEST, json.dumps(tree, indent=1) + "\n")


def resolve(manifest: Manifest, shard: Shard) -> str:
    """Return the URL or path of a shard."""
    if is_remote(shard.url) or shard.url.startswith(("/", "pipe:")):
        return local_path(shard.url)
    return join_location(manifest.location, shard.url)


def read_shard(
    manifest: Manifest, index: int, store: Store | None = None, skip: bool = False
) -> DecodedShard:
    """Fetch, check and decode a shard.

    Args:
        manifest: of the set.
        index: number of the shard in the manifest.
        store: reads the file; None: without a cache.
        skip: replace a sample that cannot be decoded by the shard's next one that can, instead of raising.

    Raises:
        NetworkError: the file cannot be read at the moment.
        DataError: it is missing, or it or a sample differs from the manifest.
    """
    shard = manifest.shards[index]
    url, content = fetch_shard(manifest, index, store or Store())
    samples = list(samples_of(content, url))
    if len(samples) != shard.samples:
        raise DataError(
            f"{url}: {len(samples)} samples instead of the manifest's {shard.samples}; create the set again"
        )
    images = np.empty((shard.samples, *manifest.image_shape), np.uint8)
    labels = np.full(shard.samples, NO_LABEL, np.int64)
    factors = np.zeros((shard.samples, len(manifest.factors)), np.int64)
    broken, notes = np.zeros(shard.samples, bool), []
    numbers = {name: i for i, name in enumerate(manifest.label_names)}
    for i, (key, member) in enumerate(samples):
        where = f"{url}, {key}"
        try:
            images[i] = decode_image(
                member, where, manifest.image_shape, manifest.fit, manifest.background, manifest.image
            )
            labels[i] = (
                decode_label(member, where, len(manifest.label_names) or MAX_CLASSES)
                if manifest.label is None
                else decode_class_name(member, where, manifest.label, numbers)
            )
            factors[i] = decode_factors(member, where, manifest.factors)
        except DataError as error:
            if not skip:
                raise
            broken[i] = True
            notes.append(str(error))
    if broken.all():
        raise DataError(f"{url}: no sample can be decoded ({notes[0]}); create the set again")
    intact = np.flatnonzero(~broken)
    substitutes = intact[np.searchsorted(intact, np.flatnonzero(broken)) % len(intact)]
    for column in (images, labels, factors):
        column[broken] = column[substitutes]
    return DecodedShard(images, labels, broken, notes, factors)


def fetch_shard(manifest: Manifest, index: int, store: Store) -> tuple[str, bytes]:
    """Return a shard's URL without secrets, and its bytes, checked against the manifest.

    Args:
        manifest: of the set.
        index: number of the shard in the manifest.
        store: reads the file.

    Raises:
        NetworkError: the file cannot be read at the moment.
        DataError: it is missing, or differs from the manifest.
    """
    shard = manifest.shards[index]
    url = resolve(manifest, shard)
    try:
        return redact_url(url), store.read(url, shard.bytes, shard.sha256)
    except FileNotFoundError:
        raise DataError(
            f"{redact_url(url)}: the shard is missing; restore it, or create the set again"
        ) from None


def decode_label(member: dict[str, bytes], where: str, classes: int = MAX_CLASSES) -> int:
    """Return the class of a sample, -1 if it has none.

    Args:
        member: the sample's files by ending.
        where: name of the sample in error messages.
        classes: number of classes.

    Raises:
        DataError: the label is not the number of a class.
    """
    if LABEL_TYPE not in member:
        return NO_LABEL
    try:
        label = int(member[LABEL_TYPE])
    except ValueError:
        raise DataError(
            f"{where}.{LABEL_TYPE}: not an integer; correct it, or use --label cls for names"
        ) from None
    if not NO_LABEL <= label < classes:
        raise DataError(f"{where}.{LABEL_TYPE}: not a class from 0 to {classes - 1:,}; correct it")
    return label


def decode_class_name(member: dict[str, bytes], where: str, label: str, numbers: dict[str, int]) -> int:
    """Return the class of a sample by its name, -1 if it has none.

    Args:
        member: the sample's files by ending.
        where: name of the sample in error messages.
        label: which file contains the name, as of `class_name`.
        numbers: of the classes by name.

    Raises:
        DataError: the file is damaged, or the class is unknown.
    """
    name = class_name(member, where, label)
    if name is None:
        return NO_LABEL
    if name not in numbers:
        raise DataError(f"{where}: its class {name} is not among the {len(numbers)} known ones; add it")
    return numbers[name]


def decode_factors(member: dict[str, bytes], where: str, sizes: dict[str, int]) -> list[int]:
    """Return the values of a sample's known factors, in the manifest's order.

    Args:
        member: the sample's files by ending.
        where: name of the sample in error messages.
        sizes: number of values of each factor, by name.

    Raises:
        DataError: they are missing or not valid.
    """
    if not sizes:
        return []
    try:
        values = json.loads(member[FACTORS_TYPE])
        if [0 <= int(v) < size for v, size in zip(values, sizes.values(), strict=True)].count(False):
            raise ValueError(f"{values} beyond {list(sizes.values())}")
        return [int(v) for v in values]
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = f"not the values of {', '.join(sizes)} ({error})"
        raise DataError(f"{where}.{FACTORS_TYPE}: {reason}; correct them") from None
