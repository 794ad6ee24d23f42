#!/usr/bin/env python
"""Check properties of training that only a machine with GPUs can check, and print a table.

    python scripts/gpu_check.py            all checks that the GPUs of this machine allow
    python scripts/gpu_check.py --cpu      the same checks on the CPU, to test the script itself

Each check trains short runs in separate processes on generated images, in a temporary folder. The exit status
is 1 if a check fails, and 2 if the machine has no GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from infogan_dist.console import exit_on_user_error, set_up_logging
from infogan_dist.data.sources import Source
from infogan_dist.data.write import write_shard_set
from infogan_dist.errors import ConfigError
from infogan_dist.launcher import launch_command

PRESET = "configs/quickstart.yaml"
NO_NORM = (  # for exact comparisons of numbers of processes on the CPU, where each has its own batch norm
    "networks.generator=[{kind: dense, out: 16, grid: true, then: [relu]},"
    "{kind: deconv, stride: 2, then: [tanh]}]",
    "networks.discriminator=[{kind: conv, out: 16, stride: 2, then: [lrelu]}]",
    "networks.recognition=[{kind: dense, out: 32, then: [lrelu]}]",
)
Check = Callable[["Bench"], str]


class CheckError(Exception):
    """A property does not hold on this machine."""


class Bench:
    """Trains runs in a temporary folder.

    Args:
        folder: contains the shard set and the runs.
        cpu: train on the CPU.

    Attributes:
        long_steps: number of steps of a long run.
    """

    def __init__(self, folder: Path, cpu: bool):
        self.folder, self.cpu, self.count = folder, cpu, 0
        self.long_steps = 20 if cpu else 300
        pixels = np.random.default_rng(0).integers(0, 256, (512, 1, 28, 28), np.uint8)
        write_shard_set(Source("noise", len(pixels), [], lambda i: (pixels[i], -1)), folder / "set")

    def train(self, *overrides: str, processes: int = 1, run: Path | None = None) -> Path:
        """Train a run.

        Args:
            overrides: `key=value`.
            processes: more than one are started by torchrun.
            run: the run folder; None: a new one.

        Returns:
            The run folder.

        Raises:
            CheckError: training failed.
        """
        self.count += 1
        run = run or self.folder / f"run{self.count}"
        options = [
            "train.log_every=1",
            f"run={run}",
            f"data.shards={self.folder}/set",
            "tracking.trackers=[]",
            "tracking.progress=false",
            *overrides,
        ]
        command = launch_command("-m", "infogan_dist.train", PRESET, *options, processes=processes)
        env = {**os.environ, **({"ACCELERATE_USE_CPU": "true"} if self.cpu else {})}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            # torchrun prints a summary of its own after the messages of the processes.
            message = next((line for line in lines if line.startswith("error: ")), lines[-1])
            raise CheckError(f"exit status {done.returncode}: {message}")
        return run

    def train_long(self, *overrides: str) -> Path:
        """Train a run of `long_steps`, and return its folder."""
        return self.train(
            f"train.steps={self.long_steps}", f"train.log_every={self.long_steps // 2}", *overrides
        )


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Return the logged metrics of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def largest_difference(a: Path, b: Path) -> float:
    """Return the largest relative difference between the losses and gradient norms of two runs."""
    names = ("d/loss", "g/loss", "grad_norm/d", "grad_norm/g")
    rows = zip(read_metrics(a), read_metrics(b), strict=True)
    return max(abs(x[n] - y[n]) / max(abs(x[n]), 1e-9) for x, y in rows for n in names)


def check_limit(value: float, limit: float) -> str:
    """Check that a difference does not exceed a limit; return a text with both. Raises `CheckError`."""
    if not value <= limit:
        raise CheckError(f"differ by {value:.1e}, more than {limit:.0e}")
    return f"differ by {value:.1e} (limit {limit:.0e})"


def speed(run: Path) -> str:
    """Return a text with the speed of a run."""
    last = json.loads((run / "timing.jsonl").read_text().splitlines()[-1])
    return f"{last['images_per_second']:,.0f} images/s"


def check_fp32(bench: Bench) -> str:
    """Train in single precision."""
    return speed(bench.train("train.steps=100", "train.log_every=50"))


def check_bf16(bench: Bench) -> str:
    return check_mixed_precision(bench, "bf16")


def check_fp16(bench: Bench) -> str:
    return check_mixed_precision(bench, "fp16")


def check_mixed_precision(bench: Bench, precision: str) -> str:
    """Check that a few steps are close to those in fp32, and that many steps stay finite."""
    full, low = (bench.train("train.steps=3", f"train.precision={p}") for p in ("fp32", precision))
    near = check_limit(largest_difference(full, low), 0.1)
    long = bench.train_long(f"train.precision={precision}")
    # A value that is not finite is logged as a text.
    if not all(isinstance(v, (int, float)) for row in read_metrics(long) for v in row.values()):
        raise CheckError("a metric is not finite")
    return f"{near}; {bench.long_steps} steps finite, {speed(long)}"


def check_cpu_equals_gpu(bench: Bench) -> str:
    """Check that a run in fp64 has the same metrics on both devices."""
    on_device = bench.train("train.steps=3", "train.precision=fp64")
    cpu, bench.cpu = bench.cpu, True
    on_cpu = bench.train("train.steps=3", "train.precision=fp64")
    bench.cpu = cpu
    return check_limit(largest_difference(on_device, on_cpu), 1e-9)


def check_compile(bench: Bench) -> str:
    """Check that compiled networks train like eager ones."""
    eager, compiled = (
        bench.train("train.steps=3", "train.precision=fp64", f"train.compile={c}") for c in ("false", "true")
    )
    long = bench.train_long("train.compile=true")
    return f"{check_limit(largest_difference(eager, compiled), 1e-9)}; {speed(long)}"


def check_resume(bench: Bench, processes: int = 1, *overrides: str) -> str:
    """Check that a resumed run has the same metrics and weights as an uninterrupted one, bit for bit."""
    uninterrupted = bench.train("train.steps=9", *overrides, processes=processes)
    resumed = bench.train("train.steps=4", *overrides, processes=processes)
    bench.train("train.steps=9", *overrides, processes=processes, run=resumed)
    if (uninterrupted / "metrics.jsonl").read_bytes() != (resumed / "metrics.jsonl").read_bytes():
        raise CheckError("metrics.jsonl differs")
    for file in sorted((uninterrupted / "checkpoints" / "step_00000009").glob("*.safetensors")):
        other = load_file(resumed / "checkpoints" / "step_00000009" / file.name)
        if not all(torch.equal(v, other[k]) for k, v in load_file(file).items()):
            raise CheckError(f"{file.name} differs")
    return "bit for bit"


def check_resume_in_fp16(bench: Bench) -> str:
    return check_resume(bench, 1, "train.precision=fp16")


def check_sync_batch_norm(bench: Bench) -> str:
    """Check that SyncBatchNorm on two processes that share a GPU (gloo) equals batch norm on one process."""
    with tempfile.NamedTemporaryFile() as rendezvous:
        torch.multiprocessing.spawn(_reduce_half_batch, (rendezvous.name + ".store", bench.folder), nprocs=2)
    halves = torch.load(bench.folder / "halves.pt", weights_only=True)
    network, images = _network_and_images()
    network(images.cuda()).square().mean().backward()
    expected = _gradient(network).cpu()
    return check_limit(float((halves - expected).abs().max() / expected.abs().max()), 1e-9)


def _network_and_images() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 4, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(1352, 1)
    )
    return network.double().cuda(), torch.randn(16, 1, 28, 28).double()


def _gradient(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def _reduce_half_batch(rank: int, store: str, folder: Path) -> None:
    """Compute the gradient of one half of the batch; the first process writes the mean of both."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    network, images = _network_and_images()
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network(images[rank * 8 : rank * 8 + 8].cuda()).square().mean().backward()
    gradient = _gradient(network).cpu()
    dist.all_reduce(gradient)
    if rank == 0:
        torch.save(gradient / 2, folder / "halves.pt")
    dist.destroy_process_group()


