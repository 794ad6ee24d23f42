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
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from infogan_dist.console import exit_on_user_error, set_up_logging
from infogan_dist.data.sources import Source
from infogan_dist.data.write import write_shard_set
from infogan_dist.errors import ConfigError, MachineError
from infogan_dist.launcher import launch_command
from infogan_dist.runtime.batch_norm import convert_to_global
from infogan_dist.runtime.device import check_precision

PRESET = "configs/quickstart.yaml"
COMPARED = ("d/loss", "g/loss", "grad_norm/d", "grad_norm/g")
FEW_STEPS = 3
# For comparing precisions. Weights of about 0.02 do not change, so that every step compares rounding at the
# same weights: Adam's first steps have the size of the learning rate even where a gradient is a rounding
# error, by which fp32 and fp64 differ by 1e-2 after two steps. Nor does an fp16 run, whose scaler skips
# updates that overflow, fall behind.
FIXED_WEIGHTS = ("optim.generator.lr=1e-30", "optim.discriminator.lr=1e-30")
MAX_STEPS = 24  # of an fp16 run whose gradients all overflow; each overflow halves its scale of 65,536
# The largest relative error of rounding a number: 2 to the minus number of significant bits.
ROUNDING = {"tf32": 2**-11, "fp16": 2**-11, "bf16": 2**-8}
# Both factors of a product are rounded, forward and backward, in 4 layers of G and 5 of D and Q. If all
# errors add up, a gradient differs by 36 of them: by 1.8e-2 in tf32 and fp16, and by 0.14 in bf16. Measured
# on a CPU: 6.3e-3 in fp16, 2.2e-2 in bf16, and 3.7e-3 with factors rounded as in TF32.
ROUNDINGS = 2 * 2 * 9
# In fp32, sums of up to 3,136 terms are rounded, in an order that depends on the device. Measured on a CPU:
# 1e-5 between fp32 and fp64. Reduced formats differ by more than this limit; a smaller difference would
# mean that they are not in effect.
FP32_LIMIT = 1e-4
Check = Callable[["Bench"], str]
Rows = list[dict[str, float]]


class CheckError(Exception):
    """A property does not hold on this machine."""


class Bench:
    """Trains runs in a temporary folder.

    Args:
        folder: contains the shard set and the runs.
        cpu: train on the CPU.

    Attributes:
        device: `cpu` or `cuda`.
        long_steps: number of steps of a long run.
    """

    def __init__(self, folder: Path, cpu: bool):
        self.folder, self.cpu, self.count = folder, cpu, 0
        self.device, self.long_steps = ("cpu", 20) if cpu else ("cuda", 300)
        pixels = np.random.default_rng(0).integers(0, 256, (512, 1, 28, 28), np.uint8)
        write_shard_set(Source("noise", len(pixels), [], lambda i: (pixels[i], -1)), folder / "set")

    def train(self, *overrides: str, processes: int = 1, run: Path | None = None, cpu: bool = False) -> Path:
        """Train a run.

        Args:
            overrides: `key=value`.
            processes: more than one are started by torchrun.
            run: the run folder; None: a new one.
            cpu: train on the CPU, whatever the other runs use.

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
        env = {**os.environ, **({"ACCELERATE_USE_CPU": "true"} if self.cpu or cpu else {})}
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


def read_metrics(run: Path) -> Rows:
    """Return the logged metrics of a run, one row per step."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def comparable_steps(a: Rows, b: Rows) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Return the steps of two runs in which no fp16 gradient overflowed, whose norm would count as 0."""

    def overflows(row: dict[str, float]) -> bool:
        return any(value > 0 for name, value in row.items() if name.startswith("overflow/"))

    return [(x, y) for x, y in zip(a, b, strict=True) if not overflows(x) and not overflows(y)]


def largest_difference(a: Rows, b: Rows) -> float:
    """Return the largest relative difference between the losses and gradient norms of two runs.

    Args:
        a, b: their metrics, at the same steps.

    Raises:
        CheckError: fp16 gradients overflowed in every step.
    """
    steps = comparable_steps(a, b)
    if not steps:
        raise CheckError(f"the gradients overflowed in each of {len(a)} steps")
    return max(abs(x[n] - y[n]) / max(abs(x[n]), 1e-9) for x, y in steps for n in COMPARED)


def difference_of_runs(a: Path, b: Path) -> float:
    """Return `largest_difference` of two run folders."""
    return largest_difference(read_metrics(a), read_metrics(b))


def check_limit(value: float, limit: float, minimum: float = 0.0) -> str:
    """Check that a difference is within its limits; return a text with them. Raises `CheckError`."""
    if not value <= limit:
        raise CheckError(f"differ by {value:.1e}, more than {limit:.1e}")
    if value < minimum:
        raise CheckError(f"differ by {value:.1e}, less than {minimum:.1e}: the precision is not in effect")
    return f"differ by {value:.1e} (limit {limit:.1e})"


def speed(run: Path) -> str:
    """Return a text with the speed of a run."""
    last = json.loads((run / "timing.jsonl").read_text().splitlines()[-1])
    return f"{last['images_per_second']:,.0f} images/s"


