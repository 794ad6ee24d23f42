"""The bytes that were asked for or a clear error, whatever the network, other processes and the disk do."""

import base64
import errno
import hashlib
import importlib.util
import multiprocessing
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infogan_dist.data import cache as cache_module
from infogan_dist.data import fetch
from infogan_dist.data.fetch import NetworkError, Store, redact_url
from infogan_dist.errors import ConfigError, DataError

CONTEXT = multiprocessing.get_context("spawn")
BODY = bytes(i * i % 251 for i in range(100_000))
SUM = hashlib.sha256(BODY).hexdigest()


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


both = pytest.mark.parametrize("scheme", ["http", pytest.param("s3", marks=needs("boto3"))])


@dataclass
class Fault:
    """How one request is answered: a status, and what goes wrong with the body."""

    status: int = 200
    send: int | None = None  # bytes of the body, of which all are promised
    promise: int | None = None  # bytes of the body that are promised and sent
    stall: bool = False  # then silence instead of the end
    drip: float = 0.0  # seconds between single bytes
    delay: float = 0.0  # seconds before the body
    corrupt: bool = False
    whole: bool = False  # Range is ignored
    location: str = ""


class Web(ThreadingHTTPServer):
    """A server on loopback; `plan` holds the faults that the next requests meet, after which all is well."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answering)
        self.files: dict[str, bytes] = {"/b/x.tar": BODY}
        self.plan: list[Fault] = []
        self.requests: list[tuple[str, Any]] = []
        self.etags, self.sent = True, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.asked, self.closing = threading.Event(), threading.Event()

    @property
    def ranges(self) -> list[str | None]:
        return [headers["Range"] for _, headers in self.requests]

    def handle_error(self, request, client_address):
        pass


class Answering(BaseHTTPRequestHandler):
    server: Web  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        path, web = self.path.split("?")[0], self.server
        fault = web.plan.pop(0) if web.plan else Fault()
        web.requests.append((path, self.headers))
        status = fault.status if path in web.files or fault.status != 200 else 404
        if status != 200:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            if fault.location:
                self.send_header("Location", fault.location)
            return self.end_headers()
        content = web.files[path]
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        start = self.start(etag, len(content)) if not fault.whole else 0
        body = content[start : None if fault.promise is None else fault.promise]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if web.etags:
            self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return self.send(body, fault)

    def start(self, etag: str, size: int) -> int:
        """The byte that a Range asks for, if the condition holds."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        holds = self.headers["If-Range"] in (None, etag) and self.headers["If-Match"] in (None, etag)
        return int(asked[1]) if asked and holds and int(asked[1]) < size else 0

    def send(self, body: bytes, fault: Fault) -> None:
        web = self.server
        web.closing.wait(fault.delay)
        if fault.corrupt:
            body = body[:77] + bytes([body[77] ^ 1]) + body[78:]
        body = body[: fault.send]
        for part in [body[i : i + 1] for i in range(len(body))] if fault.drip else [body]:
            web.sent += len(part)  # before the client can be done with it
            self.wfile.write(part)
            web.closing.wait(fault.drip)
        web.asked.set()
        if fault.stall:
            web.closing.wait(30)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which take no time."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Points S3 to a server, with credentials."""

    def at(endpoint: str) -> None:
        fetch._s3_client.cache_clear()
        for name in [n for n in os.environ if n.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, os.devnull)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")

    yield at
    fetch._s3_client.cache_clear()


@pytest.fixture
def x_tar(web: Web, aws: Callable[[str], None], scheme: str) -> str:
    """The URL of the server's file, by http or s3."""
    aws(web.url)
    return f"{web.url}/b/x.tar" if scheme == "http" else "s3://b/x.tar"


