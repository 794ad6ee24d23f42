"""The bytes of a file, from a path, http(s):// or s3://: tried again, resumed, checked, kept on disk."""

import base64
import hashlib
import http.client
import importlib.util
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from infogan_dist.config.schema import DataConfig
from infogan_dist.data.cache import Cache
from infogan_dist.errors import ConfigError, DataError

TIMEOUT_S = 30.0  # of silence, after which a server counts as gone
SLOWEST = 1000  # bytes/s, over TIMEOUT_S: what drips more slowly is as good as silent
TRIES, FIRST_PAUSE_S = 5, 1.0  # each pause is twice the one before
CHUNK = 1 << 13  # bytes; boto3 gives nothing before it has a whole one: a small one shows a drip sooner


class NetworkError(DataError):
    """A file could not be read over the network: it says nothing about the data, and is never skipped."""


class _AgainError(Exception):
    """An attempt failed where another may not."""


class _AnewError(_AgainError):
    """What came so far does not fit the rest: another attempt has to start from byte 0."""


class _Answer(NamedTuple):
    """A server's answer: how to read on, its first byte's place, the whole file's bytes, a strong ETag."""

    read: Callable[[int], bytes]
    start: int
    total: int | None
    etag: str | None


class Store:
    """Whole files by URL: local paths, http(s) and s3, with retries, resuming, and a cache on disk.

    Args:
        cache: a folder that the processes of a machine share; None keeps nothing.
        cache_bytes: what the files in it may sum up to.
    """

    def __init__(self, cache: Path | None = None, cache_bytes: int = 0):
        self.cache = Cache(cache, cache_bytes) if cache is not None and cache_bytes > 0 else None

    def read(self, url: str, size: int | None = None, sha256: str | None = None) -> bytes:
        """All bytes of a file, which must be `size` many and have that SHA-256 where these are given.

        Raises:
            FileNotFoundError: there is no such file.
            NetworkError: it cannot be read over the network at the moment.
            DataError: it cannot be read at all, or its bytes are not the manifest's.
            ConfigError: boto3 is missing.
        """
        scheme, remote, _ = url.partition("://")
        if url.startswith("pipe:") or (remote and scheme not in ("http", "https", "s3")):
            raise DataError(f"{redact_url(url)}: only files, http(s):// and s3:// URLs can be read")
        if not remote:
            return _read_local(url, size, sha256)
        # Without a checksum nothing says whether a kept file is still the server's.
        if self.cache is None or sha256 is None or (size or 0) > self.cache.limit:
            return _download(url, size, sha256)
        return self.cache.read(
            url,
            sound=lambda content: _difference(content, size, sha256) is None,
            bring=lambda: _download(url, size, sha256),
        )


def open_store(data: DataConfig) -> Store:
    """The store that a config asks for."""
    if data.disk_cache is None:
        return Store()
    return Store(Path(data.disk_cache), int(data.disk_cache_gib * 2**30))


def redact_url(url: str) -> str:
    """A URL as it may be told: without user, password and query (which may sign it); a path as it is."""
    if url.startswith("pipe:"):
        return "pipe:..."
    scheme, remote, _ = url.partition("://")
    if not remote:
        return url
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # then it is unclear where a password would end
        return f"{scheme}://..."
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _difference(content: bytes, size: int | None, sha256: str | None) -> str | None:
    """What is wrong with a file's bytes; None if nothing is."""
    if size is not None and len(content) != size:
        return f"{len(content)} bytes where the manifest says {size}"
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        return "its bytes are not the manifest's (SHA-256 differs)"
    return None


def _read_local(path: str, size: int | None, sha256: str | None) -> bytes:
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if said := _difference(content, size, sha256):
        raise DataError(f"{path}: {said}; restore the shard")
    return content


def _download(url: str, size: int | None, sha256: str | None) -> bytes:
    """A remote file, fetched anew where its bytes are wrong: they may have been damaged on the way."""
    said = None
    for _ in range(TRIES):
        content = _fetch_whole(url, resumable=sha256 is not None)
        said = _difference(content, size, sha256)
        if said is None:
            return content
    raise DataError(
        f"{redact_url(url)}: {said}, each of {TRIES} times that it was fetched; restore the shard"
    )


def _fetch_whole(url: str, resumable: bool) -> bytes:
    """One download, resumed where it broke off if `resumable` or a strong ETag says that the parts fit.

    Only bytes that never came before, and faster than SLOWEST, renew the tries: neither a server that breaks
    off at the same byte each time nor one that drips keeps a run waiting for ever.
    """
    attempt = _s3 if url.startswith("s3:") else _http
    body, etag, furthest, tries = bytearray(), None, 0, 0
    while True:
        began = time.monotonic()
        try:
            with attempt(url, len(body), etag) as answer:
                if answer.start == 0:
                    body, etag = bytearray(), answer.etag
                elif (answer.start, answer.etag or etag) != (len(body), etag):
                    raise _AnewError("the file changes while it is read")
                _drain(answer, body)
            return bytes(body)
        except _AgainError as error:
            if len(body) - furthest > SLOWEST * (time.monotonic() - began):
                tries = 0
            furthest, tries = max(furthest, len(body)), tries + 1
            if tries >= TRIES:
                said = f"cannot be read over the network, after {TRIES} tries ({error})"
                raise NetworkError(f"{redact_url(url)}: {said}; start again when it can") from None
            if isinstance(error, _AnewError) or not (resumable or etag):
                body, etag = bytearray(), None
        time.sleep(FIRST_PAUSE_S * 2 ** (tries - 1))


