"""A file is read completely and correctly, or there is a clear error, whatever the network does."""

import base64
import hashlib
import importlib.util
import pickle
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from infogan_dist.credentials import redact_url
from infogan_dist.data import transport
from infogan_dist.data.fetch import NetworkError, Store
from infogan_dist.errors import DataError
from tests.data.web_server import BODY, BODY_SHA256, Fault, WebServer

requires_boto3 = pytest.mark.skipif(importlib.util.find_spec("boto3") is None, reason="not installed: boto3")
all_schemes = pytest.mark.parametrize("scheme", ["http", pytest.param("s3", marks=requires_boto3), "hf"])


def test_a_local_file_is_read_and_its_faults_are_named(tmp_path: Path):
    path, store = tmp_path / "x.tar", Store(tmp_path / "cache", 1 << 20)
    with pytest.raises(FileNotFoundError):
        store.read(str(path))
    path.write_bytes(BODY)
    assert store.read(str(path)) == store.read(str(path), len(BODY), BODY_SHA256) == BODY
    with pytest.raises(DataError, match=r"x\.tar: 100000 bytes instead of the manifest's 7; restore"):
        store.read(str(path), 7)
    with pytest.raises(DataError, match=r"x\.tar: .*SHA-256 differs.*restore"):
        store.read(str(path), sha256="0" * 64)
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        store.read(str(tmp_path))
    with pytest.raises(DataError, match=r"/dev/null: a device or a pipe"):
        store.read("/dev/null", 0, hashlib.sha256().hexdigest())
    assert not (tmp_path / "cache").exists()


@all_schemes
def test_a_body_that_breaks_off_is_resumed_from_the_byte_reached(
    web: WebServer, x_tar: str, pauses: list[float]
):
    web.faults = [Fault(send=30_000), Fault(send=50_000)]
    assert Store().read(x_tar, len(BODY), BODY_SHA256) == BODY
    assert web.sent == len(BODY)
    assert web.ranges[1:] == ["bytes=30000-", "bytes=80000-"]
    assert pauses == [1, 1]


