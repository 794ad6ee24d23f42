"""Shared by the tests: small shard sets of real files, and command lines in real processes."""

import importlib
import json
import multiprocessing
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from infogan_dist.console import PACKAGE_LOGGER
from infogan_dist.creation.sources import Source, mnist5k
from infogan_dist.creation.write import write_shard_set
from infogan_dist.errors import EXIT_STOPPED

CONTEXT = multiprocessing.get_context("forkserver")
# The last two are imported by torch itself when the first optimizer is created.
CONTEXT.set_forkserver_preload(
    ["infogan_dist.training.loop", "infogan_dist.inference", "torch._dynamo", "torch._inductor"]
)
ROOT = Path(__file__).parent.parent
NETWORKS = ("generator", "discriminator", "recognition", "generator_ema")

# Small, without batch norm, with initial weights so large that its gradients are well above rounding errors.
TINY = """
noise: 6
codes:
  digit: {kind: categorical, size: 10}
  style: {kind: uniform, size: 2, weight: 0.1}
networks:
  generator:
    - {kind: dense, out: 32, then: [relu]}
    - {kind: dense, out: 8, grid: true, then: [relu]}
    - {kind: deconv, out: 8, stride: 2, then: [relu]}
    - {kind: deconv, stride: 2, then: [tanh]}
  discriminator:
    - {kind: conv, out: 8, stride: 2, then: [lrelu]}
    - {kind: conv, out: 8, stride: 2, then: [lrelu]}
  recognition:
    - {kind: dense, out: 16, then: [lrelu]}
  init_std: 0.1
train: {steps: 3, batch_size: 32, log_every: 1}
tracking: {trackers: [], progress: false}
"""


def images_source(count: int, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> Source:
    """Return random images; image i has its number in its first two pixels, so that it can be recognised."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = np.arange(count) // 256, np.arange(count) % 256
    return Source("images", count, ["even", "odd"], lambda i: (pixels[i], i % 2))


def number_of(image: Any) -> int:
    """Return the number of an image of `images_source`."""
    return int(image[0, 0, 0]) * 256 + int(image[0, 0, 1])


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several test workers a core: threads on shared cores wait for each other."""
    worker = getattr(config, "workerinput", None)
    cores = sorted(os.sched_getaffinity(0))
    if worker is not None and len(cores) > 1:
        number = int(worker["workerid"].removeprefix("gw"))
        os.sched_setaffinity(0, {cores[number % len(cores)]})


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Undo what a command line that runs within the test process sets up."""
    before = PACKAGE_LOGGER.handlers, PACKAGE_LOGGER.level, PACKAGE_LOGGER.propagate
    excepthook = sys.excepthook
    yield
    sys.excepthook = excepthook
    PACKAGE_LOGGER.handlers, level, PACKAGE_LOGGER.propagate = before
    PACKAGE_LOGGER.setLevel(level)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of 5,000 real digits."""
    out = tmp_path_factory.mktemp("digits")
    write_shard_set(mnist5k(), out)
    return out


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of 240 images of 8x8 in 8 shards."""
    out = tmp_path_factory.mktemp("small")
    write_shard_set(images_source(240), out, shards=8)
    return out


@pytest.fixture
def tiny(tmp_path: Path, small_set: Path) -> Path:
    """A config file of a small run on `small_set`."""
    path = tmp_path / "tiny.yaml"
    path.write_text(f"{TINY}\ndata: {{shards: {small_set}, workers: 0}}\nrun: {tmp_path}/run\n")
    return path


def environment() -> dict[str, str]:
    """Return the environment of a user's shell, without the test runner's variables and a W&B login."""
    drop = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "WANDB_API_KEY", "WANDB_MODE")
    return {**{k: v for k, v in os.environ.items() if k not in drop}, "CUDA_VISIBLE_DEVICES": ""}


@dataclass
class Done:
    """How a command line ended: its exit status (the first other than 0) and its output."""

    status: int
    stdout: str
    stderr: str


class Started:
    """A command line of the package, on one or more real processes.

    They are forked from a server that has imported the package, so that torch, which takes seconds, is
    imported once. As under torchrun, a process that fails ends the others.
    """

    def __init__(self, folder: Path, module: str, *arguments: Any, processes: int = 1):
        self.paths = [[folder / f"{i}.{kind}" for kind in ("out", "err")] for i in range(processes)]
        shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
        shared["MASTER_PORT"] = free_port()
        for path in (p for paths in self.paths for p in paths):
            path.touch()  # a process that is killed early writes nothing
        self.processes = []
        for rank, paths in enumerate(self.paths):
            ranked = {**shared, "RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
            env = {**environment(), **{k: str(v) for k, v in ranked.items()}}
            words = list(map(str, arguments))
            process = CONTEXT.Process(
                target=_run_main, args=(module, words, env, os.getcwd(), *map(str, paths))
            )
            process.start()
            self.processes.append(process)

    def send(self, number: int) -> None:
        for process in self.processes:
            os.kill(process.pid, number)

    def wait(self, timeout: float = 120) -> Done:
        running, status, deadline = list(self.processes), 0, time.monotonic() + timeout
        while running:
            connection.wait([p.sentinel for p in running], timeout=max(0.0, deadline - time.monotonic()))
            ended = [p for p in running if p.exitcode is not None]
            status = status or next((p.exitcode for p in ended if p.exitcode), 0) or 0
            running = [p for p in running if p not in ended]
            if status not in (0, EXIT_STOPPED) or not ended:
                for process in running:
                    process.kill()
            assert ended, f"nothing ended within {timeout} s: {self.paths[0][1].read_text()}"
        texts = ["".join(paths[i].read_text() for paths in self.paths) for i in (0, 1)]
        return Done(status, *texts)


def _run_main(module: str, words: list[str], env: dict[str, str], cwd: str, out: str, err: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    warnings.simplefilter("error")
    try:
        importlib.import_module(f"infogan_dist.{module}").main(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Runner(Protocol):
    def __call__(self, module: str, *arguments: Any, processes: int = 1, status: int = 0) -> Done: ...


@pytest.fixture
def run_module(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Run a command line to its end and check its exit status."""

    def run(module: str, *arguments: Any, processes: int = 1, status: int = 0) -> Done:
        done = Started(tmp_path_factory.mktemp("output"), module, *arguments, processes=processes).wait()
        assert done.status == status, done.stdout + done.stderr
        return done

    return run


def read_metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Return all weights and buffers of a run's checkpoint."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    return {f"{n}.{k}": v for n in NETWORKS for k, v in load_file(folder / f"{n}.safetensors").items()}


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether all weights are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def line_of(done: Done) -> str:
    """Return the only line on stderr of a command that refused its arguments."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]