def test_a_local_file_is_read_and_what_is_wrong_with_it_is_named(tmp_path: Path):
    path, store = tmp_path / "x.tar", Store(tmp_path / "cache", 1 << 20)
    with pytest.raises(FileNotFoundError):
        store.read(str(path))
    path.write_bytes(BODY)
    assert store.read(str(path)) == store.read(str(path), len(BODY), SUM) == BODY
    with pytest.raises(DataError, match=r"x\.tar: 100000 bytes where the manifest says 7; restore"):
        store.read(str(path), 7)
    with pytest.raises(DataError, match=r"x\.tar: .*SHA-256 differs.*restore"):
        store.read(str(path), sha256="0" * 64)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        store.read(str(tmp_path))
    assert not (tmp_path / "cache").exists()


@both
def test_a_body_that_breaks_off_is_resumed_from_the_byte_reached(web: Web, x_tar: str, pauses: list[float]):
    web.plan = [Fault(send=30_000), Fault(send=50_000)]
    assert Store().read(x_tar, len(BODY), SUM) == BODY
    assert web.sent == len(BODY)
    assert web.ranges[1:] == ["bytes=30000-", "bytes=80000-"]
    assert pauses == [1, 1]


@both
def test_silence_in_mid_body_ends_the_attempt_and_the_rest_is_fetched(
    web: Web, x_tar: str, pauses: list[float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetch, "TIMEOUT_S", 0.3)
    web.plan = [Fault(send=65_536, stall=True)]
    assert Store().read(x_tar, len(BODY), SUM) == BODY
    assert web.ranges[1:] == ["bytes=65536-"]
    assert web.sent == len(BODY)


def test_a_server_that_drips_does_not_hold_a_run_for_ever(
    web: Web, pauses: list[float], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetch, "TIMEOUT_S", 0.2)
    web.plan = [Fault(drip=0.05)] * 9
    with pytest.raises(NetworkError, match=r"after 5 tries \(\d+ bytes in 0 s\)"):
        Store().read(f"{web.url}/b/x.tar", len(BODY), SUM)
    assert pauses == [1, 2, 4, 8]


@both
@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_server_in_trouble_is_asked_again(web: Web, x_tar: str, status: int, pauses: list[float]):
    web.plan = [Fault(status=status)] * 2
    assert Store().read(x_tar) == BODY
    assert pauses == [1, 2]


@both
def test_a_server_that_is_down_is_a_network_error_after_growing_pauses(
    scheme: str, aws: Callable[[str], None], pauses: list[float]
):
    aws("http://127.0.0.1:9")
    url = "s3://b/x.tar" if scheme == "s3" else "http://127.0.0.1:9/x.tar"
    with pytest.raises(NetworkError, match=r"x\.tar: cannot be read over the network, after 5 tries"):
        Store().read(url)
    assert pauses == [1, 2, 4, 8]


@both
def test_progress_renews_the_tries(web: Web, x_tar: str, pauses: list[float]):
    web.plan = [Fault(send=10_000), Fault(status=503), Fault(status=503), Fault(status=503)] * 3
    assert Store().read(x_tar, len(BODY), SUM) == BODY
    assert pauses == [1, 2, 4, 8] * 3


def test_breaking_off_at_the_same_byte_again_is_no_progress(web: Web, pauses: list[float]):
    web.plan = [Fault(send=50_000, whole=True)] * 9
    with pytest.raises(NetworkError, match="broke off after 50000 of 100000 bytes"):
        Store().read(f"{web.url}/b/x.tar", len(BODY), SUM)
    assert pauses == [1, 2, 4, 8]


def test_a_server_that_ignores_ranges_is_read_anew(web: Web, pauses: list[float]):
    web.plan = [Fault(send=50_000), Fault(whole=True)]
    assert Store().read(f"{web.url}/b/x.tar", len(BODY), SUM) == BODY
    assert web.ranges[1:] == ["bytes=50000-"]
    assert web.sent == 150_000


@both
@pytest.mark.parametrize("fault", [Fault(corrupt=True), Fault(promise=60_000)], ids=["corrupt", "short"])
def test_wrong_bytes_are_fetched_anew_from_the_first(web: Web, x_tar: str, fault: Fault):
    web.plan = [fault] * 2
    assert Store().read(x_tar, len(BODY), SUM) == BODY
    assert [r for r in web.ranges if r] == []
    assert len(web.requests) == 3


@pytest.mark.parametrize(("size", "sum_"), [(len(BODY), "0" * 64), (7, None)])
def test_bytes_that_stay_wrong_are_the_datas_fault_and_not_the_networks(
    web: Web, size: int, sum_: str | None
):
    with pytest.raises(DataError, match=r"x\.tar: .*the manifest.* 5 times .*restore") as error:
        Store().read(f"{web.url}/b/x.tar", size, sum_)
    assert not isinstance(error.value, NetworkError)
    assert len(web.requests) == 5


@both
@pytest.mark.parametrize("etags", [True, False])
def test_two_versions_of_a_file_are_never_joined(
    web: Web, scheme: str, x_tar: str, etags: bool, monkeypatch: pytest.MonkeyPatch
):
    new = BODY[::-1]
    web.etags, web.plan = etags, [Fault(send=50_000)]
    monkeypatch.setattr(time, "sleep", lambda _: web.files.update({"/b/x.tar": new}))
    assert Store().read(x_tar) == new
    assert web.ranges[1] == ("bytes=50000-" if etags else None)
    condition = web.requests[1][1]["If-Range" if scheme == "http" else "If-Match"]
    assert condition == (f'"{hashlib.md5(BODY).hexdigest()}"' if etags else None)


@both
@pytest.mark.parametrize("status", [404, 410])
def test_a_missing_file_is_missing_at_once(web: Web, x_tar: str, status: int):
    web.plan = [Fault(status=status)]
    with pytest.raises(FileNotFoundError, match=re.escape(x_tar)):
        Store().read(x_tar)
    assert len(web.requests) == 1


@both
@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_is_final(web: Web, x_tar: str, status: int):
    web.plan = [Fault(status=status)]
    with pytest.raises(DataError, match=f"HTTP {status}") as error:
        Store().read(x_tar)
    assert not isinstance(error.value, NetworkError)
    assert len(web.requests) == 1


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "gs://b/x", "http://", "http://[/x"]
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
        ("s3://bucket/a/b.tar", "s3://bucket/a/b.tar"),
        ("pipe:curl -u ann:secret https://host/b.tar", "pipe:..."),
        ("/data/what?.tar", "/data/what?.tar"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, text: str):
    assert redact_url(url) == text