def check_two_gpus(bench: Bench) -> str:
    """Check that two GPUs with half the batch each (NCCL, SyncBatchNorm) equal one with the full batch."""
    options = ["train.steps=3", "train.precision=fp64"]
    one, two = (bench.train(*options, processes=n) for n in (1, 2))
    return f"{check_limit(largest_difference(one, two), 1e-7)}; resume {check_resume(bench, 2)}"


def check_two_processes_on_cpu(bench: Bench) -> str:
    """Check that two processes with half the batch each equal one with the full batch."""
    options = ["train.steps=3", "train.precision=fp64", *NO_NORM]
    one, two = (bench.train(*options, processes=n) for n in (1, 2))
    return f"{check_limit(largest_difference(one, two), 1e-9)}; resume {check_resume(bench, 2)}"


def available_checks(cpu: bool) -> dict[str, Check]:
    """Return the checks that are possible on this machine, by name."""
    checks: dict[str, Check] = {
        "fp32": check_fp32,
        "bf16": check_bf16,
        "compile = eager": check_compile,
        "resume": check_resume,
    }
    if cpu:
        return {**checks, "two processes = one (gloo)": check_two_processes_on_cpu}
    checks |= {
        "fp16": check_fp16,
        "resume in fp16": check_resume_in_fp16,
        "CPU = GPU": check_cpu_equals_gpu,
        "SyncBatchNorm": check_sync_batch_norm,
    }
    if torch.cuda.device_count() > 1:
        checks["two GPUs = one (NCCL)"] = check_two_gpus
    return checks


def devices(cpu: bool) -> str:
    """Return the names of the devices. Raises `ConfigError` if a GPU is required and missing."""
    if cpu:
        return "CPU"
    if not torch.cuda.is_available():
        raise ConfigError(
            "gpu_check: this machine has no GPU, so nothing was checked; use --cpu to test the script itself"
        )
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu", action="store_true", help="run the checks on the CPU, to test the script")
    cpu = parser.parse_args().cpu
    set_up_logging(quiet=True)
    with exit_on_user_error():
        names = devices(cpu)
    print(f"torch {torch.__version__} on {names}\n\n| check | result | |\n| --- | --- | --- |")
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), cpu)
        for name, check in available_checks(cpu).items():
            try:
                observation, verdict = check(bench), "ok"
            except CheckError as error:
                observation, verdict, failures = str(error), "FAILED", failures + 1
            print(f"| {name} | {verdict} | {observation} |", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
