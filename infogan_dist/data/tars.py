"""Samples of WebDataset tars; a tar that is not complete is refused."""

import bz2
import io
import lzma
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from tempfile import SpooledTemporaryFile
from typing import IO, Any, NamedTuple

from infogan_dist.data.images import has_image
from infogan_dist.errors import DataError

BLOCK_BYTES = 512
# Zeros at the end of an archive fill its last record, of 10 KiB by default and up to 1 MiB for tapes. A file
# whose download did not finish may have many more.
MAX_PADDING = 2**20
# A compressed tar may unpack to this many bytes, or to MAX_RATIO times its size if that is more. Images are
# compressed already; only the padding of small members and images without compression shrink much.
MAX_UNPACKED_BYTES, MAX_RATIO = 2**28, 16
XZ_MEMORY = 2**28  # bytes for decompression; the highest preset of xz needs a quarter of it
CHUNK_BYTES = 2**20  # that are decompressed at once
METADATA = re.compile(r"__[^/]*__($|/)")  # names that WebDataset reserves


class TarSample(NamedTuple):
    """Consecutive files of a tar with the same key.

    Attributes:
        key: the files' common name up to the first dot of its last part, with folders.
        files: their bytes by ending, which is in lower case.
        offsets: position of these bytes in the tar, uncompressed, by ending.
    """

    key: str
    files: dict[str, bytes]
    offsets: dict[str, int]


class _Place(NamedTuple):
    """Where a member's bytes are; `link` is the name of the member to which it is a link, else empty."""

    offset: int
    size: int
    link: str


class TarReader:
    """Reads the samples of a tar one after the other, grouped as by WebDataset.

    `tarfile` ends without an error at an invalid header, as at the end of the archive. Here the end must be
    marked as the format demands, so that no sample of a damaged file is lost without an error.

    Args:
        stream: the tar, seekable and not compressed; see `uncompressed`.
        where: its name in error messages.

    Attributes:
        left_out: number of files that are part of no sample: hidden ones, WebDataset's metadata, and those
            without an ending.
        first_left_out: name of the first of them.
    """

    def __init__(self, stream: IO[bytes], where: str):
        self.stream, self.where = stream, where
        self.left_out, self.first_left_out = 0, ""

    def __iter__(self) -> Iterator[TarSample]:
        """Yield the samples, also those without an image. Raises `DataError`."""
        keys: set[str] = set()
        sample: TarSample | None = None
        for name, key, ending, place in self._files():
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                if key in keys:
                    raise DataError(
                        f"{self.where}, {name}: other files of the sample {key} are elsewhere in the tar; "
                        "create it with the files of each sample together, such as by `tar --sort=name`"
                    )
                keys.add(key)
                sample = TarSample(key, {}, {})
            if ending in sample.files:
                raise DataError(f"{self.where}, {name}: the tar contains two such files; remove one")
            sample.files[ending], sample.offsets[ending] = self._read(name, place), place.offset
        if sample is not None:
            yield sample

    def _files(self) -> Iterator[tuple[str, str, str, _Place]]:
        """Yield name, key, ending and place of each file that belongs to a sample."""
        for info in self._members():
            parts = split_name(info.name)
            if info.isdir():
                continue
            if parts is None:
                self._leave_out(info.name)
            elif (place := self._resolve(info, parts[1])) is not None:
                yield (info.name, *parts, place)

    def _leave_out(self, name: str) -> None:
        self.left_out += 1
        self.first_left_out = self.first_left_out or name

    def _members(self) -> Iterator[tarfile.TarInfo]:
        """Yield the members. Raises `DataError` where the archive does not end as it must."""
        with self._reported():
            self.stream.seek(0)
            tar = tarfile.open(fileobj=self.stream, mode="r:")  # noqa: SIM115 (the stream stays open)
        last = -1
        while True:
            with self._reported():
                info = tar.next()
                tar.members = []  # type: ignore[attr-defined]  # The list would grow with the archive.
                if info is not None and (info.size < 0 or info.offset <= last):
                    raise ValueError(f"an invalid size at byte {info.offset:,}")
            if info is None:
                break
            last = info.offset
            yield info
        with self._reported():
            self._require_end(tar.offset)

    def _require_end(self, offset: int) -> None:
        """Raise `ValueError` unless the archive ends at an offset, with zeros: two blocks, and padding."""
        self.stream.seek(offset)
        mark = self.stream.read(2 * BLOCK_BYTES)
        if mark[:BLOCK_BYTES].count(0) != len(mark[:BLOCK_BYTES]):
            raise ValueError(f"an invalid header at byte {offset:,}")
        if len(mark) < 2 * BLOCK_BYTES:
            raise ValueError("no end mark, since the file is cut off or was not closed")
        padding = self.stream.read(MAX_PADDING)
        if padding.count(0) != len(padding) or mark.count(0) != len(mark):
            raise ValueError("data after the end mark, such as of a second tar in the same file")
        if self.stream.read(1):
            raise ValueError(f"more than {MAX_PADDING:,} bytes after the end mark, as of half a download")

    def _resolve(self, info: tarfile.TarInfo, ending: str) -> _Place | None:
        """Return where the bytes of a file or link are; None for a file without them that is no image.

        Raises:
            DataError: an image is a link to nothing, or a member of another type.
        """
        if info.isreg() and not info.issparse():
            return _Place(info.offset_data, info.size, "")
        reason = "a member that is neither a file nor a link"
        if info.islnk() or info.issym():
            place, visited = _place_of(info), set()
            while place is not None and place.link and place.link not in visited:
                visited.add(place.link)
                place = self._places.get(place.link)
            if place is not None and not place.link:
                return place
            reason = f"a link to {info.linkname}, which is " + (
                "not in the tar" if place is None else "a loop"
            )
        if has_image([ending]):
            raise DataError(f"{self.where}, {info.name}: {reason}; replace it by the file")
        self._leave_out(info.name)
        return None

    @cached_property
    def _places(self) -> dict[str, _Place]:
        """All files and links by name; needed for links only, because it takes memory for each."""
        reader = TarReader(self.stream, self.where)
        return {
            posixpath.normpath(info.name): _place_of(info)
            for info in reader._members()
            if (info.isreg() and not info.issparse()) or info.islnk() or info.issym()
        }

    def _read(self, name: str, place: _Place) -> bytes:
        with self._reported():
            self.stream.seek(place.offset)
            content = self.stream.read(place.size)
            if len(content) < place.size:
                raise ValueError(f"it ends within {name}")
        return content

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # For a damaged header `tarfile` raises errors of many types.
            raise DataError(
                f"{self.where}: not a readable tar ({error}); restore it or create it again"
            ) from None