def _drain(answer: _Answer, body: bytearray) -> None:
    """Appends what an answer still holds; raises `_AgainError` where it ends early or becomes too slow."""
    mark, since = len(body), time.monotonic()
    while answer.total is None or len(body) < answer.total:
        chunk = answer.read(CHUNK if answer.total is None else min(CHUNK, answer.total - len(body)))
        if not chunk:
            break
        body += chunk
        passed = time.monotonic() - since
        if passed > TIMEOUT_S:
            if len(body) - mark < SLOWEST * passed:
                raise _AgainError(f"{len(body) - mark} bytes in {passed:.0f} s")
            mark, since = len(body), time.monotonic()
    if answer.total is not None and len(body) < answer.total:
        raise _AgainError(f"it broke off after {len(body)} of {answer.total} bytes")


def _answer(read: Callable[[int], bytes], status: int, headers: Any) -> _Answer:
    """Reads an answer's headers, whose names are in lower case or compared without case."""
    start, length = 0, headers.get("content-length")
    total = int(length) if length and length.isdigit() else None
    if status == 206:
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("content-range") or "")
        if place is None:
            raise _AnewError("a part that does not say which")
        start, total = int(place[1]), int(place[2])
    etag = headers.get("etag")
    return _Answer(read, start, total, etag if etag and etag.startswith('"') else None)


def _refused(url: str, status: int, resumed: bool, code: str = "") -> Exception:
    """What an HTTP status says: no such file, worth another try, or neither."""
    said = f"HTTP {status} {code}".rstrip()
    if status in (404, 410):
        return FileNotFoundError(redact_url(url))
    if status in (408, 429) or status >= 500:
        return _AgainError(said)
    if resumed and status in (412, 416):
        return _AnewError(said)
    return DataError(
        f"{redact_url(url)}: the server refuses it ({said}); check the URL and the right to read it"
    )


def _request(url: str, start: int, etag: str | None) -> urllib.request.Request:
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    if not parts.hostname:
        raise ValueError("no host")
    bare = parts._replace(netloc=host, fragment="").geturl()
    resume = {"Range": f"bytes={start}-", **({"If-Range": etag} if etag else {})} if start else {}
    request = urllib.request.Request(quote(bare, safe="%/:=&?~+!$,;'@()*[]"), headers=resume)
    if user:
        # Not for the server that a redirection leads to.
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


@contextmanager
def _http(url: str, start: int, etag: str | None) -> Iterator[_Answer]:
    """Asks for a file from byte `start` on, if it still has that ETag."""
    try:
        with urllib.request.urlopen(_request(url, start, etag), timeout=TIMEOUT_S) as response:
            yield _answer(response.read1, response.status, response.headers)
    except urllib.error.HTTPError as error:
        error.close()
        raise _refused(url, error.code, start > 0) from None
    except (ValueError, http.client.InvalidURL):
        raise DataError(f"{redact_url(url)}: not a URL that can be read; check it") from None
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        # Never the error's own text, which may hold the URL.
        raise _AgainError(getattr(cause, "strerror", None) or type(cause).__name__) from None


@lru_cache(maxsize=1)
def _s3_client(process: int) -> Any:
    """boto3's client, one a process: its open connections must not be shared with a forked one."""
    from boto3.session import Session  # pyright: ignore[reportMissingImports]
    from botocore.config import Config  # pyright: ignore[reportMissingImports]

    times = {"connect_timeout": TIMEOUT_S, "read_timeout": TIMEOUT_S}
    return Session().client("s3", config=Config(**times, retries={"total_max_attempts": 1}))


@contextmanager
def _s3(url: str, start: int, etag: str | None) -> Iterator[_Answer]:
    """Asks for an object from byte `start` on, if it still has that ETag."""
    if importlib.util.find_spec("boto3") is None:
        raise ConfigError(f"{redact_url(url)}: needs boto3; run `pip install infogan_dist[s3]`")
    from botocore import exceptions  # pyright: ignore[reportMissingImports]
    from urllib3.exceptions import HTTPError

    again = exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError, HTTPError
    bucket, _, key = url.removeprefix("s3://").partition("/")
    ranged = {"Range": f"bytes={start}-", **({"IfMatch": etag} if etag else {})} if start else {}
    try:
        reply = _s3_client(os.getpid()).get_object(Bucket=bucket, Key=key, **ranged)
        meta = reply["ResponseMetadata"]
        with reply["Body"] as body:
            yield _answer(body.read, meta["HTTPStatusCode"], meta["HTTPHeaders"])
    except exceptions.ClientError as error:
        meta, code = error.response["ResponseMetadata"], error.response["Error"]["Code"]
        raise _refused(url, meta["HTTPStatusCode"], start > 0, code) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise DataError(f"{redact_url(url)}: no credentials for S3; {remedy}") from None
    except again as error:
        raise _AgainError(type(error).__name__) from None
    except (exceptions.BotoCoreError, ValueError) as error:
        said = f"boto3 cannot read it ({type(error).__name__})"
        raise DataError(f"{redact_url(url)}: {said}; check the URL and the AWS_... variables") from None
