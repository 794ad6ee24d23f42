"""The samples of a tar are those of its members, in a bounded amount of memory."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from infogan_dist.data import tars
from infogan_dist.data.tars import samples_of
from infogan_dist.errors import DataError

PACKINGS = pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])


def tar_of(members: dict[str, bytes]) -> bytes:
    """Return a tar with these files by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


MEMBERS = {"a.png": b"1", "a.cls": b"2", "__meta__/x.json": b"{}", "dir/b.PNG": b"3"}
SAMPLES = [("a", {"png": b"1", "cls": b"2"}), ("dir/b", {"png": b"3"})]


def test_members_are_grouped_to_samples():
    assert list(samples_of(tar_of(MEMBERS), "x.tar")) == SAMPLES


@PACKINGS
def test_a_compressed_tar_has_the_same_samples(pack: Callable[[bytes], bytes]):
    tar = tar_of(MEMBERS)
    assert list(samples_of(pack(tar), "x.tar")) == SAMPLES
    assert list(samples_of(pack(tar[:700]) + pack(tar[700:]) + bytes(512), "x.tar")) == SAMPLES


@PACKINGS
def test_unpacking_stops_at_the_limit(pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tars, "MAX_UNPACKED_BYTES", 100_000)
    content = pack(tar_of({"a.png": bytes(90_000)}))
    assert list(samples_of(content, "x.tar")) == [("a", {"png": bytes(90_000)})]
    with pytest.raises(DataError, match=r"x\.tar: unpacks to more than 100,000 bytes"):
        list(samples_of(pack(tar_of({"a.png": bytes(110_000)})), "x.tar"))


def test_the_zeros_of_a_sparse_file_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tars, "MAX_UNPACKED_BYTES", 100_000)
    info = tarfile.TarInfo("a.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % 2**30  # the size with its zeros
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(DataError, match="unpacks to more than 100,000 bytes"):
        list(samples_of(bytes(header) + bytes(1024), "x.tar"))


@PACKINGS
def test_a_damaged_tar_is_one_line(pack: Callable[[bytes], bytes], tmp_path: Path):
    packed = pack(tar_of(MEMBERS))
    flipped = packed[:30] + bytes([packed[30] ^ 255]) + packed[31:]
    for content in (packed[:-20], flipped, packed + b"rest", b"no tar" * 200):
        with pytest.raises(DataError, match=r"x\.tar: not a readable tar"):
            list(samples_of(content, "x.tar"))
