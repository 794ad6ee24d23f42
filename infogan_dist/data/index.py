"""Existing WebDataset tars as a shard set: a manifest of tars that are read but not copied."""

from __future__ import annotations

import glob
import hashlib
import io
import logging
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import braceexpand
import numpy as np

from infogan_dist.console import progress
from infogan_dist.data.fetch import NetworkError, Store
from infogan_dist.data.images import TAR_FORMATS, decode_image, has_image, image_ending, is_animated
from infogan_dist.data.problems import Problems
from infogan_dist.data.shard_folder import locked
from infogan_dist.data.shards import NO_LABEL, Manifest, Shard, decode_label, write_manifest
from infogan_dist.data.sortedness import sorted_warning
from infogan_dist.data.tars import TarReader, TarSample, uncompressed
from infogan_dist.data.urls import is_remote, redact_url
from infogan_dist.errors import DataError

READ_BYTES = 2**20  # of a local tar at once, for its checksum
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TarOptions:
    """How the images of foreign tars are read.

    Attributes:
        shape: (channels, height, width) to which images are fitted when read; None: all must have one shape.
        background: colour under transparent pixels; None: transparency is ignored.
        image: ending of the image among the files of a sample; None: a sample has one image only.
        skip_broken: include samples that cannot be decoded, and leave out tars that cannot be read.
    """

    shape: tuple[int, int, int] | None = None
    background: str | None = None
    image: str | None = None
    skip_broken: bool = False


@dataclass
class IndexedTar:
    """A tar whose samples have all been decoded once.

    Attributes:
        location: absolute path or URL.
        samples: number of samples, with those that cannot be decoded.
        bytes: size of the file.
        sha256: checksum of the file.
        labels: of the samples that can be decoded, -1 where there is none.
        offsets, sizes: position and number of bytes of their images in the tar, uncompressed.
    """

    location: str
    samples: int = 0
    bytes: int = 0
    sha256: str = ""
    labels: array[int] = field(default_factory=lambda: array("q"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))


class TarIndex:
    """The contents of tars, and what is wrong with them.

    Args:
        name: the data's name.
        options: how images are read.

    Attributes:
        tars: those that can be read.
        shape: (channels, height, width) of all images; None until the first one.
    """

    def __init__(self, name: str, options: TarOptions):
        self.name, self.options, self.shape = name, options, options.shape
        self.tars: list[IndexedTar] = []
        self.problems = Problems()
        self.broken = self.unlabelled = self.animated = self.left_out = 0
        self.first_left_out = self.first_unlabelled = ""

    def add(self, location: str) -> None:
        """Read a tar and decode its images. What is wrong with them is collected.

        Raises:
            NetworkError: it cannot be read over the network at the moment.
        """
        tar = IndexedTar(location)
        try:
            with open_tar(location) as stream:
                tar.bytes, tar.sha256 = _checksum(stream)
                reader = TarReader(uncompressed(stream), location)
                for sample in reader:
                    self._add_sample(sample, tar)
            if not tar.samples:
                raise DataError(f"{location}: contains no samples with an image; leave it out")
        except NetworkError:
            raise
        except DataError as error:
            self.problems.add([str(error)])
            return
        self.tars.append(tar)
        self._leave_out(reader.left_out, f"{location}, {reader.first_left_out}")

    def _add_sample(self, sample: TarSample, tar: IndexedTar) -> None:
        where = f"{tar.location}, {sample.key}"
        try:
            ending = image_ending(sample.files, where, self.options.image)
            image = decode_image(
                sample.files,
                where,
                self.shape,
                self.options.shape is not None,
                self.options.background,
                self.options.image,
            )
            label = decode_label(sample.files, where)
        except DataError as error:
            self.problems.add([str(error)])
            if has_image(sample.files):
                tar.samples += 1
                self.broken += 1
            else:
                self._leave_out(len(sample.files), where)
            return
        channels, height, width = image.shape
        self.shape = self.shape or (channels, height, width)
        tar.samples += 1
        tar.labels.append(label)
        tar.offsets.append(sample.offsets[ending])
        tar.sizes.append(len(sample.files[ending]))
        self.animated += is_animated(io.BytesIO(sample.files[ending]), TAR_FORMATS)
        if label == NO_LABEL:
            self.unlabelled += 1
            self.first_unlabelled = self.first_unlabelled or where

    def _leave_out(self, count: int, where: str) -> None:
        self.first_left_out = self.first_left_out or (where if count else "")
        self.left_out += count

    @property
    def label_names(self) -> list[str]:
        """The numbers up to the largest label, as text."""
        largest = max(max(tar.labels, default=NO_LABEL) for tar in self.tars)
        return [str(i) for i in range(largest + 1)]

    def report(self, count: int) -> None:
        """Log what is wrong with the tars.

        Args:
            count: number of tars that were added.

        Raises:
            DataError: it cannot be used, or is not to be skipped.
        """
        problems = self.problems.count
        summary = f"{self.name}: {problems:,} problems in {count:,} tars"
        if problems and not (self.options.skip_broken and self.tars):
            raise DataError(self.problems.report(summary, "use --skip-broken"))
        if self.shape is None:
            raise DataError(f"{self.name}: no sample can be decoded; use other tars")
        if problems:
            logger.warning(self.problems.report(summary, "train without them"))
        if self.broken:
            logger.warning("%d samples cannot be decoded; train with data.on_error=skip", self.broken)
        if unread := count - len(self.tars):
            logger.warning("%d of %d tars cannot be read and are left out", unread, count)
        if self.left_out:
            logger.warning(
                "%d files are no part of a sample with an image and are left out, such as %s",
                self.left_out,
                self.first_left_out,
            )
        if self.unlabelled and self.label_names:
            logger.warning(
                "%d images have no label, such as %s; scores that need labels cannot be computed",
                self.unlabelled,
                self.first_unlabelled,
            )
        if self.animated:
            logger.warning("%d images have several frames; the first of each is used", self.animated)
        copies = Counter(tar.sha256 for tar in self.tars)
        if repeated := [tar.location for tar in self.tars if copies[tar.sha256] > 1]:
            logger.warning(
                "%d tars are copies of one another, such as %s and %s", len(repeated), *repeated[:2]
            )


