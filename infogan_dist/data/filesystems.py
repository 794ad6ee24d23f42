"""Files of other storage systems, such as gs:// or sftp://, through the implementations of fsspec.

Their calls have no common time limit and report no progress. A file is therefore read in ranges, each by a
thread that is given up when it takes too long.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from infogan_dist.credentials import redact_url
from infogan_dist.data import transport
from infogan_dist.data.transport import MIN_RATE, Response, RestartError, RetryError
from infogan_dist.errors import ConfigError, DataError

MAX_RANGE_BYTES = 1 << 24
# What identifies a version of a file, under the names that the implementations use.
VERSION_KEYS = ("etag", "ETag", "generation", "mtime", "last_modified", "LastModified", "updated", "created")
# What these log is raised as well; without a handler Python would print it to stderr, with a traceback.
for _name in ("fsspec", "gcsfs", "adlfs", "azure", "paramiko"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


def open_file(url: str, start: int = 0) -> Response:
    """Open a file at a byte.

    Args:
        url: of a scheme that fsspec has an implementation for.
        start: position of the first byte.

    Returns:
        The response. Its ETag identifies the version of the file.

    Raises:
        FileNotFoundError: there is no such file.
        RetryError: the request failed, and another one may succeed.
        DataError: the scheme is unknown, or the file cannot be read.
        ConfigError: the package for the scheme is not installed.
    """
    _check_scheme(url)
    file = _File(url)
    return Response(file.reader(start), start, file.size, file.version)


class _File:
    """A remote file.

    Attributes:
        size: in bytes.
        version: text that differs between the file's versions; None if its storage reports none.
    """

    def __init__(self, url: str):
        from fsspec.core import url_to_fs

        self._url = url
        # Each request has a connection of its own, like one by HTTP: that of a failed one may be broken.
        self._filesystem, self._path = self._call(url_to_fs, url, skip_instance_cache=True)
        self.size, self.version = self._status()

    def reader(self, position: int) -> Callable[[int], bytes]:
        """Return a function that returns at most n further bytes from a position on, none at the end."""
        received, range_bytes = memoryview(b""), self._slowest_range()

        def read(n: int) -> bytes:
            nonlocal position, received, range_bytes
            if not received and position < self.size:
                start, end = time.monotonic(), min(position + range_bytes, self.size)
                content = self._call(self._filesystem.cat_file, self._path, start=position, end=end)
                received, position = memoryview(content), position + len(content)
                # The next range takes a second or so.
                rate = int(len(content) / max(time.monotonic() - start, 1e-3))
                range_bytes = min(max(rate, self._slowest_range()), MAX_RANGE_BYTES)
                if position == self.size and self._status() != (self.size, self.version):
                    raise RestartError("the file changes while it is read")
            part, received = received[:n], received[n:]
            return bytes(part)

        return read

    @staticmethod
    def _slowest_range() -> int:
        """Return the bytes of a range that takes the time limit at the smallest permitted rate."""
        return max(1, int(MIN_RATE * transport.TIMEOUT_S))

    def _status(self) -> tuple[int, str | None]:
        """Return size and version of the file now."""
        self._filesystem.invalidate_cache()
        info = self._call(self._filesystem.info, self._path)
        if info.get("type") == "directory":
            raise FileNotFoundError(redact_url(self._url))
        if info.get("size") is None:
            raise DataError(f"{redact_url(self._url)}: its size is not known; copy it to another server")
        version = [str(info[key]) for key in VERSION_KEYS if info.get(key) is not None]
        return int(info["size"]), " ".join([*version, str(info["size"])]) if version else None

    def _call(self, function: Callable[..., Any], *arguments: object, **options: object) -> Any:
        """Return a function's result. Raises as `open_file`, also if there is none within the time limit."""
        result: Future[Any] = Future()

        def run() -> None:
            try:
                result.set_result(function(*arguments, **options))
            except BaseException as error:
                result.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        try:
            return result.result(transport.TIMEOUT_S)
        except Exception as error:
            if not result.done():
                raise RetryError(f"no answer within {transport.TIMEOUT_S:.0f} s") from None
            raise _converted(self._url, error) from None


def _check_scheme(url: str) -> None:
    """Raise an error if fsspec has no implementation for the scheme of a URL, or lacks a package for it."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        if "::" in url:  # fsspec would read one file inside another, and that one by any scheme.
            raise ValueError("chained URLs")
        fsspec.get_filesystem_class(scheme)
    except ValueError:
        schemes = "files, http(s)://, s3:// and hf:// URLs, and those of fsspec's implementations"
        raise DataError(f"{redact_url(url)}: only {schemes} can be read; use one of these") from None
    except ImportError as error:
        reason = f"{scheme}:// URLs need a package that cannot be imported ({error.__cause__ or error})"
        raise ConfigError(f"{redact_url(url)}: {reason}; {error}") from None


def _converted(url: str, error: Exception) -> Exception:
    """Return the exception for an error of an implementation, without its text, which may contain the URL."""
    if failure := transport.lasting_failure(url, error):
        return failure
    kind = type(error).__name__
    statuses = (getattr(error, name, None) for name in ("status", "code", "status_code"))
    status = next((int(s) for s in statuses if isinstance(s, int)), 0)
    if isinstance(error, (FileNotFoundError, IsADirectoryError)) or status in (404, 410):
        return FileNotFoundError(redact_url(url))
    if not status and str(error).startswith("Forbidden"):  # gcsfs's OSError
        status = 403
    has_no_right = isinstance(error, PermissionError) or "Auth" in kind or "Credential" in kind
    if has_no_right or (400 <= status < 500 and status not in (408, 429)):
        reason = f"the server refuses it ({f'HTTP {status}' if status else kind})"
        return DataError(f"{redact_url(url)}: {reason}; check the URL and the right to read it")
    if isinstance(error, (TypeError, ValueError, ImportError, NotImplementedError)):
        return DataError(f"{redact_url(url)}: not a URL that fsspec can read ({kind}); check it")
    return RetryError(getattr(error, "strerror", None) or kind)
