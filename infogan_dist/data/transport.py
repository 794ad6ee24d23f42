"""One request for the bytes of a remote file: http(s), S3 and the Hub share ranges, time limits and errors.

Certificates come from SSL_CERT_FILE, SSL_CERT_DIR or the system, for S3 also from AWS_CA_BUNDLE; proxies come
from http_proxy, https_proxy and no_proxy.
"""

import base64
import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit

from infogan_dist.credentials import redact_url
from infogan_dist.data import hub, s3
from infogan_dist.errors import DataError

TIMEOUT_S = 30.0  # without a byte, after which a request fails
MIN_RATE = 1000  # bytes/s over TIMEOUT_S; a slower response fails as if it had stopped
CHUNK_BYTES = 1 << 16
PORTS = {"http": 80, "https": 443}
# Other errors of name servers may be temporary. Not every C library has EAI_NODATA.
UNKNOWN_HOST = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
ERROR_BODY_BYTES = 1 << 12  # of an error response, of which S3's error code is read


class RetryError(Exception):
    """A request failed, and another one may succeed."""


class NetworkError(DataError):
    """A file cannot be read over the network at the moment.

    It may be intact, so it is never replaced by another one.
    """


class RestartError(RetryError):
    """The bytes received so far do not fit the rest of the file: the next request has to start at byte 0."""


class Response(NamedTuple):
    """A response whose body has not been read yet.

    Attributes:
        read: function that returns at most n further bytes, none at the end.
        start: position in the file of the body's first byte.
        total: bytes of the complete file; None if unknown.
        etag: the file's strong ETag; None if there is none.
    """

    read: Callable[[int], bytes]
    start: int
    total: int | None
    etag: str | None


@contextmanager
def open_url(url: str, start: int = 0, etag: str | None = None) -> Iterator[Response]:
    """Request a file from a byte on.

    Args:
        url: http://, https://, s3:// or hf://.
        start: position of the first byte; the server may ignore it.
        etag: strong ETag of the version whose earlier bytes were received; None if unknown.

    Yields:
        The response. Errors of reading it are converted as well.

    Raises:
        FileNotFoundError: the server has no such file.
        RetryError: the request failed, and another one may succeed.
        NetworkError: the request failed, and another one would fail as well.
        DataError: the server refuses the request, or the URL is not valid.
        ConfigError: boto3 is not installed.
    """
    is_s3 = url.startswith("s3://")
    opener = urllib.request.build_opener(*_handlers(url))
    try:
        request = _request(url)
        if start:
            request.add_header("Range", f"bytes={start}-")
        if start and etag:
            # S3 documents If-Match only; with If-Range, other servers send the new version at once.
            request.add_header("If-Match" if is_s3 else "If-Range", etag)
        with opener.open(request, timeout=TIMEOUT_S) as reply:
            yield _response(reply)
    except urllib.error.HTTPError as error:
        with closing(error):
            raise _status_error(url, error, is_resumed=start > 0) from None
    except (ValueError, http.client.InvalidURL):
        raise DataError(f"{redact_url(url)}: not a URL that can be read; check it") from None
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, Exception) and (failure := lasting_failure(url, cause)):
            raise failure from None
        # The text of the error itself may contain the URL.
        raise RetryError(getattr(cause, "strerror", None) or type(cause).__name__) from None


def lasting_failure(url: str, error: BaseException | None) -> NetworkError | None:
    """Return the error for a request that would fail again: of a certificate or an unknown host; else None.

    Args:
        url: that was requested.
        error: of the request; the errors that caused it are examined as well.
    """
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            reason = f"the server's certificate is not valid ({error.verify_message})"
            return NetworkError(f"{redact_url(url)}: {reason}; correct the URL, or set SSL_CERT_FILE")
        if isinstance(error, socket.gaierror) and error.errno in UNKNOWN_HOST:
            return NetworkError(f"{redact_url(url)}: its host, or that of the proxy, is unknown; correct it")
        error = error.__cause__ or error.__context__
    return None


def append_body(body: bytearray, response: Response, limit: int | None) -> None:
    """Append the rest of a response to the bytes received so far.

    Args:
        body: the bytes received so far.
        response: the rest of the file.
        limit: bytes after which reading stops, if the server does not announce the length; None: unlimited.

    Raises:
        RetryError: the response ends early, or is slower than `MIN_RATE`; the bytes received are appended.
    """
    window_size, window_start = len(body), time.monotonic()
    end = limit if response.total is None else response.total
    while end is None or len(body) < end:
        chunk = response.read(CHUNK_BYTES if end is None else min(CHUNK_BYTES, end - len(body)))
        if not chunk:
            break
        body += chunk
        seconds = time.monotonic() - window_start
        if seconds > TIMEOUT_S:
            received = len(body) - window_size
            if received < MIN_RATE * seconds:
                raise RetryError(f"{received} bytes in {seconds:.0f} s")
            window_size, window_start = len(body), time.monotonic()
    if response.total is not None and len(body) < response.total:
        raise RetryError(f"the connection broke off after {len(body)} of {response.total} bytes")