def _place_of(info: tarfile.TarInfo) -> _Place:
    link = ""
    if info.issym():  # relative to its own folder, while a hard link is relative to the archive
        link = posixpath.normpath(posixpath.join(posixpath.dirname(info.name), info.linkname))
    elif info.islnk():
        link = posixpath.normpath(info.linkname)
    return _Place(info.offset_data, info.size, link)


def split_name(name: str) -> tuple[str, str] | None:
    """Return the key and the ending of a file of a tar by WebDataset's rule: the first dot separates them.

    The ending is in lower case. A hidden file, WebDataset's metadata and a file without an ending have none.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    is_hidden = any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))
    if is_hidden or METADATA.match(name) or not dot:
        return None
    return folder + slash + stem, ending.lower()


def samples_of(content: bytes, url: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the samples of a tar as (key, bytes by file ending). Files without an image are no sample.

    Raises:
        DataError: it is not a complete tar, or would unpack to too many bytes.
    """
    with uncompressed(io.BytesIO(content), url) as stream:
        for sample in TarReader(stream, url):
            if has_image(sample.files):
                yield sample.key, sample.files


@contextmanager
def uncompressed(stream: IO[bytes], where: str) -> Iterator[IO[bytes]]:
    """Provide a tar itself, or a temporary file, if it is compressed by gzip, bzip2 or xz.

    A large temporary file is on the disk, a small one in memory.

    Args:
        stream: the tar, seekable.
        where: its name in error messages.

    Raises:
        DataError: it cannot be decompressed, or would unpack to too many bytes.
    """
    decompressors = {
        b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
        b"BZh": bz2.BZ2Decompressor,
        b"\xfd7zXZ": lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY),
    }
    limit = max(MAX_UNPACKED_BYTES, MAX_RATIO * stream.seek(0, io.SEEK_END))
    stream.seek(0)
    start = stream.read(10)
    stream.seek(0)
    create = next((create for magic, create in decompressors.items() if start.startswith(magic)), None)
    if create is None:
        yield stream
        return
    with SpooledTemporaryFile(MAX_UNPACKED_BYTES) as unpacked:
        try:
            for part in _unpack(stream, create):
                unpacked.write(part)
                if unpacked.tell() > limit:
                    raise OverflowError
        except OverflowError:
            raise DataError(
                f"{where}: unpacks to more than {limit:,} bytes; store the tar without compression"
            ) from None
        except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
            raise DataError(f"{where}: not a readable tar ({error}); restore it or create it again") from None
        unpacked.seek(0)
        yield unpacked  # type: ignore[misc]


def _unpack(stream: IO[bytes], create: Any) -> Iterator[bytes]:
    """Yield the bytes of one or more compressed streams, in parts of bounded size.

    Args:
        stream: the compressed file.
        create: function that returns a decompressor.
    """
    content = stream.read(CHUNK_BYTES)
    while content:
        decompressor = create()
        while not decompressor.eof:
            yield decompressor.decompress(content, CHUNK_BYTES)
            # What zlib has not read yet has to be given again; bz2 and lzma have stored it.
            content = getattr(decompressor, "unconsumed_tail", b"")
            if not content and getattr(decompressor, "needs_input", True) and not decompressor.eof:
                content = stream.read(CHUNK_BYTES)
                if not content:
                    raise EOFError("the compressed file is not complete")
        content = decompressor.unused_data.lstrip(b"\0") or stream.read(CHUNK_BYTES).lstrip(b"\0")