@pytest.mark.parametrize("damage", ["down", "missing", "refused", "wrong", "broken", "scheme", "malformed"])
def test_no_message_tells_a_secret(web: Web, damage: str, pauses: list[float]):
    host = "127.0.0.1:9" if damage == "down" else web.url.removeprefix("http://")
    url = f"http://ann:secret@{host}/b/x.tar?sign=secret"
    status = {"missing": 404, "refused": 403, "broken": 500}.get(damage)
    web.plan = [Fault(status=status)] * 5 if status else []
    url = {"scheme": "gs://ann:secret@h/?secret", "malformed": "http://ann:secret/@h/x"}.get(damage, url)
    with pytest.raises((DataError, FileNotFoundError)) as error:
        Store().read(url, sha256="0" * 64)
    assert "secret" not in f"{error.value!r}"
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None


def test_user_and_password_reach_their_server_and_no_other(web: Web):
    url = web.url.replace("://", "://ann:a%40b@")
    web.plan = [Fault(status=302, location=f"{web.url}/b/x.tar")]
    assert Store().read(f"{url}/b/old.tar?a=b c") == BODY
    first, second = (headers["Authorization"] for _, headers in web.requests)
    assert base64.b64decode(first.removeprefix("Basic ")) == b"ann:a@b"
    assert second is None


def test_s3_without_boto3_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigError, match=r"pip install infogan_dist\[s3\]"):
        Store().read("s3://b/x.tar")