@all_schemes
def test_a_silent_connection_ends_the_try_and_the_rest_is_downloaded(
    web: WebServer, x_tar: str, pauses: list[float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transport, "TIMEOUT_S", 0.3)
    web.faults = [Fault(send=65_536, stall=True)]
    assert Store().read(x_tar, len(BODY), BODY_SHA256) == BODY
    assert web.ranges[1:] == ["bytes=65536-"]
    assert web.sent == len(BODY)


@all_schemes
def test_a_very_slow_server_does_not_delay_a_run_for_ever(
    web: WebServer, x_tar: str, pauses: list[float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transport, "TIMEOUT_S", 0.2)
    web.faults = [Fault(drip=0.05)] * 9
    with pytest.raises(NetworkError, match=r"after 5 tries \(\d+ bytes in 0 s\)"):
        Store().read(x_tar, len(BODY), BODY_SHA256)
    assert pauses == [1, 2, 4, 8]


@all_schemes
@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_failing_server_is_tried_again(web: WebServer, x_tar: str, status: int, pauses: list[float]):
    web.faults = [Fault(status=status)] * 2
    assert Store().read(x_tar) == BODY
    assert pauses == [1, 2]


@all_schemes
def test_an_unreachable_server_is_a_network_error_after_growing_pauses(
    web: WebServer,
    x_tar: str,
    aws: Callable[[str | None], None],
    log_in: Callable[[str], None],
    pauses: list[float],
):
    aws("http://127.0.0.1:9")
    log_in("http://127.0.0.1:9")
    url = x_tar.replace(web.url, "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match=r"x\.tar: cannot be read over the network, after 5 tries"):
        Store().read(url)
    assert pauses == [1, 2, 4, 8]


@all_schemes
def test_progress_renews_the_tries(web: WebServer, x_tar: str, pauses: list[float]):
    web.faults = [Fault(send=10_000), Fault(status=503), Fault(status=503), Fault(status=503)] * 3
    assert Store().read(x_tar, len(BODY), BODY_SHA256) == BODY
    assert pauses == [1, 2, 4, 8] * 3


@all_schemes
def test_breaking_off_at_the_same_byte_again_is_no_progress(web: WebServer, x_tar: str, pauses: list[float]):
    web.faults = [Fault(send=50_000, ignore_range=True)] * 9
    with pytest.raises(NetworkError, match="broke off after 50000 of 100000 bytes"):
        Store().read(x_tar, len(BODY), BODY_SHA256)
    assert pauses == [1, 2, 4, 8]


@all_schemes
def test_a_server_that_ignores_ranges_is_read_from_the_start(web: WebServer, x_tar: str, pauses: list[float]):
    web.faults = [Fault(send=50_000), Fault(ignore_range=True)]
    assert Store().read(x_tar, len(BODY), BODY_SHA256) == BODY
    assert web.ranges[1:] == ["bytes=50000-"]
    assert web.sent == 150_000


@all_schemes
def test_wrong_bytes_are_downloaded_again_from_the_start(web: WebServer, x_tar: str):
    web.faults = [Fault(corrupt=True)] * 2
    assert Store().read(x_tar, len(BODY), BODY_SHA256) == BODY
    assert [r for r in web.ranges if r] == []
    assert len(web.requests) == 3


@all_schemes
def test_bytes_that_stay_wrong_are_a_fault_of_the_data_and_not_of_the_network(web: WebServer, x_tar: str):
    with pytest.raises(DataError, match=r"x\.tar: after 5 downloads .*the manifest.*; restore") as error:
        Store().read(x_tar, len(BODY), "0" * 64)
    assert not isinstance(error.value, NetworkError)
    assert len(web.requests) == 5


@all_schemes
@pytest.mark.parametrize("fault", [Fault(), Fault(promise=60_000)], ids=["long", "short"])
def test_a_wrong_length_is_refused_before_the_body_is_read(web: WebServer, x_tar: str, fault: Fault):
    web.faults = [fault]
    with pytest.raises(DataError, match=r"x\.tar: .*00 bytes instead of the manifest's 70000; rest") as error:
        Store().read(x_tar, 70_000, BODY_SHA256)
    assert not isinstance(error.value, NetworkError)
    assert len(web.requests) == 1


@all_schemes
def test_a_body_of_unannounced_length_is_read_to_its_promised_size(
    web: WebServer, x_tar: str, pauses: list[float]
):
    web.files["/b/x.tar"] = BODY * 100
    web.faults = [Fault(announce=False)]
    with pytest.raises(DataError, match="100001 bytes instead of the manifest's 100000"):
        Store().read(x_tar, len(BODY), BODY_SHA256)
    assert len(web.requests) == 1
    web.files["/b/x.tar"] = BODY
    web.faults = [Fault(announce=False, send=30_000)]
    assert Store().read(x_tar, len(BODY), BODY_SHA256) == BODY
    assert web.ranges[1:] == [None, "bytes=30000-"]


@all_schemes
@pytest.mark.parametrize("has_etags", [True, False])
def test_two_versions_of_a_file_are_never_joined(
    web: WebServer, scheme: str, x_tar: str, has_etags: bool, monkeypatch: pytest.MonkeyPatch
):
    new = BODY[::-1]
    web.has_etags, web.faults = has_etags, [Fault(send=50_000)]
    monkeypatch.setattr(time, "sleep", lambda _: web.files.update({"/b/x.tar": new}))
    assert Store().read(x_tar) == new
    assert web.ranges[1] == ("bytes=50000-" if has_etags else None)
    condition = web.requests[1][1]["If-Match" if scheme == "s3" else "If-Range"]
    assert condition == (f'"{hashlib.md5(BODY).hexdigest()}"' if has_etags else None)


@all_schemes
@pytest.mark.parametrize("status", [412, 416])
def test_a_range_that_is_not_available_any_more_restarts_the_download(
    web: WebServer, x_tar: str, status: int, pauses: list[float]
):
    web.faults = [Fault(send=50_000), Fault(status=status)]
    assert Store().read(x_tar, len(BODY), BODY_SHA256) == BODY
    assert web.ranges == [None, "bytes=50000-", None]


@all_schemes
@pytest.mark.parametrize("status", [404, 410])
def test_a_missing_file_is_reported_at_once(web: WebServer, x_tar: str, status: int):
    web.faults = [Fault(status=status)]
    with pytest.raises(FileNotFoundError, match=re.escape(x_tar)):
        Store().read(x_tar)
    assert len(web.requests) == 1


@all_schemes
@pytest.mark.parametrize("status", [400, 401, 403, 405, 451])
def test_a_refusal_is_final(web: WebServer, x_tar: str, status: int):
    web.faults = [Fault(status=status)]
    with pytest.raises(DataError, match=f"HTTP {status}") as error:
        Store().read(x_tar)
    assert not isinstance(error.value, NetworkError)
    assert len(web.requests) == 1


@pytest.mark.parametrize(
    "url", ["unknown://b/x", "simplecache::file:///x", "zip://a/b::file:///x", "http://", "http://[/x"]
)
def test_other_urls_are_refused(url: str):
    with pytest.raises(DataError, match="can be read"):
        Store().read(url)


def test_a_pipe_is_never_run(tmp_path: Path):
    for url in (f"pipe:touch {tmp_path}/ran", f"pipe:touch {tmp_path}/ran; cat http://127.0.0.1:9/x"):
        with pytest.raises(DataError, match="only files"):
            Store().read(url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://ann:secret@host:80/a/b.tar?sign=secret#secret", "https://host:80/a/b.tar"),
        ("https://host/a@b.tar", "https://host/a@b.tar"),
        ("https://ann:secret/secret@host/b.tar", "https://..."),
        ("https://[secret", "https://..."),
        ("no_scheme://ann:secret@host/b.tar?secret", "no_scheme://host/b.tar"),
        ("s3://bucket/a/b.tar", "s3://bucket/a/b.tar"),
        ("zip://a/b.tar::https://ann:secret@host/x.zip", "zip://..."),
        ("hf://datasets/ann/shapes@v1/b.tar", "hf://datasets/ann/shapes@v1/b.tar"),
        ("pipe:curl -u ann:secret https://host/b.tar", "pipe:..."),
        ("/data/what?.tar", "/data/what?.tar"),
    ],
)
def test_messages_contain_a_url_without_its_secrets(url: str, text: str):
    assert redact_url(url) == text


@pytest.mark.parametrize("damage", ["down", "missing", "refused", "wrong", "broken", "scheme", "malformed"])
def test_no_message_contains_a_secret(web: WebServer, damage: str, pauses: list[float]):
    host = "127.0.0.1:9" if damage == "down" else web.url.removeprefix("http://")
    url = f"http://ann:secret@{host}/b/x.tar?sign=secret"
    status = {"missing": 404, "refused": 403, "broken": 500}.get(damage)
    web.faults = [Fault(status=status)] * 5 if status else []
    url = {"scheme": "unknown://ann:secret@h/?secret", "malformed": "http://ann:secret/@h/x"}.get(damage, url)
    with pytest.raises((DataError, FileNotFoundError)) as error:
        Store().read(url, sha256="0" * 64)
    assert "secret" not in f"{error.value!r}"
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None


def test_user_and_password_are_sent_to_their_server_and_no_other(web: WebServer):
    url = web.url.replace("://", "://ann:a%40b@")
    same, other = f"{web.url}/b/y.tar", f"{web.url.replace('127.0.0.1', 'localhost')}/b/x.tar"
    web.faults = [Fault(status=302, headers={"Location": location}) for location in (same, other)]
    assert Store().read(f"{url}/b/old.tar?a=b c") == BODY
    first, second, third = (headers["Authorization"] for _, headers in web.requests)
    assert base64.b64decode(first.removeprefix("Basic ")) == b"ann:a@b"
    assert (second, third) == (first, None)


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        ("http://h/a", "http://H:80/b", True),
        ("http://h/a", "https://h/b", True),
        ("http://h/a", "http://h:443/b", False),
        ("http://h/a", "http://h:8000/b", False),
        ("http://h:8000/a", "https://h/b", False),
        ("https://h/a", "https://h.other/b", False),
    ],
)
def test_a_server_is_its_host_and_port(old: str, new: str, is_same: bool):
    assert transport._is_same_server(urlsplit(old), urlsplit(new)) == is_same


