"""Files of other storage systems are read by fsspec completely and correctly, or there is a clear error."""

import importlib.util
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from infogan_dist.data import filesystems, transport
from infogan_dist.data.fetch import NetworkError, Store
from infogan_dist.data.shards import load_manifest
from infogan_dist.errors import ConfigError, DataError
from infogan_dist.make_shards import main
from tests.data.conftest import run_server
from tests.data.test_loader import loaders
from tests.data.web_server import BODY, BODY_SHA256, Fault, WebServer

X = "faulty://b/x.tar"


@dataclass
class RangeFault:
    """How one request for a range is answered.

    Attributes:
        error: raised.
        send: number of bytes that are returned at most.
        seconds: until the answer.
        change: called before the answer.
    """

    error: Exception | None = None
    send: int | None = None
    seconds: float = 0.0
    change: Callable[[], object] = lambda: None


class FaultyFileSystem(MemoryFileSystem):
    """Files in memory, in ranges that can have faults; after an error the instance is of no use any more."""

    protocol = "faulty"
    store: dict = {}  # noqa: RUF012 (of the class, as in MemoryFileSystem)
    pseudo_dirs = [""]  # noqa: RUF012
    faults: list[RangeFault] = []  # noqa: RUF012
    ranges: list[tuple[int, int]] = []  # noqa: RUF012
    closing = threading.Event()
    reports_versions, is_broken = True, False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("faulty://").lstrip("/")

    def info(self, path, **kwargs):
        info = super().info(path, **kwargs)
        return info if self.reports_versions else {k: v for k, v in info.items() if k != "created"}

    def cat_file(self, path, start: Any = None, end: Any = None, **kwargs):
        self.ranges.append((start, end))
        fault = self.faults.pop(0) if self.faults else RangeFault()
        self.closing.wait(fault.seconds)
        fault.change()
        if fault.error is not None or self.is_broken:
            self.is_broken = True
            raise fault.error or ConnectionResetError
        return super().cat_file(path, start, end, **kwargs)[: fault.send]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FaultyFileSystem]]:
    """The class of the file system faulty://, which contains /b/x.tar; a first range has 30,000 bytes."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    FaultyFileSystem.store, FaultyFileSystem.faults, FaultyFileSystem.ranges = {}, [], []
    FaultyFileSystem.closing = threading.Event()
    FaultyFileSystem().pipe_file("/b/x.tar", BODY)
    monkeypatch.setattr(filesystems, "MAX_RANGE_BYTES", 30_000)
    yield FaultyFileSystem
    FaultyFileSystem.closing.set()


@pytest.fixture(scope="session")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of Google Cloud Storage with an empty bucket `data`."""
    for module in ("gcsfs", "gcp_storage_emulator"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"not installed: {module}")
    arguments = ["start", "--host", "127.0.0.1", "--default-bucket", "data", "--in-memory", "--port"]
    yield from run_server("gcp_storage_emulator", arguments)


def upload(server: str, name: str, content: bytes) -> None:
    """Put an object into the bucket `data`."""
    url = f"{server}/upload/storage/v1/b/data/o?uploadType=media&name={name}"
    with urllib.request.urlopen(urllib.request.Request(url, content, method="POST")):
        pass


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_set_in_another_storage_gives_the_batches_of_its_local_copy(small_set: Path, workers: int):
    fsspec.filesystem("memory").put(str(small_set), "/set", recursive=True)
    assert load_manifest("memory://set").fingerprint() == load_manifest(str(small_set)).fingerprint()
    (remote,), (local,) = loaders("memory://set", 1, workers=workers), loaders(small_set, 1)
    for _, ours, expected in zip(range(16), remote.batches(0), local.batches(0), strict=False):
        assert torch.equal(ours.images, expected.images)
        assert torch.equal(ours.labels, expected.labels)


def test_a_shard_set_on_google_cloud_storage_gives_the_batches_of_its_local_copy(
    gs: str, small_set: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gs)
    for path in small_set.iterdir():
        upload(gs, f"set/{path.name}", path.read_bytes())
    (remote,), (local,) = loaders("gs://data/set", 1, workers=1), loaders(small_set, 1)
    for _, ours, expected in zip(range(16), remote.batches(0), local.batches(0), strict=False):
        assert torch.equal(ours.images, expected.images)
    for missing in ("gs://data/none.tar", "gs://nowhere/x.tar", "gs://data/set"):
        with pytest.raises(FileNotFoundError, match=missing):
            Store().read(missing)


