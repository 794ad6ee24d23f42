"""The samples of a WebDataset tar, in a bounded amount of memory."""

import bz2
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

from infogan_dist.errors import DataError

METADATA = re.compile(r"__[^/]*__($|/)")  # members that WebDataset reserves
# A compressed tar may unpack to this many bytes, or to MAX_RATIO times its size if that is more. Images are
# compressed already; only the padding of small members and images without compression shrink much.
MAX_UNPACKED_BYTES, MAX_RATIO = 2**28, 16
XZ_MEMORY = 2**28  # bytes for decompression; the highest preset of xz needs a quarter of it


def samples_of(content: bytes, url: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the samples of a tar as (key, bytes by file ending), grouped as by WebDataset.

    Raises:
        DataError: it is not a readable tar, or would unpack to too many bytes.
    """
    # Imported only now because it imports torch, and a refused command line has to answer sooner.
    from webdataset.tariterators import group_by_keys

    try:
        for sample in group_by_keys(_members(content, url)):
            members = {k: v for k, v in sample.items() if not k.startswith("__")}
            if members:
                yield sample["__key__"], members
    except (tarfile.TarError, zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
        raise DataError(f"{url}: not a readable tar ({error}); replace it") from None


def _members(content: bytes, url: str) -> Iterator[dict[str, Any]]:
    """Yield the files of a tar in the form that `group_by_keys` expects."""
    limit = max(MAX_UNPACKED_BYTES, MAX_RATIO * len(content))
    unpacked, left = _unpack(content, limit, url), limit
    with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r|") as tar:
        for member in tar:
            tar.members = []  # type: ignore[assignment]  # else they stay in memory
            if not member.isreg() or METADATA.match(member.name):
                continue
            left -= member.size
            if left < 0:  # The zeros of a sparse file are not part of the tar.
                raise _too_large(url, limit)
            stream = tar.extractfile(member)
            assert stream
            yield {"fname": member.name, "data": stream.read(), "__url__": url}


def _unpack(content: bytes, limit: int, url: str) -> bytes:
    """Return the bytes of a tar that may be compressed by gzip, bzip2 or xz."""
    decompressors = {
        b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
        b"BZh": bz2.BZ2Decompressor,
        b"\xfd7zXZ": lambda: lzma.LZMADecompressor(memlimit=XZ_MEMORY),
    }
    create = next((create for magic, create in decompressors.items() if content.startswith(magic)), None)
    if create is None:
        return content
    unpacked = bytearray()
    while content:  # A file may consist of several compressed streams.
        decompressor: Any = create()
        unpacked += decompressor.decompress(content, limit + 1 - len(unpacked))
        if len(unpacked) > limit:
            raise _too_large(url, limit)
        if not decompressor.eof:
            raise EOFError("the compressed file is not complete")
        content = decompressor.unused_data.lstrip(b"\0")
    return bytes(unpacked)


def _too_large(url: str, limit: int) -> DataError:
    return DataError(f"{url}: unpacks to more than {limit:,} bytes; store the tar without compression")