def test_a_redirect_from_https_to_http_is_refused(
    web: WebServer, https_web: WebServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    https_web.faults = [Fault(status=302, headers={"Location": f"{web.url}/b/x.tar?sign=secret"})]
    with pytest.raises(NetworkError, match=r"redirects to http://.*/b/x\.tar, which is not encrypted"):
        Store().read(f"{https_web.url}/b/x.tar")
    assert web.requests == []
    web.faults = [Fault(status=302, headers={"Location": f"{https_web.url}/b/x.tar"})]
    assert Store().read(f"{web.url}/b/x.tar") == BODY


def test_a_redirect_is_followed_to_the_range_as_well(web: WebServer, pauses: list[float]):
    redirect = Fault(status=307, headers={"Location": f"{web.url}/b/x.tar"})
    web.faults = [redirect, Fault(send=50_000), redirect]
    assert Store().read(f"{web.url}/old.tar", len(BODY), BODY_SHA256) == BODY
    assert web.ranges == [None, None, "bytes=50000-", "bytes=50000-"]


def test_https_certificates_are_verified(
    https_web: WebServer, certificate: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
):
    url = f"{https_web.url}/b/x.tar"
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(NetworkError, match=r"certificate is not valid \(self.signed certificate\)"):
        Store().read(url)
    assert https_web.requests == pauses == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert Store().read(url, len(BODY), BODY_SHA256) == BODY


@pytest.mark.parametrize(
    ("number", "expected", "message"),
    [(socket.EAI_NONAME, [], "host.* is unknown"), (socket.EAI_AGAIN, [1, 2, 4, 8], "after 5 tries")],
)
def test_an_unknown_host_is_not_tried_again_but_a_silent_name_server_is(
    number: int, expected: list[float], message: str, pauses: list[float], monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(number, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(NetworkError, match=message):
        Store().read("http://data.example/x.tar")
    assert pauses == expected


def test_proxies_come_from_the_environment(
    web: WebServer, pauses: list[float], monkeypatch: pytest.MonkeyPatch
):
    url = "http://data.example/b/x.tar"
    web.files[url] = BODY
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", web.url)
    assert Store().read(url) == BODY
    assert [path for path, _ in web.requests] == [url]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert Store().read(f"{web.url}/b/x.tar") == BODY
    assert web.requests[1][0] == "/b/x.tar"


def test_a_store_can_be_sent_to_another_process(web: WebServer, tmp_path: Path):
    store = Store(tmp_path, 1 << 20)
    store.read(f"{web.url}/b/x.tar", len(BODY), BODY_SHA256)
    assert pickle.loads(pickle.dumps(store)).read(f"{web.url}/b/x.tar", len(BODY), BODY_SHA256) == BODY
    assert len(web.requests) == 1
