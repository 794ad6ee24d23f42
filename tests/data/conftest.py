"""Fixtures of the tests of data: servers on loopback, S3 settings, and messages."""

import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infogan_dist.data import s3
from tests.data.web_server import WebServer


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
def x_tar(web: WebServer, aws: Callable[[str | None], None], scheme: str) -> str:
    """The URL of the server's file by http or s3."""
    aws(web.url)
    return f"{web.url}/b/x.tar" if scheme == "http" else "s3://b/x.tar"


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The URL of an empty S3 server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
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