def _request(url: str) -> urllib.request.Request:
    """Return the request for a URL; its Authorization is not sent to another server that it redirects to."""
    location, authorization = url, None
    if url.startswith("s3://"):
        location = s3.presigned_url(url)
    elif url.startswith("hf://"):
        location, authorization = hub.resolve(url)
    parts = urlsplit(location)
    user, _, host = parts.netloc.rpartition("@")
    if not parts.hostname:
        raise ValueError("no host")
    bare_url = parts._replace(netloc=host, fragment="").geturl()
    request = urllib.request.Request(quote(bare_url, safe="%/:=&?~+!$,;'@()*[]"))
    if user:
        authorization = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
    if authorization:
        request.add_unredirected_header("Authorization", authorization)
    return request


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Report redirects as errors: a presigned URL is valid for its host only."""

    def redirect_request(self, *_: object) -> None:
        return None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Send the Authorization again to the same server only; follow no redirect from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            reason = f"the server redirects to {redact_url(newurl)}, which is not encrypted"
            raise NetworkError(f"{redact_url(req.full_url)}: {reason}; check the URL")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        authorization = req.get_header("Authorization")
        if request and authorization and _is_same_server(old, new):
            request.add_unredirected_header("Authorization", authorization)
        return request


def _is_same_server(old: SplitResult, new: SplitResult) -> bool:
    """Return whether a redirect stays on a server, also where it leads from http to https."""
    places = [(parts.scheme, parts.port or PORTS[parts.scheme]) for parts in (old, new)]
    is_upgrade = places == [*PORTS.items()]
    return old.hostname == new.hostname and (is_upgrade or places[0] == places[1])


def _handlers(url: str) -> list[urllib.request.BaseHandler]:
    """Return what requests of a URL's scheme need besides urllib's own handlers."""
    if not url.startswith("s3://"):
        return [_Redirects()]
    bundle = os.environ.get("AWS_CA_BUNDLE")
    if not bundle:
        return [_NoRedirects()]
    try:
        context = ssl.create_default_context(cafile=bundle)
    except OSError as error:
        raise DataError(f"AWS_CA_BUNDLE: {bundle} cannot be read ({error.strerror}); correct it") from None
    return [_NoRedirects(), urllib.request.HTTPSHandler(context=context)]


def _response(reply: http.client.HTTPResponse) -> Response:
    start, length = 0, reply.headers.get("Content-Length")
    total = int(length) if length and length.isdigit() else None
    if reply.status == 206:
        content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", reply.headers.get("Content-Range") or "")
        if content_range is None:
            raise RestartError("a partial response without its range")
        start, total = int(content_range[1]), int(content_range[2])
    etag = reply.headers.get("ETag")
    return Response(reply.read1, start, total, etag if etag and etag.startswith('"') else None)


def _status_error(url: str, error: urllib.error.HTTPError, is_resumed: bool) -> Exception:
    """Return the exception for an HTTP status that is not a success."""
    try:
        body = getattr(error, "read1")(ERROR_BODY_BYTES).decode(errors="replace")  # noqa: B009
    except (OSError, ValueError, http.client.HTTPException):
        body = ""
    code = re.search(r"<Code>(\w{1,64})</Code>", body)  # as S3 names errors
    status = f"HTTP {error.code} {code[1] if code else ''}".rstrip()
    if url.startswith("hf://") and (refusal := hub.refusal(url, error.code, error.headers["X-Error-Code"])):
        return refusal
    if error.code in (404, 410):
        return FileNotFoundError(redact_url(url))
    if error.code in (408, 429) or error.code >= 500:
        return RetryError(status)
    if is_resumed and error.code in (412, 416):
        return RestartError(status)
    if (
        url.startswith("s3://")
        and (region := _bucket_region(error, body))
        and s3.set_bucket_region(url, region)
    ):
        return RetryError(f"{status}; the bucket is in {region}")
    return DataError(
        f"{redact_url(url)}: the server refuses it ({status}); check the URL and the right to read it"
    )


def _bucket_region(error: urllib.error.HTTPError, body: str) -> str | None:
    """Return the region that S3 reports for a request that was signed for another one."""
    element = re.search(r"<Region>([a-z0-9-]+)</Region>", body)
    region = error.headers.get("x-amz-bucket-region") or (element[1] if element else "")
    return region if re.fullmatch(r"[a-z0-9-]{1,64}", region) else None