@needs("boto3")
@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "both"])
def test_s3_without_credentials_says_so_at_once(
    web: Web, aws: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, missing: str
):
    aws(web.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if missing == "both" else (missing,):
        monkeypatch.delenv(name)
    with pytest.raises(DataError, match=r"s3://b/x\.tar: no credentials for S3; set AWS_"):
        Store().read("s3://b/x.tar")
    assert web.requests == []


@needs("boto3")
@pytest.mark.parametrize("url", ["s3://", "s3://b", "s3://b/", "s3://no_such bucket/x"])
def test_an_s3_url_without_bucket_or_key_is_refused(web: Web, aws: Callable[[str], None], url: str):
    aws(web.url)
    with pytest.raises(DataError, match="check the URL"):
        Store().read(url)


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """A server that speaks S3, with nothing in it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while not answers(port):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@needs("boto3", "moto", "flask", "flask_cors")
def test_s3_is_read_by_its_own_rules(moto: str, aws: Callable[[str], None], tmp_path: Path):
    aws(moto)
    client = fetch._s3_client(os.getpid())
    client.create_bucket(Bucket="data")
    client.put_object(Bucket="data", Key="a set/x?.tar", Body=BODY)
    assert Store(tmp_path, 1 << 20).read("s3://data/a set/x?.tar", len(BODY), SUM) == BODY
    for url in ("s3://data/none.tar", "s3://nowhere/x.tar"):
        with pytest.raises(FileNotFoundError, match=url):
            Store().read(url)
    with fetch._s3("s3://data/a set/x?.tar", 0, None) as answer:
        etag = answer.etag
    with fetch._s3("s3://data/a set/x?.tar", 99_990, etag) as answer:
        assert (answer.start, answer.total, answer.read(99)) == (99_990, len(BODY), BODY[99_990:])
    for start, tag in ((99_990, '"another"'), (100_000, etag)):
        with pytest.raises(fetch._AnewError), fetch._s3("s3://data/a set/x?.tar", start, tag):
            pass


def test_a_store_travels_to_another_process(web: Web, tmp_path: Path):
    store = Store(tmp_path, 1 << 20)
    store.read(f"{web.url}/b/x.tar", len(BODY), SUM)
    assert pickle.loads(pickle.dumps(store)).read(f"{web.url}/b/x.tar", len(BODY), SUM) == BODY
    assert len(web.requests) == 1


def put(web: Web, *names: str, size: int = 1000) -> dict[str, tuple[str, int, str]]:
    """Files on the server, each of its own content; what to call `read` with, by name."""
    for name in names:
        web.files[f"/{name}"] = hashlib.sha256(name.encode()).digest() * (size // 32) + bytes(size % 32)
    sums = {name: hashlib.sha256(web.files[f"/{name}"]).hexdigest() for name in names}
    return {name: (f"{web.url}/{name}", size, sums[name]) for name in names}


def kept(folder: Path, suffix: str = "") -> list[Path]:
    return [p for p in folder.iterdir() if p.suffix == suffix]


def test_files_of_the_same_name_are_kept_apart(web: Web, tmp_path: Path):
    asked = put(web, "train/0.tar", "val/0.tar", "val/0.tar?v=2")
    web.files["/val/0.tar"] = web.files["/val/0.tar?v=2"]
    store = Store(tmp_path, 1 << 20)
    for name in ("train/0.tar", "val/0.tar?v=2", "train/0.tar", "val/0.tar?v=2"):
        content = store.read(*asked[name])
        assert content == web.files[f"/{name}"]
    assert len(web.requests) == len(kept(tmp_path)) == 2


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"?" + b[1:], lambda b: b""])
def test_a_damaged_kept_file_is_fetched_anew(web: Web, tmp_path: Path, damage: Callable[[bytes], bytes]):
    asked, store = put(web, "x")["x"], Store(tmp_path, 1 << 20)
    store.read(*asked)
    (path,) = kept(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    for _ in range(2):
        assert store.read(*asked) == web.files["/x"]
    assert len(web.requests) == 2


def test_a_file_without_a_checksum_is_not_kept(web: Web, tmp_path: Path):
    url, size, _ = put(web, "manifest.json")["manifest.json"]
    for _ in range(2):
        Store(tmp_path, 1 << 20).read(url, size)
    assert len(web.requests) == 2
    assert list(tmp_path.iterdir()) == []


def test_files_used_longest_ago_make_room(web: Web, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("not the cache's")
    asked, store = put(web, "a", "b", "c", "d"), Store(tmp_path, 3000)
    for name in ("a", "b", "c", "a", "d"):  # b is the one to go
        store.read(*asked[name])
    assert sum(p.stat().st_size for p in kept(tmp_path)) == 3000
    before = len(web.requests)
    for name in ("a", "c", "d"):
        assert store.read(*asked[name]) == web.files[f"/{name}"]
    assert len(web.requests) == before
    store.read(*asked["b"])
    assert len(web.requests) == before + 1
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("told", [True, False])
def test_a_file_larger_than_the_cache_is_read_and_displaces_nothing(web: Web, tmp_path: Path, told: bool):
    asked, store = put(web, "a"), Store(tmp_path, 3000)
    store.read(*asked["a"])
    url, size, sum_ = put(web, "large", size=3001)["large"]
    assert store.read(url, size if told else None, sum_) == web.files["/large"]
    assert [p.stat().st_size for p in kept(tmp_path)] == [1000]


def test_what_killed_writers_left_is_never_read_and_goes(web: Web, tmp_path: Path):
    asked, store = put(web, "a", "b"), Store(tmp_path, 3000)
    for url, *_ in asked.values():
        (tmp_path / f"{hashlib.sha256(url.encode()).hexdigest()}.part").write_bytes(b"half")
    assert store.read(*asked["a"]) == web.files["/a"]
    assert kept(tmp_path, ".part") == []


def test_a_cache_that_cannot_be_made_costs_one_warning(web: Web, tmp_path: Path, capsys):
    (tmp_path / "file").touch()
    asked, store = put(web, "a", "b"), Store(tmp_path / "file" / "cache", 3000)
    for name in ("a", "b"):
        assert store.read(*asked[name]) == web.files[f"/{name}"]
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"warning: .*/cache: the cache cannot be written \(Not a directory\); .*", line)


def test_a_full_disk_costs_one_warning(web: Web, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache_module.os, "replace", full)
    asked, store = put(web, "a", "b"), Store(tmp_path, 3000)
    for name in ("a", "b"):
        assert store.read(*asked[name]) == web.files[f"/{name}"]
    assert capsys.readouterr().err.count("warning: ") == 1
    assert kept(tmp_path) + kept(tmp_path, ".part") == []


def read_all(store: Store, asked: list[tuple[str, int, str]]) -> None:
    for url, size, sum_ in asked:
        store.read(url, size, sum_)


def test_of_several_processes_one_fetches_and_the_others_wait(web: Web, tmp_path: Path):
    asked = list(put(web, "a", "b", "c", size=1 << 20).values())
    web.plan = [Fault(delay=0.5)] * 3
    processes = [
        CONTEXT.Process(target=read_all, args=(Store(tmp_path, 1 << 30), asked[i:] + asked[:i]))
        for i in (0, 0, 1, 2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [p.exitcode for p in processes] == [0] * 4
    assert sorted(path for path, _ in web.requests) == ["/a", "/b", "/c"]
    assert web.sent == 3 << 20


def test_several_processes_may_make_room_at_once(web: Web, tmp_path: Path):
    asked = list(put(web, *(f"f{i}" for i in range(12))).values())
    processes = [
        CONTEXT.Process(target=read_all, args=(Store(tmp_path, 3500), (asked[i:] + asked[:i]) * 5))
        for i in (0, 4, 8)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [p.exitcode for p in processes] == [0] * 3
    assert sum(p.stat().st_size for p in kept(tmp_path)) == 3000


def test_a_process_killed_while_it_fetches_holds_nobody_up(web: Web, tmp_path: Path):
    asked, store = put(web, "a", size=100_000)["a"], Store(tmp_path, 1 << 20)
    web.plan = [Fault(send=50_000, stall=True)]
    process = CONTEXT.Process(target=read_all, args=(store, [asked]))
    process.start()
    assert web.asked.wait(30)
    waiting = threading.Thread(target=read_all, args=(store, [asked]))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(30)
    waiting.join(10)
    assert not waiting.is_alive()
    assert store.read(*asked) == web.files["/a"]
    assert len(web.requests) == 2
