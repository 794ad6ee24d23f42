"""Servers on loopback: a web server whose next responses can have faults, and a Hugging Face Hub."""

import hashlib
import re
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

BODY = bytes(i * i % 251 for i in range(100_000))
BODY_SHA256 = hashlib.sha256(BODY).hexdigest()


@dataclass
class Fault:
    """How one request is answered: a status, and what is wrong with the body.

    Attributes:
        status: of the response.
        send: number of bytes of the body that are sent, while all are announced.
        promise: number of bytes of the body that are announced and sent.
        stall: whether the connection then stays open without a byte.
        drip: seconds between single bytes.
        delay: seconds before the body.
        corrupt: whether a byte is altered.
        ignore_range: whether the complete file is sent.
        announce: whether the length of the body is announced; else closing the connection ends it.
        headers, error: headers and body of a response that is not a success.
    """

    status: int = 200
    send: int | None = None
    promise: int | None = None
    stall: bool = False
    drip: float = 0.0
    delay: float = 0.0
    corrupt: bool = False
    ignore_range: bool = False
    announce: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    error: bytes = b""


class WebServer(ThreadingHTTPServer):
    """A server on loopback.

    Args:
        certificate: PEM file with certificate and key; None: without TLS.
        handler: answers the requests; None: with the files and faults.

    Attributes:
        files: contents by path.
        faults: those of the next requests; further requests have none.
        requests: path and headers of each request.
        queries: query of each request.
        sent: number of bytes of bodies sent so far.
        has_etags: whether responses have ETags.
        answered: set after the first body.
        closing: set to end all waiting.
    """

    def __init__(self, certificate: Path | None = None, handler: type[BaseHTTPRequestHandler] | None = None):
        super().__init__(("127.0.0.1", 0), handler or _Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.files: dict[str, bytes] = {"/b/x.tar": BODY}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, Any]] = []
        self.queries: list[str] = []
        self.has_etags, self.sent = True, 0
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self.server_address[1]}"
        self.answered, self.closing = threading.Event(), threading.Event()

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of each request."""
        return [headers["Range"] for _, headers in self.requests]

    def handle_error(self, request, client_address):
        pass


class _Handler(BaseHTTPRequestHandler):
    server: WebServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        path, _, query = self.path.partition("?")
        web = self.server
        fault = web.faults.pop(0) if web.faults else Fault()
        web.requests.append((path, self.headers))
        web.queries.append(query)
        status = fault.status if path in web.files or fault.status != 200 else 404
        if status != 200:
            return self.send_failure(status, fault)
        content = web.files[path]
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        start = self.range_start(etag, len(content)) if not fault.ignore_range else 0
        body = content[start : None if fault.promise is None else fault.promise]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if web.has_etags:
            self.send_header("ETag", etag)
        if fault.announce:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return self.send_body(body, fault)

    def send_failure(self, status: int, fault: Fault) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(fault.error)))
        for name, value in fault.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(fault.error)

    def range_start(self, etag: str, size: int) -> int:
        """Return the first byte of the requested range if its condition is met, else 0."""
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        is_met = self.headers["If-Range"] in (None, etag) and self.headers["If-Match"] in (None, etag)
        return int(requested[1]) if requested and is_met and int(requested[1]) < size else 0

    def send_body(self, body: bytes, fault: Fault) -> None:
        web = self.server
        web.closing.wait(fault.delay)
        if fault.corrupt:
            body = body[:77] + bytes([body[77] ^ 1]) + body[78:]
        body = body[: fault.send]
        for part in [body[i : i + 1] for i in range(len(body))] if fault.drip else [body]:
            web.sent += len(part)  # before the client can have received it
            self.wfile.write(part)
            web.closing.wait(fault.drip)
        web.answered.set()
        if fault.stall:
            web.closing.wait(30)


class HubServer(WebServer):
    """A Hub with the private data set ann/shapes, whose contents another server stores.

    Like the real one it requires a token, redirects to itself for JSON files, which it sends, and to a signed
    URL of the other server for all other files. Its error codes are those that huggingface_hub documents.

    Args:
        storage: the other server; the data set's files are those in its folder /b.

    Attributes:
        token: the only valid one.
        revisions: branches and tags.
    """

    def __init__(self, storage: WebServer):
        super().__init__(handler=_HubHandler)
        self.storage, self.token, self.revisions = storage, "hf_secret", ("main", "v1", "refs/pr/1")


class _HubHandler(_Handler):
    server: HubServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self):
        hub = self.server
        parts = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if self.headers["Authorization"] is None:
            return self.answer(401, {"X-Error-Code": "RepoNotFound"})
        if self.headers["Authorization"] != f"Bearer {hub.token}":
            return self.answer(401, {})
        if parts is None:
            return super().do_GET()
        repository, revision, path = parts.groups()
        if repository != "ann/shapes":
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        if unquote(revision) not in hub.revisions:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if f"/b/{path}" not in hub.storage.files:
            return self.answer(404, {"X-Error-Code": "EntryNotFound"})
        if path.endswith(".json"):
            hub.files[f"/api/resolve-cache/{path}"] = hub.storage.files[f"/b/{path}"]
            return self.answer(307, {"Location": f"/api/resolve-cache/{path}"})
        return self.answer(302, {"Location": f"{hub.storage.url}/b/{path}?sign=secret"})

    def answer(self, status: int, headers: dict[str, str]) -> None:
        self.server.requests.append((self.path, self.headers))
        self.send_failure(status, Fault(headers=headers))
