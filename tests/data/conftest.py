"""Shared by the tests of data: damaged and recorded shard sets, servers on loopback, S3 settings."""

import hashlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from infogan_dist.data import s3, shard_dataset
from infogan_dist.data.shards import DecodedShard, Manifest, Shard, read_shard
from tests.data.web_server import HubServer, WebServer


def numbered_set(sizes: list[int]) -> tuple[Manifest, Callable[..., DecodedShard]]:
    """Return the manifest of a set without files, and a `read_shard` of its images and labels: their numbers.

    Args:
        sizes: number of images of each shard.
    """
    manifest = Manifest("numbers", (1, 1, 2), [], [Shard(f"{i}", n, 0, "") for i, n in enumerate(sizes)])
    starts = np.cumsum([0, *sizes])

    def read(manifest: Manifest, index: int, *rest: object) -> DecodedShard:
        numbers = np.arange(starts[index], starts[index + 1])
        images = np.stack([numbers // 256, numbers % 256], 1).astype(np.uint8).reshape(-1, 1, 1, 2)
        return DecodedShard(
            images, numbers, np.zeros(len(numbers), bool), [], np.zeros((len(numbers), 0), int)
        )

    return manifest, read


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the shards that are read, in order."""
    reads: list[int] = []

    def recorded_read(manifest, index, *rest):
        reads.append(index)
        return read_shard(manifest, index, *rest)

    monkeypatch.setattr(shard_dataset, "read_shard", recorded_read)
    return reads


@pytest.fixture
def damaged_set(tmp_path: Path, small_set: Path) -> Path:
    """`small_set` with a missing shard, a truncated one, and one with two samples that cannot be decoded."""
    out = tmp_path / "damaged"
    shutil.copytree(small_set, out)
    (out / "000001.tar").unlink()
    (out / "000004.tar").write_bytes((out / "000004.tar").read_bytes()[:5000])
    path = out / "000006.tar"
    parts = path.read_bytes().split(b"\x89PNG")
    for i in (4, 9):
        parts[i] = b"no png, " + parts[i][8:]
    path.write_bytes(b"\x89PNG".join(parts))
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["shards"][6]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A web server with the file /b/x.tar."""
    yield from served(WebServer())


def served(server: WebServer) -> Iterator[WebServer]:
    """Run a server in a thread."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate of 127.0.0.1, and its key, in one PEM file."""
    if importlib.util.find_spec("cryptography") is None:
        pytest.skip("not installed: cryptography")
    from tests.data.certificate import write_certificate

    return write_certificate(tmp_path / "certificate.pem")


@pytest.fixture
def https_web(certificate: Path) -> Iterator[WebServer]:
    """A web server with a self-signed certificate."""
    yield from served(WebServer(certificate))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which then take no time."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], None]]:
    """A function that sets an endpoint of S3 (None: Amazon's) and credentials, and nothing else of AWS."""

    def set_environment(endpoint: str | None) -> None:
        s3._client.cache_clear()
        s3._bucket_regions.clear()
        for name in [n for n in os.environ if n.startswith("AWS_")]:
            monkeypatch.delenv(name)
        if endpoint is not None:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, os.devnull)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")

    yield set_environment
    s3._client.cache_clear()
    s3._bucket_regions.clear()


@pytest.fixture
def log_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str | None], None]:
    """A function that sets the Hub's URL and the token (None: not logged in)."""
    from huggingface_hub import constants

    def set_environment(endpoint: str, token: str | None = "hf_secret") -> None:
        # The library reads HF_ENDPOINT when it is imported.
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + template)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            monkeypatch.delenv(name, raising=False)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)

    return set_environment


@pytest.fixture
def hub(web: WebServer, log_in: Callable[[str, str | None], None]) -> Iterator[HubServer]:
    """A Hub whose files are those of the web server."""
    for server in served(HubServer(web)):
        assert isinstance(server, HubServer)
        log_in(server.url, server.token)
        yield server


@pytest.fixture
def x_tar(web: WebServer, aws: Callable[[str | None], None], hub: HubServer, scheme: str) -> str:
    """The URL of the server's file by http, s3 or hf."""
    aws(web.url)
    urls = {"http": f"{web.url}/b/x.tar", "s3": "s3://b/x.tar", "hf": "hf://datasets/ann/shapes/x.tar"}
    return urls[scheme]


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The URL of an empty S3 server."""
    yield from run_server("moto.server", ["-H", "127.0.0.1", "-p"])


def run_server(module: str, arguments: list[str]) -> Iterator[str]:
    """Yield the URL of a server that runs in a subprocess.

    Args:
        module: that is run.
        arguments: of its command line; a free port is added.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", module, *arguments, str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while not is_listening(port):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
