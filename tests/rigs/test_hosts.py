"""Several hosts, by accelerate and by torchrun: the same weights, bit for bit, as one host's processes."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import Runner, same_weights, weights
from tests.rigs.hosts import Host, two_hosts
from tests.test_launch import LAUNCH, command_in, tiny_options

pytestmark = pytest.mark.rig
Weights = Callable[..., dict[str, torch.Tensor]]
PORT = "29400"  # of the hosts' own, where nobody else listens
TORCHRUN = command_in(LAUNCH / "torchrun.sh")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    with two_hosts(tmp_path) as both:
        yield both


@pytest.fixture
def expected(run_module: Runner, tiny: Path, tmp_path: Path) -> Weights:
    """The weights of two processes on one host."""

    def run(steps: int, *options: str) -> dict[str, torch.Tensor]:
        words = [*tiny_options(tiny, tmp_path / "one_host", steps), *options]
        run_module("train", "configs/mnist.yaml", *words, processes=2)
        return weights(tmp_path / "one_host", steps)

    return run


def finish(hosts: tuple[Host, Host], launchers: list[subprocess.Popen[bytes]]) -> None:
    for launcher in launchers:
        launcher.wait(timeout=300)
    said = "".join(host.log.read_text() for host in hosts)
    assert [launcher.returncode for launcher in launchers] == [0, 0], said


def workers(launcher: subprocess.Popen[bytes]) -> set[int]:
    """The processes that a launcher has started."""
    return set(map(int, Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()))


def until(
    reached: Callable[[], bool], launchers: list[subprocess.Popen[bytes]], timeout: float = 240
) -> None:
    deadline = time.monotonic() + timeout
    while not reached():
        assert all(launcher.poll() is None for launcher in launchers), "ended too early"
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.02)


def test_accelerate_trains_on_two_hosts(
    hosts: tuple[Host, Host], expected: Weights, tiny: Path, tmp_path: Path
):
    head = shlex.join(command_in(LAUNCH / "accelerate" / "multi_node.yaml"))
    assert "--machine_rank 0 --main_process_ip HOST" in head
    launchers = []
    for rank, host in enumerate(hosts):
        here = head.replace("_rank 0", f"_rank {rank}").replace("HOST", f"{hosts[0].name} --num_processes 2")
        launchers.append(
            host.start(*here.split(), *tiny_options(tiny, tmp_path / "run"), "train.processes=2")
        )
    finish(hosts, launchers)
    assert same_weights(weights(tmp_path / "run", 4), expected(4))


def torchrun(hosts: tuple[Host, Host], options: list[str]) -> list[subprocess.Popen[bytes]]:
    variables = {"NODES": "2", "RENDEZVOUS": f"{hosts[0].name}:{PORT}"}
    return [host.start(*TORCHRUN, *options, "train.processes=2", **variables) for host in hosts]


def test_torchrun_trains_on_two_hosts(
    hosts: tuple[Host, Host], expected: Weights, tiny: Path, tmp_path: Path
):
    finish(hosts, torchrun(hosts, tiny_options(tiny, tmp_path / "run")))
    assert same_weights(weights(tmp_path / "run", 4), expected(4))


@pytest.mark.parametrize("victim", [0, 1], ids=["where they meet", "the other"])
def test_torchrun_starts_all_workers_again_when_one_is_killed(
    hosts: tuple[Host, Host], expected: Weights, tiny: Path, tmp_path: Path, victim: int
):
    often = ["checkpoint.every=10", "train.log_every=20"]
    launchers = torchrun(hosts, [*tiny_options(tiny, tmp_path / "run", 100), *often])
    until(lambda: any(tmp_path.glob("run/checkpoints/step_*")), launchers)
    before = [workers(launcher) for launcher in launchers]
    (killed,) = before[victim]
    os.kill(killed, signal.SIGKILL)

    def all_are_new() -> bool:
        now = [workers(launcher) for launcher in launchers]
        return all(now) and not any(a & b for a, b in zip(now, before, strict=True))

    until(all_are_new, launchers)
    finish(hosts, launchers)
    assert "going on from" in "".join(host.log.read_text() for host in hosts)
    assert same_weights(weights(tmp_path / "run", 100), expected(100, *often))
