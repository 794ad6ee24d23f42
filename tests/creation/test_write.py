"""A shard set appears in its folder as a whole, replaces nothing, and has the same bytes on all cores."""

import fcntl
import hashlib
import io
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infogan_dist.creation import shard_folder, write
from infogan_dist.creation.encode import encode_chunks, encode_samples
from infogan_dist.creation.index import index_tars
from infogan_dist.creation.source import Source
from infogan_dist.creation.write import write_shard_set
from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.errors import DataError
from tests.conftest import ROOT, environment, images_source

# From Python 3.12 on, a fork beside other threads, such as those of the test runner, is reported.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def content_digest(folder: Path) -> str:
    """A checksum of all tars of a folder, with the pixels of PNG files, whose bytes vary with zlib."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for m in tar:
                stream = tar.extractfile(m)
                assert stream is not None
                content = stream.read()
                if m.name.endswith("png"):
                    content = np.asarray(Image.open(io.BytesIO(content))).tobytes()
                header = m.mode, m.mtime, m.uid, m.gid, m.uname, m.gname, m.type, m.pax_headers
                digest.update(repr((path.name, m.name, *header)).encode())
                digest.update(content)
    return digest.hexdigest()


def images_with_factors() -> Source:
    factors = {"a": 3, "b": 20}
    return replace(images_source(60), factors=factors, factors_of=lambda i: [i % 3, i // 3])


# Computed when the tars were written by WebDataset's TarWriter, on one core.
@pytest.mark.parametrize(
    ("source", "shards", "seed", "digest"),
    [
        (images_source(99), 5, 3, "e6d3195b2c51cd7cfdf705c1e913f0dea753d91f0eb5b0f6f33af7cd0c91d36f"),
        (images_with_factors(), 3, 1, "add4382241ad518229fd765ad1f8b40296bc0e1deaf1e0cd3aa8d93554aecf6d"),
    ],
)  # fmt: skip
def test_the_content_of_a_set_does_not_change_with_versions(
    tmp_path: Path, source: Source, shards: int, seed: int, digest: str
):
    write_shard_set(source, tmp_path, shards, seed)
    assert content_digest(tmp_path) == digest


def test_tars_are_multiples_of_a_record(tmp_path: Path):
    # A tar without its last blocks is read by Python, but reported as incomplete by other programs.
    manifest = write_shard_set(images_source(203), tmp_path, shards=5)
    assert {shard.bytes % tarfile.RECORDSIZE for shard in manifest.shards} == {0}
    assert [(tmp_path / s.url).stat().st_size for s in manifest.shards] == [s.bytes for s in manifest.shards]


def use_processes(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(write, "usable_processes", lambda seconds: count)


def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = images_source(203, (3, 8, 8))
    one = write_shard_set(source, tmp_path / "1", shards=5)
    use_processes(monkeypatch, 3)
    readers = tmp_path / "readers"
    readers.mkdir()

    def read(i: int) -> tuple[np.ndarray, int]:
        (readers / str(os.getpid())).touch()
        return source.read(i)

    three = write_shard_set(replace(source, read=read), tmp_path / "3", shards=5)
    assert len({path.name for path in readers.iterdir()} - {str(os.getpid())}) >= 2
    assert one == three
    for shard in one.shards:
        assert (tmp_path / "1" / shard.url).read_bytes() == (tmp_path / "3" / shard.url).read_bytes()


def test_processes_do_not_encode_more_than_is_written(tmp_path: Path):
    source = images_source(100)

    def read(i: int) -> tuple[np.ndarray, int]:
        (tmp_path / str(i)).touch()
        return source.read(i)

    encoded = encode_chunks(replace(source, read=read), [[i] for i in range(100)], processes=2)
    first = next(encoded)
    assert first == encode_samples(source, [0])
    time.sleep(0.3)  # a hundred images take less
    assert len(list(tmp_path.iterdir())) <= 5
    encoded.close()


def broken_at(number: int, action: Callable[[], None]) -> Source:
    """A source that acts when one of its images is read in another process."""
    source, parent = images_source(203), os.getpid()

    def read(i: int) -> tuple[np.ndarray, int]:
        if i == number and os.getpid() != parent:
            action()
        return source.read(i)

    return replace(source, read=read)


def raise_os_error() -> None:
    raise FileNotFoundError(2, "No such file or directory")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (raise_os_error, "images: image 150 cannot be read .*No such file"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "images: a process that encodes images was killed"),
    ],
)
def test_an_error_in_another_process_leaves_nothing_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: Callable[[], None], message: str
):
    use_processes(monkeypatch, 2)
    with pytest.raises(DataError, match=message):
        write_shard_set(broken_at(150, action), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_tars_that_no_manifest_lists_are_not_replaced(tmp_path: Path):
    (tmp_path / "000000.tar").write_bytes(b"other data")
    with pytest.raises(DataError, match=r"contains 000000\.tar \(1 tars\), which no manifest lists"):
        write_shard_set(images_source(16), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"000000.tar": b"other data"}


def test_an_existing_set_is_not_replaced(tmp_path: Path):
    first = write_shard_set(images_source(16), tmp_path)
    for create in (
        lambda: write_shard_set(images_source(32), tmp_path),
        lambda: index_tars([f"{tmp_path}/*.tar"], tmp_path, "x"),
    ):
        with pytest.raises(DataError, match="already a shard set"):
            create()
    assert load_manifest(str(tmp_path)) == first


def end_in_child(action: Callable[[], object]) -> None:
    """Run an action in a forked process, which ends without any clean-up after it."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("moved", [0, 1, 11, 12])
