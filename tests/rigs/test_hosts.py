"""Two hosts, by accelerate and by torchrun, give the weights of two processes on one host, bit for bit."""

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Runner, same_weights, weights
from tests.rigs.hosts import Host, two_hosts
from tests.rigs.processes import wait_until
from tests.test_launch import LAUNCH, command_in, tiny_options

pytestmark = pytest.mark.rig
Weights = Callable[..., dict[str, torch.Tensor]]
PORT = "29400"  # of the hosts, whose ports are separate from those of this machine
TORCHRUN = command_in(LAUNCH / "torchrun.sh")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    with two_hosts(tmp_path) as both:
        yield both


@pytest.fixture
def expected(run_module: Runner, tiny: Path, tmp_path: Path) -> Weights:
    """Return a function that trains two processes on one host and returns their weights."""

    def run(steps: int, *options: str) -> dict[str, torch.Tensor]:
        words = [*tiny_options(tiny, tmp_path / "one_host", steps), *options]
        run_module("train", "configs/mnist.yaml", *words, processes=2)
        return weights(tmp_path / "one_host", steps)

    return run


def wait_for_success(hosts: tuple[Host, Host], launchers: list[subprocess.Popen[bytes]]) -> None:
    """Wait for the launchers, which must end with exit status 0."""
    for launcher in launchers:
        launcher.wait(timeout=300)
    output = "".join(host.log.read_text() for host in hosts)
    assert [launcher.returncode for launcher in launchers] == [0, 0], output


def workers(launcher: subprocess.Popen[bytes]) -> set[int]:
    """Return the pids of the processes that a launcher has started."""
    return set(map(int, Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()))


def test_accelerate_trains_on_two_hosts(
    hosts: tuple[Host, Host], expected: Weights, tiny: Path, tmp_path: Path
):
    head = shlex.join(command_in(LAUNCH / "accelerate" / "multi_node.yaml"))
    assert "--machine_rank 0 --main_process_ip HOST" in head
    launchers = []
    for rank, host in enumerate(hosts):
        command = head.replace("_rank 0", f"_rank {rank}").replace(
            "HOST", f"{hosts[0].name} --num_processes 2"
        )
        launchers.append(
            host.start(
                *command.split(),
                *tiny_options(tiny, tmp_path / "run"),
                "train.processes=2",
                "train.device=cpu",
            )
        )
    wait_for_success(hosts, launchers)
    assert same_weights(weights(tmp_path / "run", 4), expected(4))


def start_torchrun(hosts: tuple[Host, Host], options: list[str]) -> list[subprocess.Popen[bytes]]:
    """Start a launcher on each host, and return both."""
    variables = {"NODES": "2", "RENDEZVOUS": f"{hosts[0].name}:{PORT}"}
    return [host.start(*TORCHRUN, *options, "train.processes=2", **variables) for host in hosts]


def test_torchrun_trains_on_two_hosts(
    hosts: tuple[Host, Host], expected: Weights, tiny: Path, tmp_path: Path
):
    wait_for_success(hosts, start_torchrun(hosts, tiny_options(tiny, tmp_path / "run")))
    assert same_weights(weights(tmp_path / "run", 4), expected(4))


@pytest.mark.parametrize("victim", [0, 1], ids=["rendezvous host", "other host"])
def test_torchrun_restarts_all_workers_when_one_is_killed(
    hosts: tuple[Host, Host], expected: Weights, tiny: Path, tmp_path: Path, victim: int
):
    options = ["checkpoint.every=10", "train.log_every=20"]
    launchers = start_torchrun(hosts, [*tiny_options(tiny, tmp_path / "run", 100), *options])
    # Polled often: the kill has to come before the short run is complete.
    poll: dict[str, Any] = {"processes": launchers, "interval": 0.02}
    wait_until(lambda: any(tmp_path.glob("run/checkpoints/step_*")), **poll)
    before = [workers(launcher) for launcher in launchers]
    (worker,) = before[victim]
    os.kill(worker, signal.SIGKILL)

    def all_are_new() -> bool:
        now = [workers(launcher) for launcher in launchers]
        return all(now) and not any(a & b for a, b in zip(now, before, strict=True))

    wait_until(all_are_new, **poll)
    wait_for_success(hosts, launchers)
    assert "continuing from" in "".join(host.log.read_text() for host in hosts)
    assert same_weights(weights(tmp_path / "run", 100), expected(100, *options))
