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

# Sets the host's name and /etc/hosts in its own namespaces; then the command replaces the shell.
ENTER = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec taskset --cpu-list "$@"'


@dataclass(frozen=True)
class Host:
    """One end of the cable.

    Attributes:
        name: host name, and name of the network namespace.
        address: IPv4 address on the cable.
        cores: list of its processor cores, for `taskset`.
        folder: contains its /etc/hosts and its log.
    """

    name: str
    address: str
    cores: str
    folder: Path

    def start(self, *words: object, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command on this host, in the repository; the pid is that of the command itself."""
        enter = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", ENTER, self.name]
        command = [*enter, str(self.folder / "hosts"), self.cores, *map(str, words)]
        with self.log.open("ab") as log:
            env = environment() | variables
            return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)

    @property
    def log(self) -> Path:
        """The output of all commands."""
        return self.folder / f"{self.name}.log"

    def switch_off(self) -> None:
        """Kill all processes of this host, and remove it."""
        for pid in _ip("netns", "pids", self.name).split():
            os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "del", self.name)


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Create two hosts that reach only each other, and remove them at the end.

    The test is skipped where they cannot be created.
    """
    _skip_if_impossible()
    hosts = (
        Host(f"left-{os.getpid()}", "10.201.0.1", half_of_the_cores(0), folder),
        Host(f"right-{os.getpid()}", "10.201.0.2", half_of_the_cores(1), folder),
    )
    names = "".join(f"{host.address} {host.name}\n" for host in hosts)
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    created = []
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
            created.append(host)
        ends = [["name", "cable", "netns", host.name] for host in hosts]
        _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for host in hosts:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                _ip("-n", host.name, "link", "set", device, "up")
        yield hosts
    finally:
        for host in created:
            host.switch_off()


def half_of_the_cores(index: int) -> str:
    """Return the first or the second half of the processor cores, as a list for `taskset`.

    One process on half of the cores has as many threads, and so the same sums, as each of two on all cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    return ",".join(map(str, cores[index * half :][:half] or cores))


def _skip_if_impossible() -> None:
    if shutil.which("ip") is None:
        pytest.skip("`ip` is missing (Debian: apt-get install iproute2)")
    done = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"namespaces cannot be created, which needs root: {done.stderr.strip()}")


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, stdout=subprocess.PIPE, text=True).stdout