def test_a_file_is_read_in_ranges_that_join_up(faulty: type[FaultyFileSystem]):
    assert Store().read(X) == Store().read(X, len(BODY), BODY_SHA256) == BODY
    assert faulty.ranges == 2 * [(0, 30_000), (30_000, 60_000), (60_000, 90_000), (90_000, 100_000)]


def test_a_range_grows_to_what_arrives_in_a_second(
    faulty: type[FaultyFileSystem], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(filesystems, "MAX_RANGE_BYTES", 50_000)
    monkeypatch.setattr(transport, "TIMEOUT_S", 10)
    faulty.faults = [RangeFault(seconds=0.5)]
    assert Store().read(X) == BODY
    assert faulty.ranges[0] == (0, 10_000)
    assert 10_000 < faulty.ranges[1][1] - faulty.ranges[1][0] <= 20_000
    assert faulty.ranges[2][1] - faulty.ranges[2][0] == 50_000


@pytest.mark.parametrize(
    "fault", [RangeFault(error=ConnectionResetError()), RangeFault(send=0)], ids=["error", "end"]
)
def test_a_file_that_breaks_off_is_resumed_from_the_byte_reached(
    faulty: type[FaultyFileSystem], fault: RangeFault, pauses: list[float]
):
    faulty.faults = [RangeFault(), RangeFault(), fault]
    assert Store().read(X, len(BODY), BODY_SHA256) == BODY
    assert faulty.ranges[2:4] == [(60_000, 90_000), (60_000, 90_000)]
    assert pauses == [1]


def test_a_silent_storage_ends_the_try_and_the_rest_is_read(
    faulty: type[FaultyFileSystem], monkeypatch: pytest.MonkeyPatch, pauses: list[float]
):
    monkeypatch.setattr(transport, "TIMEOUT_S", 0.3)
    faulty.faults = [RangeFault(), RangeFault(seconds=60)]
    assert Store().read(X, len(BODY), BODY_SHA256) == BODY
    assert faulty.ranges[1][0] == faulty.ranges[2][0] == 300  # MIN_RATE for the time limit
    assert pauses == [1]


def test_a_storage_that_stays_silent_or_slow_does_not_delay_a_run_for_ever(
    faulty: type[FaultyFileSystem], monkeypatch: pytest.MonkeyPatch, pauses: list[float]
):
    monkeypatch.setattr(transport, "TIMEOUT_S", 0.2)
    faulty.faults = [RangeFault(seconds=60)] * 9
    start = time.monotonic()
    with pytest.raises(NetworkError, match=r"faulty://b/x\.tar: .*after 5 tries \(no answer within 0 s\)"):
        Store().read(X)
    assert 1.0 <= time.monotonic() - start < 10
    assert pauses == [1, 2, 4, 8]


def test_opening_a_silent_storage_has_the_same_time_limit(
    faulty: type[FaultyFileSystem], monkeypatch: pytest.MonkeyPatch, pauses: list[float]
):
    monkeypatch.setattr(transport, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(faulty, "info", lambda self, path: self.closing.wait(60))
    with pytest.raises(NetworkError, match="no answer"):
        Store().read(X)


@pytest.mark.parametrize("reports_versions", [True, False])
def test_two_versions_of_a_file_are_never_joined(
    faulty: type[FaultyFileSystem],
    reports_versions: bool,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
):
    new = BODY[::-1]
    monkeypatch.setattr(faulty, "reports_versions", reports_versions)
    replace = RangeFault(error=OSError(), change=lambda: faulty().pipe_file("/b/x.tar", new))
    faulty.faults = [RangeFault(), replace]
    assert Store().read(X) == new
    assert faulty.ranges[2][0] == 0


def test_a_file_that_is_replaced_between_two_ranges_is_read_again(
    faulty: type[FaultyFileSystem], pauses: list[float]
):
    new = BODY[::-1]
    faulty.faults = [RangeFault(), RangeFault(change=lambda: faulty().pipe_file("/b/x.tar", new))]
    assert Store().read(X) == new
    assert pauses == [1]


def test_wrong_bytes_are_a_fault_of_the_data(faulty: type[FaultyFileSystem], tmp_path: Path):
    with pytest.raises(DataError, match=r"x\.tar: after 5 downloads .*SHA-256 differs") as error:
        Store(tmp_path, 1 << 20).read(X, len(BODY), "0" * 64)
    assert not isinstance(error.value, NetworkError)


def test_a_cached_file_is_not_read_again(faulty: type[FaultyFileSystem], tmp_path: Path):
    for _ in range(2):
        assert Store(tmp_path, 1 << 20).read(X, len(BODY), BODY_SHA256) == BODY
    assert len(faulty.ranges) == 4


class CredentialsError(Exception):
    """Named as by the libraries of some storage systems."""


class StatusError(Exception):
    """An error with an HTTP status, as of gcsfs and others."""

    def __init__(self, code: int):
        self.code = code


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (FileNotFoundError("secret"), FileNotFoundError, "faulty://b/x.tar"),
        (StatusError(404), FileNotFoundError, "faulty://b/x.tar"),
        (
            PermissionError("secret"),
            DataError,
            r"refuses it \(PermissionError\); check the URL and the right",
        ),
        (OSError("Forbidden: secret"), DataError, r"refuses it \(HTTP 403\); check"),
        (StatusError(401), DataError, r"refuses it \(HTTP 401\)"),
        (CredentialsError("secret"), DataError, r"refuses it \(CredentialsError\)"),
        (ValueError("secret"), DataError, r"not a URL that fsspec can read \(ValueError\); check it"),
        (StatusError(429), NetworkError, r"after 5 tries \(StatusError\)"),
        (StatusError(503), NetworkError, r"after 5 tries \(StatusError\)"),
        (OSError("secret"), NetworkError, r"after 5 tries \(OSError\)"),
        (RuntimeError("secret"), NetworkError, r"after 5 tries \(RuntimeError\)"),
    ],
)
def test_each_error_is_retried_or_final_and_does_not_reveal_its_text(
    faulty: type[FaultyFileSystem], error: Exception, kind: type, message: str, pauses: list[float]
):
    faulty.faults = [RangeFault(error=error)] * 9
    with pytest.raises(kind, match=message) as raised:
        Store().read(X)
    assert type(raised.value) is kind
    assert "secret" not in f"{raised.value!r}"
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert len(faulty.ranges) == (5 if kind is NetworkError else 1)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(ConfigError, match=r"abfs://b/x\.tar: abfs:// .*adlfs.*; Install adlfs to access"):
        Store().read("abfs://ann:secret@b/x.tar")
    with pytest.raises(SystemExit) as stop:
        main(["tars", "abfs://b/x.tar", "--quiet"])
    assert stop.value.code == 2
    assert re.fullmatch(r"error: abfs://b/x\.tar: .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("url", ["memory://nowhere", "memory://nowhere/x.tar", "memory://folder"])
def test_a_missing_file_is_missing(url: str):
    fsspec.filesystem("memory").pipe_file("/folder/x.tar", BODY)
    with pytest.raises(FileNotFoundError, match=url):
        Store().read(url)
    with pytest.raises(DataError, match="no shard set there"):
        load_manifest(url)


def test_a_refusal_is_one_line_although_the_library_logs_it_as_well(web: WebServer, tmp_path: Path):
    pytest.importorskip("gcsfs")
    web.faults = [Fault(status=401, error=b'{"error": {"code": 401, "message": "secret"}}')] * 99
    command = [sys.executable, "-m", "infogan_dist.make_shards", "tars", "gs://b/x.tar"]
    env = {**os.environ, "STORAGE_EMULATOR_HOST": web.url}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.returncode == 2
    line = (
        r"error: gs://b/x\.tar: the server refuses it \(HTTP 401\); check the URL and the right to read it\n"
    )
    assert re.fullmatch(f"(?s)(index of tars.*\n)?{line}", done.stderr)
