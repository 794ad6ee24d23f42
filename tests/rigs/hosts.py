"""Two hosts on one machine: network namespaces joined by a cable, each with its own name and /etc/hosts."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

# In the host's own namespaces: its name, its /etc/hosts, then the command in the shell's place.
ENTER = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec taskset --cpu-list "$@"'


@dataclass(frozen=True)
class Host:
    """One end of the cable.

    Attributes:
        name: what it and the other call it; also its network namespace's.
        address: its IPv4 address on the cable.
        cores: those that it has, for `taskset`.
        folder: where its /etc/hosts lies, and what its commands say, one file a command.
    """

    name: str
    address: str
    cores: str
    folder: Path

    def start(self, *words: object, **variables: str) -> subprocess.Popen[bytes]:
        """Starts a command here, in the repository; its pid is the command's own."""
        enter = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", ENTER, self.name]
        command = [*enter, str(self.folder / "hosts"), self.cores, *map(str, words)]
        with self.log.open("ab") as log:
            env = environment() | variables
            return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def switch_off(self) -> None:
        """Kills whatever still runs here, and removes the host."""
        for pid in _ip("netns", "pids", self.name).split():
            os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "del", self.name)


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nothing else, gone at the end; skips where none can be made."""
    _skip_where_impossible()
    hosts = (
        Host(f"left-{os.getpid()}", "10.201.0.1", half_of_the_cores(0), folder),
        Host(f"right-{os.getpid()}", "10.201.0.2", half_of_the_cores(1), folder),
    )
    names = "".join(f"{host.address} {host.name}\n" for host in hosts)
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    made = []
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
            made.append(host)
        ends = [["name", "cable", "netns", host.name] for host in hosts]
        _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for host in hosts:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                _ip("-n", host.name, "link", "set", device, "up")
        yield hosts
    finally:
        for host in made:
            host.switch_off()


def half_of_the_cores(which: int) -> str:
    """For `taskset`: one process on half has as many threads, and so the same sums, as each of two on all."""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    return ",".join(map(str, cores[which * half :][:half] or cores))


def _skip_where_impossible() -> None:
    if shutil.which("ip") is None:
        pytest.skip("`ip` is missing (Debian: apt-get install iproute2)")
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no namespaces here, which need root: {tried.stderr.strip()}")


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, stdout=subprocess.PIPE, text=True).stdout