def index_tars(urls: list[str], out: Path, name: str, options: TarOptions | None = None) -> Manifest:
    """Write the manifest of existing WebDataset tars, which are read but not copied.

    Args:
        urls: paths and URLs; `{0000..0099}` and, in paths, `*` are expanded.
        out: folder of the manifest; created where it is missing.
        name: the data's name.
        options: how images are read; None: the defaults.

    Raises:
        NetworkError: a tar cannot be read over the network at the moment.
        DataError: tars are missing or damaged, or contain samples that cannot be decoded.
    """
    options = options or TarOptions()
    index = scan_tars(urls, name, options)
    if warning := sorted_warning([np.asarray(tar.labels, np.int64) for tar in index.tars]):
        logger.warning("%s: %s", name, warning)
    left_out = sorted({*expand(urls)} - {tar.location for tar in index.tars})
    assert index.shape
    manifest = Manifest(
        name,
        index.shape,
        index.label_names,
        [Shard(_relative(t.location, out), t.samples, t.bytes, t.sha256) for t in index.tars],
        fit=options.shape is not None,
        background=options.background,
        image=options.image,
        origin={"left_out": left_out} if left_out else {},
        location=str(out),
    )
    with locked(out):
        write_manifest(manifest, out)
    return manifest


def scan_tars(urls: list[str], name: str, options: TarOptions) -> TarIndex:
    """Read tars and decode their images; report at the end what is wrong. Raises as `index_tars`."""
    locations = expand(urls)
    index = TarIndex(name, options)
    with progress(len(locations), "tar", description=f"index of {name}") as bar:
        for location in locations:
            index.add(location)
            bar.update()
    index.report(len(locations))
    return index


@contextmanager
def open_tar(location: str) -> Iterator[IO[bytes]]:
    """Open a tar by absolute path or URL, as a seekable stream. Raises as `Store.read`."""
    try:
        with io.BytesIO(Store().read(location)) if is_remote(location) else open(location, "rb") as stream:
            yield stream
    except FileNotFoundError:
        raise DataError(f"{location}: no such tar; check the path or URL") from None
    except OSError as error:
        raise DataError(f"{location}: cannot be read ({error.strerror}); check its permissions") from None


def _checksum(stream: IO[bytes]) -> tuple[int, str]:
    """Return size and SHA-256 of a stream, which is at its start again afterwards."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(READ_BYTES):
        digest.update(chunk)
        size += len(chunk)
    stream.seek(0)
    return size, digest.hexdigest()


def _relative(location: str, out: Path) -> str:
    """Return a tar's location for the manifest: relative to it where the tar is in the same folder."""
    if not is_remote(location) and Path(location).is_relative_to(out.resolve()):
        return Path(location).relative_to(out.resolve()).as_posix()
    return location


def _absolute(url: str) -> str:
    """Return a tar's absolute path, or its URL. Raises `DataError` for a URL with credentials."""
    if not is_remote(url):
        return str(Path(url).resolve())
    if redact_url(url) != url:
        raise DataError(
            f"{redact_url(url)}: its password or query would be readable in the manifest; give a URL without "
            "(hf://, s3:// and gs:// URLs take credentials from the environment)"
        )
    return url


def expand(patterns: list[str]) -> list[str]:
    """Return the absolute locations of tars. Raises `DataError`."""
    locations: list[str] = []
    for pattern in patterns:
        try:
            urls = list(braceexpand.braceexpand(pattern))
        except ValueError:
            raise DataError(f"{redact_url(pattern)}: unbalanced braces; write {{0000..0099}}") from None
        for url in urls:
            matches = [url] if is_remote(url) or "*" not in url else sorted(glob.glob(url))
            if not matches:
                raise DataError(f"{url}: no such tars; check the pattern")
            locations += [_absolute(match) for match in matches]
    if repeated := [location for location, count in Counter(locations).items() if count > 1]:
        raise DataError(
            f"{repeated[0]}: given more than once, as are {len(repeated) - 1} others; give each tar once"
        )
    return locations
