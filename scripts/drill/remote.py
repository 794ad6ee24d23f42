"""Faults of servers, and of the disk cache of the shards that they serve."""

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

from drill.bench import STEPS, Drill, DrillError, Fault
from drill.disks import flip_bit, small_disk

BYTES_OF_A_FILE = 1000  # in the cache; smaller files are not shards
STALL_S = 120  # longer than a run waits for a response
SECRET = "not-to-be-logged"
# Arguments of boto3's client, and the environment variables with their values.
BOTO_ARGUMENTS = {
    "endpoint_url": "AWS_ENDPOINT_URL",
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "region_name": "AWS_DEFAULT_REGION",
}


class FaultyServer:
    """A web server of a folder on the loopback interface whose first responses for shards are faulty.

    Args:
        folder: the folder to serve.
        fault: `503` (an error status), `drop` (the connection is closed half-way), `stall` (nothing more is
            sent half-way) or `corrupt` (a wrong byte).
        times: number of faulty responses; the later ones are correct.

    Attributes:
        url: address of the folder.
        remaining: number of faulty responses that have not been sent.
    """

    def __init__(self, folder: Path, fault: str = "", times: int = 0):
        self.folder, self.fault, self.remaining, self.lock = folder, fault, times, threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.respond(self)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def respond(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """Respond to a request for a file."""
        path = self.folder / request.path.lstrip("/")
        with self.lock:
            faulty = self.remaining > 0 and path.suffix == ".tar"
            self.remaining -= faulty
        if not path.is_file():
            return request.send_error(404)
        if faulty and self.fault == "503":
            return request.send_error(503)
        content = path.read_bytes()
        if faulty and self.fault == "corrupt":
            content = content[:600] + bytes([content[600] ^ 1]) + content[601:]
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if faulty and self.fault in ("drop", "stall"):
            request.wfile.write(content[: len(content) // 2])
            request.wfile.flush()
            time.sleep(STALL_S if self.fault == "stall" else 0)
            request.close_connection = True
            return None
        request.wfile.write(content)
        return None

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()


def use_faulty_server(drill: Drill, run: Path, fault: str, times: int = 3) -> str:
    """Train from a server with faulty responses, which are requested again; see `FaultyServer`."""
    server = FaultyServer(drill.folder / "set", fault, times)
    drill.complete(run, f"data.shards={server.url}")
    remaining = server.remaining
    server.close()
    if remaining:
        raise DrillError(f"{remaining} faulty responses were never requested")
    return f"faulty responses: {times}, each requested again"


def stop_server(drill: Drill, run: Path) -> str:
    """Stop the server for good: the run ends with its address, and continues once there is a server again."""
    server = FaultyServer(drill.folder / "set")
    url = server.url
    started = drill.start(run, f"data.shards={url}", "data.workers=0")
    started.wait_for_step(STEPS // 4)
    server.close()
    message = drill.expect_error(started, url, "cannot be read")
    server = FaultyServer(drill.folder / "set")
    drill.complete(run, f"data.shards={server.url}")
    server.close()
    return message


def cached_shards(cache: Path) -> list[Path]:
    """Return the shards in a disk cache."""
    return [file for file in cache.glob("*") if file.stat().st_size > BYTES_OF_A_FILE]


def damage_disk_cache(drill: Drill, run: Path, damage: Callable[[Path], object]) -> str:
    """Damage the disk cache between two starts: the shards are fetched again."""
    server, cache = FaultyServer(drill.folder / "set"), run.with_name(run.name + ".cache")
    options = (f"data.shards={server.url}", f"data.disk_cache={cache}")
    drill.complete(run, *options, f"train.steps={STEPS // 2}")
    damage(cache)
    drill.complete(run, *options)
    server.close()
    return f"{len(cached_shards(cache))} shards in the disk cache"


def garble_cache(cache: Path) -> None:
    for file in cached_shards(cache):
        flip_bit(file, 600)


def fill_cache_disk(drill: Drill, run: Path) -> str:
    """Use a disk cache without enough space: the run continues without it."""
    cache = run.with_name(run.name + ".cache")
    server = FaultyServer(drill.folder / "set")
    with small_disk(cache, "64k"):
        output = drill.complete(run, f"data.shards={server.url}", f"data.disk_cache={cache}")
    server.close()
    return drill.shorten(next((line for line in output.splitlines() if "warning" in line), "no warning"))


@contextmanager
def s3_server(drill: Drill) -> Iterator[dict[str, str]]:
    """Serve the shard set from an S3 server on the loopback interface.

    Yields:
        The environment variables with its address and credentials.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    env = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "drill"}
    env |= {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        import boto3  # an optional dependency, which the other faults do not need

        arguments = {name: env[variable] for name, variable in BOTO_ARGUMENTS.items()}
        client = boto3.client("s3", **arguments)  # type: ignore[call-overload]
        for _ in range(100):
            try:
                client.create_bucket(Bucket="drill")
                break
            except Exception:  # boto3 has many; the server is still starting
                time.sleep(0.1)
        for file in (drill.folder / "set").iterdir():
            client.upload_file(str(file), "drill", f"set/{file.name}")
        yield env
    finally:
        server.kill()
        server.wait()


def read_from_s3(drill: Drill, run: Path) -> str:
    """Train from S3; the credentials must not be printed."""
    with s3_server(drill) as env:
        output = drill.complete(run, "data.shards=s3://drill/set", processes=2, env=env)
    if SECRET in output:
        raise DrillError("a credential was printed")
    return "8 shards from an S3 server, read by two processes"


def stop_s3_server(drill: Drill, run: Path) -> str:
    """Stop the S3 server during a run: the run ends, and continues once there is a server again."""
    with s3_server(drill) as env:
        started = drill.start(run, "data.shards=s3://drill/set", "data.workers=0", env=env)
        started.wait_for_step(STEPS // 4)
    message = drill.expect_error(started, "s3://drill/set")
    with s3_server(drill) as env:
        drill.complete(run, "data.shards=s3://drill/set", env=env)
    return message


def faults() -> list[Fault]:
    """Return the faults between a server and a run."""

    def http_fault(fault: str, times: int = 3) -> Callable[[Drill, Path], str]:
        return partial(use_faulty_server, fault=fault, times=times)

    return [
        Fault("http-503", "a web server answers 503", http_fault("503")),
        Fault("http-drop", "it drops the connection half-way", http_fault("drop")),
        Fault("http-corrupt", "it sends a wrong byte", http_fault("corrupt")),
        Fault("http-stall", "it stops sending half-way", http_fault("stall", times=1)),
        Fault("http-gone", "it is stopped and started again", stop_server),
        Fault(
            "cache-garbled",
            "shards in the disk cache garbled",
            partial(damage_disk_cache, damage=garble_cache),
        ),
        Fault(
            "cache-gone", "shards in the disk cache removed", partial(damage_disk_cache, damage=shutil.rmtree)
        ),
        Fault("cache-full", "no space in the disk cache", fill_cache_disk),
        Fault("s3", "shards from S3, two processes", read_from_s3, 2),
        Fault("s3-gone", "the S3 server is stopped and started again", stop_s3_server),
    ]
