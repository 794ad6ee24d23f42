"""A tar is read completely or refused: no sample is lost without a message."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from infogan_dist.data import tars
from infogan_dist.data.tars import TarReader, samples_of, split_name, uncompressed
from infogan_dist.errors import DataError


def tar_of(*members: tuple[str, bytes | str | tuple[bytes, str]], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of files (name, content), symbolic links (name, target) and others (name, (type, target))."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = (tarfile.SYMTYPE, content) if isinstance(content, str) else content
                tar.addfile(info)
    return buffer.getvalue()


def six(prefix: str = "") -> bytes:
    """A tar of six images of 600 bytes, each 3 blocks with its header."""
    return tar_of(*((f"{prefix}{i}.png", bytes([i]) * 600) for i in range(6)))


def keys(content: bytes) -> list[str]:
    return [key for key, _ in samples_of(content, "x.tar")]


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_all_formats_are_read_completely(format: int, compress: Callable[[bytes], bytes]):
    # Two names do not fit into the 100 bytes of a header.
    names = ["a", "é" * 40, "deep/" * 19 + "x" * 80, *(["y" * 150] if format != tarfile.USTAR_FORMAT else [])]
    content = compress(tar_of(*((f"{name}.png", name.encode()) for name in names), format=format))
    files = [(key, files["png"].decode()) for key, files in samples_of(content, "x.tar")]
    assert files == [(name, name) for name in names]


BLOCK = 512
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a bad header in the middle": (
        lambda tar: tar[: 9 * BLOCK] + b"?" + tar[9 * BLOCK + 1 :],
        "an invalid header at byte 4,608",
    ),
    "cut at the end of a member": (lambda tar: tar[: 12 * BLOCK], "no end mark"),
    "cut within the end mark": (lambda tar: tar[: 19 * BLOCK], "no end mark"),
    "cut within a member": (lambda tar: tar[: 10 * BLOCK + 5], "it ends within 3.png"),
    "cut within a header": (lambda tar: tar[: 9 * BLOCK + 5], "an invalid header|no end mark"),
    "two tars in one file": (lambda tar: tar + six("b"), "data after the end mark, such as of a second tar"),
    "zeros instead of a header": (
        lambda tar: tar[: 9 * BLOCK] + bytes(2 * BLOCK) + tar[11 * BLOCK :],
        "data after the end mark",
    ),
    "no tar": (lambda tar: b"hello" * 300, "invalid header"),
    "nothing": (lambda tar: b"", "empty file"),
    "half a gzip file": (lambda tar: gzip.compress(tar, mtime=0)[:-20], "not complete"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tar_is_refused(damage: str):
    change, message = DAMAGES[damage]
    assert keys(six()) == list("012345")
    with pytest.raises(DataError, match=rf"x\.tar: not a readable tar \(.*({message})"):
        keys(change(six()))


def test_a_tar_may_be_padded_with_zeros_to_a_record_but_not_to_the_size_of_a_download():
    content = six()[: 20 * BLOCK]
    assert keys(content) == keys(content + bytes(2**20)) == list("012345")
    with pytest.raises(DataError, match="more than 1,048,576 bytes after the end mark"):
        keys(content + bytes(2**20 + 1))


PACKINGS = pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])


@PACKINGS
def test_a_compressed_tar_may_have_several_streams_and_zeros_at_its_end(pack: Callable[[bytes], bytes]):
    content = six()
    assert keys(pack(content[:700]) + pack(content[700:]) + bytes(512)) == list("012345")


@PACKINGS
@pytest.mark.parametrize("chunk", [7, 2**20])
def test_a_compressed_tar_is_decompressed_in_parts(
    pack: Callable[[bytes], bytes], chunk: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tars, "CHUNK_BYTES", chunk)
    with uncompressed(io.BytesIO(pack(six())), "x.tar") as stream:
        assert stream.read() == six()


@PACKINGS
def test_unpacking_stops_at_the_limit(pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tars, "MAX_UNPACKED_BYTES", 100_000)
    assert keys(pack(tar_of(("a.png", bytes(90_000))))) == ["a"]
    with pytest.raises(DataError, match=r"x\.tar: unpacks to more than 100,000 bytes"):
        keys(pack(tar_of(("a.png", bytes(110_000)))))


@PACKINGS
def test_a_damaged_compressed_tar_is_refused(pack: Callable[[bytes], bytes]):
    packed = pack(six())
    flipped = packed[:30] + bytes([packed[30] ^ 255]) + packed[31:]
    for content in (packed[:-20], flipped, packed + b"rest"):
        with pytest.raises(DataError, match=r"x\.tar: not a readable tar"):
            keys(content)


def test_a_sparse_file_is_refused():
    info = tarfile.TarInfo("a.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % 2**30  # the size with its zeros
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(DataError, match=r"a\.png: a member that is neither a file nor a link"):
        keys(bytes(header) + bytes(1024))


def test_a_negative_size_ends_the_reading():
    header = tarfile.TarInfo("b.png")
    header.pax_headers = {"size": "-1536"}
    content = tar_of(("a.png", b"1" * 600))[: 3 * BLOCK] + header.tobuf(tarfile.PAX_FORMAT) + bytes(2 * BLOCK)
    with pytest.raises(DataError, match="not a readable tar"):
        keys(content)


def test_links_are_followed():
    content = tar_of(
        ("data/a.png", b"A"),
        ("data/b.png", (tarfile.LNKTYPE, "data/a.png")),
        ("more/c.png", "../data/b.png"),
        ("more/d.png", "e.png"),
        ("more/e.png", b"E"),
        ("README.md", "nowhere.md"),
    )
    images = {key: files["png"] for key, files in samples_of(content, "x.tar")}
    assert images == {"data/a": b"A", "data/b": b"A", "more/c": b"A", "more/d": b"E", "more/e": b"E"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", "b.png"), ("b.png", "a.png")], r"a\.png: a link to b\.png, which is a loop"),
        ([("a.png", "a.png")], r"a\.png: a link to a\.png, which is a loop"),
        ([("a.png", "gone.png")], r"a\.png: a link to gone\.png, which is not in the tar"),
        ([("a.png", "/etc/passwd")], r"a\.png: a link to /etc/passwd, which is not in the tar"),
        ([("a.png", (tarfile.FIFOTYPE, ""))], r"a\.png: a member that is neither a file nor a link"),
        (
            [("a.png", b"1"), ("b.png", b"2"), ("a.cls", b"0")],
            r"a\.cls: other files of the sample a are elsewhere",
        ),
        ([("a.png", b"1"), ("a.PNG", b"2")], r"a\.PNG: the tar contains two such files"),
    ],
)
def test_members_that_would_be_lost_are_refused(members: list, message: str):
    with pytest.raises(DataError, match=f"x.tar, {message}"):
        keys(tar_of(*members))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", ("a", "png")),
        ("./d.v2/a.seg.PNG", ("./d.v2/a", "seg.png")),
        ("LICENSE", None),
        ("._0.png", None),
        ("cats/._0.png", None),
        (".ipynb_checkpoints/a.png", None),
        ("__meta__/a.png", None),
    ],
)
def test_names_are_split_by_the_rule_of_webdataset(name: str, expected: tuple[str, str] | None):
    assert split_name(name) == expected


def test_files_that_are_part_of_no_sample_are_counted():
    content = tar_of(("a.png", b"1"), ("._a.png", b"2"), ("LICENSE", b"3"), ("b.txt", "gone"))
    reader = TarReader(io.BytesIO(content), "x.tar")
    assert [sample.key for sample in reader] == ["a"]
    assert (reader.left_out, reader.first_left_out) == (3, "._a.png")


def test_the_position_of_each_file_is_known():
    content = tar_of(("a.png", b"123"), ("b.png", "a.png"))
    for sample in TarReader(io.BytesIO(content), "x.tar"):
        offset = sample.offsets["png"]
        assert content[offset : offset + 3] == b"123"


def test_the_members_of_a_tar_do_not_accumulate_in_memory(tmp_path: Path):
    import tracemalloc

    content = tar_of(*((f"{i}.png", b"") for i in range(2000)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in TarReader(io.BytesIO(content), "x.tar")) == 2000
        assert tracemalloc.get_traced_memory()[1] < 700_000  # a list of the members takes 2.5 MB
    finally:
        tracemalloc.stop()
