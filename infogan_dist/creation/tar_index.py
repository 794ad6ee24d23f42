"""The contents of existing WebDataset tars, and what is wrong with them."""

from __future__ import annotations

import hashlib
import io
import logging
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

from infogan_dist.creation.folder import natural_key
from infogan_dist.creation.problems import Problems
from infogan_dist.data.class_names import class_name
from infogan_dist.data.fetch import NetworkError, Store
from infogan_dist.data.images import TAR_FORMATS, decode_image, has_image, image_ending, is_animated
from infogan_dist.data.shards import MAX_CLASSES, NO_LABEL, decode_class_name, decode_label
from infogan_dist.data.tars import TarReader, TarSample, uncompressed
from infogan_dist.data.urls import is_remote
from infogan_dist.errors import DataError

READ_BYTES = 2**20  # of a local tar at once, for its checksum
Shape = tuple[int, int, int]  # (channels, height, width)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TarOptions:
    """How the images of foreign tars are read.

    Attributes:
        shape: (channels, height, width) to which images are fitted when read; None: all must have one shape.
        background: colour under transparent pixels; None: transparency is ignored.
        image: ending of the image among the files of a sample; None: a sample has one image only.
        skip_broken: include samples that cannot be decoded, and leave out tars that cannot be read.
        label: file of the class names among those of a sample, as of `class_name`; None: .cls files contain
            the numbers of the classes.
        classes: names of the classes by number; None: all that occur.
    """

    shape: Shape | None = None
    background: str | None = None
    image: str | None = None
    skip_broken: bool = False
    label: str | None = None
    classes: tuple[str, ...] | None = None


