"""Complete files from local paths and URLs, with retries, resuming, checks and a disk cache."""

import hashlib
import os
import stat
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from infogan_dist.config.schema import DataConfig
from infogan_dist.credentials import redact_url
from infogan_dist.data.cache import DiskCache
from infogan_dist.data.filesystems import open_file
from infogan_dist.data.transport import (
    MIN_RATE,
    NetworkError,
    Response,
    RestartError,
    RetryError,
    append_body,
    open_url,
)
from infogan_dist.data.urls import is_remote
from infogan_dist.errors import DataError

TRIES, FIRST_PAUSE_S = 5, 1.0  # Each pause between two tries is twice the one before.


class Store:
    """Reads complete files by path or URL.

    Args:
        cache: folder that the processes of a machine share for downloaded files; None: no cache.
        cache_bytes: limit of the folder.
    """

    def __init__(self, cache: Path | None = None, cache_bytes: int = 0):
        self.cache = DiskCache(cache, cache_bytes) if cache is not None and cache_bytes > 0 else None

    def read(
        self, url: str, size: int | None = None, sha256: str | None = None, limit: int | None = None
    ) -> bytes:
        """Return the bytes of a file.

        Args:
            url: local path, or URL: http(s)://, s3://, hf://, or of another scheme that fsspec can read.
            size: expected number of bytes; None: not checked.
            sha256: expected SHA-256; None: not checked, and the file is not cached.
            limit: bytes that the file may have, if `size` is not given; None: any number.

        Raises:
            FileNotFoundError: the file does not exist.
            NetworkError: it cannot be read over the network at the moment.
            DataError: it cannot be read at all, or differs from `size` or `sha256`.
            ConfigError: the package for the URL's scheme is not installed.
        """
        if url.startswith("pipe:"):
            raise DataError(f"{redact_url(url)}: only files and URLs can be read; use one of these")
        if not is_remote(url):
            return _read_local(url, size, sha256, limit)
        # Without a checksum a cached file might be an old version.
        if self.cache is None or sha256 is None:
            return _download(url, size, sha256, limit)
        # The checksum identifies a shard also where the token in its URL changes.
        return self.cache.read(
            sha256,
            size,
            is_valid=lambda content: _difference(content, sha256) is None,
            download=lambda: _download(url, size, sha256, limit),
        )


def open_store(data: DataConfig) -> Store:
    """Return the store of a config, with its disk cache."""
    if data.disk_cache is None:
        return Store()
    return Store(Path(data.disk_cache), int(data.disk_cache_gib * 2**30))


def _length_difference(length: int, size: int | None, limit: int | None) -> str | None:
    """Return how a file's length differs from what is expected, or None."""
    if size is not None and length != size:
        return f"{length} bytes instead of the manifest's {size}; restore the shard"
    if size is None and limit is not None and length > limit:
        return f"more than {limit:,} bytes, which is the limit; reduce it"
    return None


def _difference(content: bytes, sha256: str | None) -> str | None:
    """Return how a file's bytes differ from the manifest, or None."""
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        return "its bytes are not those of the manifest (SHA-256 differs); restore the shard"
    return None


def _read_local(path: str, size: int | None, sha256: str | None, limit: int | None) -> bytes:
    try:
        status = os.stat(path)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise DataError(f"{path}: a device or a pipe, which is never read; use a file")
        difference = _length_difference(status.st_size, size, limit) if stat.S_ISREG(status.st_mode) else None
        content = Path(path).read_bytes() if difference is None else b""
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: the path contains a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be read ({reason}); check the path and its permissions") from None
    if difference := difference or _difference(content, sha256):
        raise DataError(f"{path}: {difference}")
    return content


def _download(url: str, size: int | None, sha256: str | None, limit: int | None) -> bytes:
    """Return a remote file; download it again if it is wrong, because the network may have damaged it."""
    difference = None
    for _ in range(TRIES):
        content = _download_once(url, size, limit, is_checked=sha256 is not None)
        difference = _difference(content, sha256)
        if difference is None:
            return content
    raise DataError(f"{redact_url(url)}: after {TRIES} downloads {difference}")


def _download_once(url: str, size: int | None, limit: int | None, is_checked: bool) -> bytes:
    """Return the bytes of a remote file; resume where a response broke off, if the parts are of one version.

    That follows from a checksum afterwards (`is_checked`) or from a strong ETag. The number of tries starts
    again only with bytes that were never received before, at `MIN_RATE` or faster, so that neither a server
    that breaks off at the same byte each time nor a very slow one delays a run for ever. No more than one
    byte beyond the permitted length is received.
    """
    body, etag, furthest, tries = bytearray(), None, 0, 0
    most = limit if size is None else size
    while True:
        start = time.monotonic()
        try:
            with _open(url, len(body), etag) as response:
                if response.start == 0:
                    body, etag = bytearray(), response.etag
                elif (response.start, response.etag or etag) != (len(body), etag):
                    raise RestartError("the file changes while it is read")
                if response.total is not None:
                    _require_length(url, response.total, size, limit)
                append_body(body, response, None if most is None else most + 1)
                if size is not None and len(body) < size:  # without an announced length
                    raise RetryError(f"the connection broke off after {len(body)} of {size} bytes")
            _require_length(url, len(body), size, limit)
            return bytes(body)
        except RetryError as error:
            if len(body) - furthest > MIN_RATE * (time.monotonic() - start):
                tries = 0
            furthest, tries = max(furthest, len(body)), tries + 1
            if tries >= TRIES:
                reason = f"cannot be read over the network, after {TRIES} tries ({error})"
                raise NetworkError(f"{redact_url(url)}: {reason}; start again when it can") from None
            if isinstance(error, RestartError) or not (is_checked or etag):
                body, etag = bytearray(), None
        time.sleep(FIRST_PAUSE_S * 2 ** (tries - 1))


def _require_length(url: str, length: int, size: int | None, limit: int | None) -> None:
    """Refuse a length that is not the expected one: another request would have it again."""
    if difference := _length_difference(length, size, limit):
        raise DataError(f"{redact_url(url)}: {difference}")


def _open(url: str, start: int, etag: str | None) -> AbstractContextManager[Response]:
    """Request a file from a byte on, as `open_url` does; by fsspec if its scheme is none of HTTP."""
    if url.startswith(("http://", "https://", "s3://", "hf://")):
        return open_url(url, start, etag)
    return nullcontext(open_file(url, start))
