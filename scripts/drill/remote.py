"""Faults of servers and of shards kept from them."""

import http.server
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from drill.bench import STEPS, Drill, Fault, NotSurvived
from drill.disks import flip, small_disk


class BadServer:
    """A web server of a folder on loopback that answers badly as often as it is told, then well."""

    def __init__(self, folder: Path, fault: str = "", times: int = 0):
        self.folder, self.fault, self.left, self.lock = folder, fault, times, threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.answer(self)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = self.folder / request.path.lstrip("/")
        with self.lock:
            bad = self.left > 0 and path.suffix == ".tar"
            self.left -= bad
        if not path.is_file():
            return request.send_error(404)
        if bad and self.fault == "503":
            return request.send_error(503)
        content = path.read_bytes()
        if bad and self.fault == "corrupt":
            content = content[:600] + bytes([content[600] ^ 1]) + content[601:]
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if bad and self.fault in ("drop", "stall"):
            request.wfile.write(content[: len(content) // 2])
            request.wfile.flush()
            time.sleep(120 if self.fault == "stall" else 0)
            request.close_connection = True
            return None
        request.wfile.write(content)
        return None

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def bad_server(drill: Drill, run: Path, fault: str, times: int = 3) -> str:
    server = BadServer(drill.folder / "set", fault, times)
    drill.finish(run, f"data.shards={server.url}")
    left = server.left
    server.close()
    if left:
        raise NotSurvived(f"{left} bad answers were never asked for")
    return f"{times} bad answers, each asked for again"


def server_goes(drill: Drill, run: Path) -> str:
    """The server goes for good: the run ends with its name; once it is back, the run goes on."""
    server = BadServer(drill.folder / "set")
    url = server.url
    running = drill.start(run, f"data.shards={url}", "data.workers=0")
    running.reach(STEPS // 4)
    server.close()
    said = drill.refused(running, url, "cannot be read")
    server = BadServer(drill.folder / "set")
    drill.finish(run, f"data.shards={server.url}")
    server.close()
    return said


def disk_cache(drill: Drill, run: Path, damage: Callable[[Path], object]) -> str:
    """Shards kept on disk: damaged between two starts, they are fetched anew."""
    server, cache = BadServer(drill.folder / "set"), run.with_name(run.name + ".cache")
    options = (f"data.shards={server.url}", f"data.disk_cache={cache}")
    drill.finish(run, *options, f"train.steps={STEPS // 2}")
    damage(cache)
    drill.finish(run, *options)
    server.close()
    return f"{len([f for f in cache.glob('*') if f.stat().st_size > 1000])} shards kept on disk"


def garble_cache(cache: Path) -> None:
    for file in cache.iterdir():
        if file.stat().st_size > 1000:
            flip(file, 600)


def cache_full(drill: Drill, run: Path) -> str:
    """The cache's disk is full: reading goes on without it."""
    cache = run.with_name(run.name + ".cache")
    server = BadServer(drill.folder / "set")
    with small_disk(cache, "64k"):
        said = drill.finish(run, f"data.shards={server.url}", f"data.disk_cache={cache}")
    server.close()
    return next((line for line in said.splitlines() if "warning" in line), "no warning").replace(
        str(drill.folder), "..."
    )


@contextmanager
def object_store(drill: Drill) -> Iterator[dict[str, str]]:
    """A real S3 server on loopback with the shard set in it; yields the settings that point there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    env = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "drill"}
    env |= {"AWS_SECRET_ACCESS_KEY": "not-to-be-logged", "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        import boto3

        client = boto3.client("s3", **{k: env[v] for k, v in BOTO.items()})  # type: ignore[call-overload]
        for _ in range(100):
            try:
                client.create_bucket(Bucket="drill")
                break
            except Exception:  # until the server is up
                time.sleep(0.1)
        for file in (drill.folder / "set").iterdir():
            client.upload_file(str(file), "drill", f"set/{file.name}")
        yield env
    finally:
        server.kill()
        server.wait()


BOTO = {
    "endpoint_url": "AWS_ENDPOINT_URL",
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "region_name": "AWS_DEFAULT_REGION",
}


def from_s3(drill: Drill, run: Path) -> str:
    with object_store(drill) as env:
        said = drill.finish(run, "data.shards=s3://drill/set", processes=2, env=env)
    if "not-to-be-logged" in said:
        raise NotSurvived("a credential was logged")
    return "8 shards from an S3 server, read by two processes"


def s3_goes(drill: Drill, run: Path) -> str:
    """The S3 server goes in the middle of a run and comes back empty-handed, then whole."""
    with object_store(drill) as env:
        running = drill.start(run, "data.shards=s3://drill/set", "data.workers=0", env=env)
        running.reach(STEPS // 4)
    said = drill.refused(running, "s3://drill/set")
    with object_store(drill) as env:
        drill.finish(run, "data.shards=s3://drill/set", env=env)
    return said


def faults() -> list[Fault]:
    """What may happen between a server and a run."""
    return [
        Fault("http-503", "a web server answers 503", partial(bad_server, fault="503")),
        Fault("http-drop", "it drops the connection half-way", partial(bad_server, fault="drop")),
        Fault("http-corrupt", "it sends a wrong byte", partial(bad_server, fault="corrupt")),
        Fault("http-stall", "it stops sending half-way", partial(bad_server, fault="stall", times=1)),
        Fault("http-gone", "it goes, and comes back", server_goes),
        Fault("cache-garbled", "shards kept on disk garbled", partial(disk_cache, damage=garble_cache)),
        Fault("cache-gone", "shards kept on disk removed", partial(disk_cache, damage=shutil.rmtree)),
        Fault("cache-full", "no room for them", cache_full),
        Fault("s3", "shards from S3, two processes", from_s3, 2),
        Fault("s3-gone", "the S3 server goes, and comes back", s3_goes),
    ]