def test_a_run_that_was_killed_while_its_tars_appeared_leaves_none_of_them(tmp_path: Path, moved: int):
    replace_file, calls = os.replace, 0

    def killed(source: Path, target: Path) -> None:
        nonlocal calls
        if Path(target).parent == tmp_path:
            calls += 1
            if calls > moved:
                os._exit(1)
        replace_file(source, target)

    def first_run() -> None:
        shard_folder.os.replace = killed  # only in the child
        write_shard_set(images_source(48), tmp_path, shards=12)

    end_in_child(first_run)
    assert len(list(tmp_path.glob("*.tar"))) == moved
    manifest = write_shard_set(images_source(48), tmp_path, shards=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == [*(s.url for s in manifest.shards), "manifest.json"]
    assert sum(len(read_shard(manifest, i).images) for i in range(4)) == 48


def test_a_file_that_cannot_be_written_is_reported(tmp_path: Path):
    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(DataError, match=r"set: cannot be written .*; free space, or choose"):
            write_shard_set(images_source(48), tmp_path / "set")
        os.mkdir(tmp_path / "reported")

    end_in_child(limited)
    assert [p.name for p in tmp_path.iterdir()] == ["reported"]


def test_a_lock_file_that_another_process_removes_meanwhile_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lockf, calls = fcntl.lockf, []

    def lock_after_removal(descriptor: int, operation: int) -> None:
        if not calls:
            (tmp_path / ".lock").unlink()  # as by a process that ends between opening and locking
        calls.append(descriptor)
        lockf(descriptor, operation)

    monkeypatch.setattr(shard_folder.fcntl, "lockf", lock_after_removal)
    with shard_folder.locked(tmp_path):
        assert os.path.samestat(os.fstat(calls[-1]), (tmp_path / ".lock").stat())
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from infogan_dist.creation import write
from infogan_dist.creation.source import Source
write.usable_processes = lambda seconds: 2
def read(i):
    time.sleep(0.05)
    return np.full((1, 8, 8), i % 256, np.uint8), 0
write.write_shard_set(Source("slow", 480, ["a"], read), Path(sys.argv[1]), shards=16)
"""


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_second_writer_is_refused_and_a_killed_one_leaves_no_trace(tmp_path: Path):
    out = tmp_path / "set"
    command = [sys.executable, "-c", SLOW, str(out)]
    with subprocess.Popen(command, cwd=ROOT, env={**environment(), "PYTHONPATH": str(ROOT)}) as writer:
        try:
            deadline = time.monotonic() + 60
            while not (out / ".partial" / "000000.tar").exists() or len(children_of(writer.pid)) < 2:
                assert writer.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            with pytest.raises(DataError, match="another process creates a shard set there; wait for it"):
                write_shard_set(images_source(48), out, shards=4)
            children = children_of(writer.pid)
        finally:
            writer.kill()
    manifest = write_shard_set(images_source(48), out, shards=4)
    assert sorted(p.name for p in out.iterdir()) == [*(s.url for s in manifest.shards), "manifest.json"]
    deadline = time.monotonic() + 10  # they end within PARENT_POLL_S
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