def check_speed(bench: Bench) -> str:
    """Train in single precision."""
    return speed(bench.train("train.steps=100", "train.log_every=50"))


def check_fp32(bench: Bench) -> str:
    """Check that fp32 is as exact as on the CPU, which TF32 is not."""
    options = [f"train.steps={FEW_STEPS}", "train.precision=fp32", *FIXED_WEIGHTS]
    return check_limit(difference_of_runs(bench.train(*options, cpu=True), bench.train(*options)), FP32_LIMIT)


def check_reduced_precision(bench: Bench, precision: str) -> str:
    """Check that a few steps are close to those in fp32 on the CPU, and that many steps stay finite."""
    options = [*FIXED_WEIGHTS, f"train.precision={precision}"]
    steps, reduced = FEW_STEPS, bench.train(f"train.steps={FEW_STEPS}", *options)
    rows = read_metrics(reduced)
    while not comparable_steps(rows, rows) and steps < MAX_STEPS:
        steps *= 2
        rows = read_metrics(bench.train(f"train.steps={steps}", *options, run=reduced))
    full = bench.train(f"train.steps={steps}", *FIXED_WEIGHTS, "train.precision=fp32", cpu=True)
    difference = largest_difference(read_metrics(full), rows)
    near = check_limit(difference, ROUNDINGS * ROUNDING[precision], FP32_LIMIT)
    long = bench.train_long(f"train.precision={precision}")
    # A value that is not finite is logged as a text.
    if not all(isinstance(v, (int, float)) for row in read_metrics(long) for v in row.values()):
        raise CheckError("a metric is not finite")
    return f"{near}; {bench.long_steps} steps finite, {speed(long)}"


def check_cpu_equals_gpu(bench: Bench) -> str:
    """Check that a run in fp64 has the same metrics on both devices."""
    options = [f"train.steps={FEW_STEPS}", "train.precision=fp64"]
    return check_limit(difference_of_runs(bench.train(*options), bench.train(*options, cpu=True)), 1e-9)


def check_compile(bench: Bench) -> str:
    """Check that compiled networks train like eager ones."""
    eager, compiled = (
        bench.train("train.steps=3", "train.precision=fp64", f"train.compile={c}") for c in ("false", "true")
    )
    long = bench.train_long("train.compile=true")
    return f"{check_limit(difference_of_runs(eager, compiled), 1e-9)}; {speed(long)}"


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


def check_global_batch_norm(bench: Bench) -> str:
    """Check that global batch norm on two processes that share the device (gloo) equals one process."""
    with tempfile.NamedTemporaryFile() as rendezvous:
        arguments = (rendezvous.name + ".store", bench.folder, bench.device)
        torch.multiprocessing.spawn(_reduce_half_batch, arguments, nprocs=2)
    halves = torch.load(bench.folder / "halves.pt", weights_only=True)
    network, images = _network_and_images(bench.device)
    network(images).square().mean().backward()
    expected = _gradient(network)
    return check_limit(float((halves - expected).abs().max() / expected.abs().max()), 1e-9)


def _network_and_images(device: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 4, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(1352, 1)
    )
    return network.double().to(device), torch.randn(16, 1, 28, 28).double().to(device)


def _gradient(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).cpu()


def _reduce_half_batch(rank: int, store: str, folder: Path, device: str) -> None:
    """Compute the gradient of one half of the batch; the first process writes the mean of both."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    network, images = _network_and_images(device)
    convert_to_global(network)
    network(images[rank * 8 : rank * 8 + 8]).square().mean().backward()
    gradient = _gradient(network)
    dist.all_reduce(gradient)
    if rank == 0:
        torch.save(gradient / 2, folder / "halves.pt")
    dist.destroy_process_group()


def check_two_processes(bench: Bench) -> str:
    """Check that two processes with half the batch each equal one with the full batch."""
    options = [f"train.steps={FEW_STEPS}", "train.precision=fp64"]
    one, two = (bench.train(*options, processes=n) for n in (1, 2))
    return f"{check_limit(difference_of_runs(one, two), 1e-9)}; resume {check_resume(bench, 2)}"


def available_checks(cpu: bool) -> dict[str, Check]:
    """Return the checks that are possible on this machine, by name."""
    checks: dict[str, Check] = {"fp32": check_speed}
    if not cpu:
        checks |= {"fp64 = CPU": check_cpu_equals_gpu, "fp32 = CPU": check_fp32}
    for precision in ("bf16",) if cpu else ROUNDING:
        with suppress(MachineError):  # an older GPU
            check_precision(precision)
            checks[precision] = partial(check_reduced_precision, precision=precision)
    checks |= {"compile = eager": check_compile, "resume": check_resume}
    if not cpu:
        checks["resume in fp16"] = check_resume_in_fp16
    checks["global batch norm"] = check_global_batch_norm
    if cpu or torch.cuda.device_count() > 1:
        checks["two processes = one"] = check_two_processes
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