@dataclass
class IndexedTar:
    """A tar whose images have all been decoded once.

    Attributes:
        location: absolute path or URL.
        bytes: size of the file.
        sha256: checksum of the file.
        labels: of the samples that can be decoded, -1 where there is none.
        offsets, sizes: position and number of bytes of their images in the tar, uncompressed.
        problems: samples that cannot be decoded, and files without an image.
        broken: number of samples that cannot be decoded.
        animated: number of images with several frames.
        left_out: number of files that are part of no sample with an image.
        first_left_out: name of the first of them.
        first_unlabelled: key of the first sample without a label.
    """

    location: str
    bytes: int = 0
    sha256: str = ""
    labels: array[int] = field(default_factory=lambda: array("q"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    problems: Problems = field(default_factory=Problems)
    broken: int = 0
    animated: int = 0
    left_out: int = 0
    first_left_out: str = ""
    first_unlabelled: str = ""

    @property
    def samples(self) -> int:
        """Number of samples, with those that cannot be decoded."""
        return len(self.labels) + self.broken

    def add(
        self, sample: TarSample, options: TarOptions, shape: Shape | None, numbers: dict[str, int]
    ) -> Shape | None:
        """Decode a sample, and return the shape of its image, or None if it cannot be decoded.

        Args:
            sample: of the tar.
            options: how images are read.
            shape: required (channels, height, width); None: any.
            numbers: of the classes by name; without `options.classes`, new ones are added.
        """
        where, fit = f"{self.location}, {sample.key}", options.shape is not None
        try:
            ending = image_ending(sample.files, where, options.image)
            image = decode_image(sample.files, where, shape, fit, options.background, options.image)
            label = _label(sample.files, where, options, numbers)
        except DataError as error:
            self.problems.add(str(error))
            if has_image(sample.files):
                self.broken += 1
            else:
                self.leave_out(len(sample.files), sample.key)
            return None
        self.labels.append(label)
        self.offsets.append(sample.offsets[ending])
        self.sizes.append(len(sample.files[ending]))
        self.animated += is_animated(io.BytesIO(sample.files[ending]), TAR_FORMATS)
        if label == NO_LABEL:
            self.first_unlabelled = self.first_unlabelled or sample.key
        channels, height, width = image.shape
        return channels, height, width

    def leave_out(self, count: int, name: str) -> None:
        """Count files that are part of no sample with an image."""
        self.left_out += count
        self.first_left_out = self.first_left_out or name


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
        self._numbers = {name: i for i, name in enumerate(options.classes or ())}
        self._problems = Problems()

    def add(self, location: str) -> None:
        """Read a tar and decode its images. What is wrong with them is collected.

        Raises:
            NetworkError: it cannot be read over the network at the moment.
        """
        tar, shape = IndexedTar(location), self.shape
        try:
            with open_tar(location) as stream:
                tar.bytes, tar.sha256 = _checksum(stream)
                with uncompressed(stream, location) as content:
                    reader = TarReader(content, location)
                    for sample in reader:
                        shape = tar.add(sample, self.options, shape, self._numbers) or shape
            tar.leave_out(reader.left_out, reader.first_left_out)
            self._problems.merge(tar.problems)
            if not tar.samples:
                raise DataError(f"{location}: contains no samples with an image; leave it out")
        except NetworkError:
            raise
        except DataError as error:
            self._problems.add(str(error))
            return
        self.tars.append(tar)
        self.shape = shape

    @property
    def label_names(self) -> list[str]:
        """Names of the classes by label; of those that have none, the numbers as text."""
        if self.options.classes is not None:
            return list(self.options.classes)
        if self.options.label is not None:
            return list(self._numbers)
        largest = max(max(tar.labels, default=NO_LABEL) for tar in self.tars)
        return [str(i) for i in range(largest + 1)]

    def sort_classes(self) -> None:
        """Number the classes in natural order of their names, unless their order is given."""
        if self.options.label is None or self.options.classes is not None:
            return
        names = list(self._numbers)
        used = sorted({label for tar in self.tars for label in tar.labels} - {NO_LABEL})
        ordered = sorted((names[label] for label in used), key=natural_key)
        self._numbers = {name: i for i, name in enumerate(ordered)}
        for tar in self.tars:
            tar.labels = array(
                "q", (NO_LABEL if k == NO_LABEL else self._numbers[names[k]] for k in tar.labels)
            )

    def report(self, count: int, broken_remedy: str) -> None:
        """Log what is wrong with the tars.

        Args:
            count: number of tars that were added.
            broken_remedy: end of the warning of samples that cannot be decoded.

        Raises:
            DataError: they contain no usable image, or something is wrong and `skip_broken` is not set.
        """
        problems, tars = self._problems.count, self.tars
        summary = f"{self.name}: {problems:,} problems in {count:,} tars"
        if problems and not (self.options.skip_broken and tars):
            raise DataError(self._problems.report(summary, "use --skip-broken"))
        if self.shape is None or not any(tar.labels for tar in tars):
            raise DataError(f"{self.name}: no sample can be decoded; use other tars")
        label = self.options.label
        if label is not None and all(tar.labels.count(NO_LABEL) == len(tar.labels) for tar in tars):
            raise DataError(f"{self.name}: no sample has a class in {label}; choose another --label")
        if problems:
            logger.warning(self._problems.report(summary))
        if broken := sum(tar.broken for tar in tars):
            logger.warning("%d samples cannot be decoded; %s", broken, broken_remedy)
        if count > len(tars):
            logger.warning("%d of %d tars cannot be used and are left out", count - len(tars), count)
        if left_out := [tar for tar in tars if tar.left_out]:
            number, first = sum(tar.left_out for tar in left_out), left_out[0]
            example = f"{first.location}, {first.first_left_out}"
            logger.warning("%d files are part of no sample with an image, such as %s", number, example)
        if animated := sum(tar.animated for tar in tars):
            logger.warning("%d images have several frames; the first of each is used", animated)
        self._report_unlabelled()
        copies = Counter(tar.sha256 for tar in tars)
        if repeated := [tar.location for tar in tars if copies[tar.sha256] > 1]:
            example = " and ".join(repeated[:2])
            logger.warning("%d tars are copies of others, such as %s", len(repeated), example)

    def _report_unlabelled(self) -> None:
        unlabelled = sum(tar.labels.count(NO_LABEL) for tar in self.tars)
        if unlabelled and self.label_names:
            first = next(tar for tar in self.tars if tar.first_unlabelled)
            logger.warning(
                "%d of %d images have no label, such as %s, %s; scores that need labels cannot be computed",
                unlabelled,
                sum(len(tar.labels) for tar in self.tars),
                first.location,
                first.first_unlabelled,
            )


@contextmanager
def open_tar(location: str) -> Iterator[IO[bytes]]:
    """Open a tar by absolute path or URL, as a seekable stream.

    Raises:
        NetworkError: it cannot be read over the network.
        DataError: it does not exist, or is a local file that cannot be read.
    """
    try:
        with io.BytesIO(_download(location)) if is_remote(location) else open(location, "rb") as stream:
            yield stream
    except FileNotFoundError:
        raise DataError(f"{location}: no such tar; check the path or URL") from None
    except OSError as error:
        raise DataError(f"{location}: cannot be read ({error.strerror}); check its permissions") from None


def _download(url: str) -> bytes:
    try:
        return Store().read(url)
    except DataError as error:
        # A server that refuses one tar probably refuses all, so that this is not a fault of the tar.
        raise NetworkError(str(error)) from None


def _label(files: dict[str, bytes], where: str, options: TarOptions, numbers: dict[str, int]) -> int:
    """Return the label of a sample, as `IndexedTar.add` needs it."""
    if options.label is None:
        return decode_label(files, where, MAX_CLASSES if options.classes is None else len(options.classes))
    name = class_name(files, where, options.label)
    if options.classes is None and name is not None and len(numbers) < MAX_CLASSES:
        numbers.setdefault(name, len(numbers))
    return decode_class_name(files, where, options.label, numbers)


def _checksum(stream: IO[bytes]) -> tuple[int, str]:
    """Return size and SHA-256 of a stream, which is at its start again afterwards."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(READ_BYTES):
        digest.update(chunk)
        size += len(chunk)
    stream.seek(0)
    return size, digest.hexdigest()
