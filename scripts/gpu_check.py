#!/usr/bin/env python
"""Checks on this machine's GPUs what a machine without one cannot, and prints a table.

    python scripts/gpu_check.py            all that the GPUs here allow
    python scripts/gpu_check.py --cpu      the same checks on the CPU, to try the script itself

Each check trains short runs in processes of their own on generated images, in a temporary folder. Exit status
1 if a check fails, 2 if there is no GPU.
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

from infogan_dist.data.sources import Source
from infogan_dist.data.write import write_shard_set

PRESET = "configs/quickstart.yaml"
NO_NORM = (  # for exact comparisons between numbers of processes where batch norm is each process's own
    "networks.generator=[{kind: dense, out: 16, grid: true, then: [relu]},"
    "{kind: deconv, stride: 2, then: [tanh]}]",
    "networks.discriminator=[{kind: conv, out: 16, stride: 2, then: [lrelu]}]",
    "networks.recognition=[{kind: dense, out: 32, then: [lrelu]}]",
)
Check = Callable[["Bench"], str]


class CheckError(Exception):
    """A check's law does not hold here."""


class Bench:
    """Trains runs in a temporary folder and compares them."""

    def __init__(self, folder: Path, cpu: bool):
        self.folder, self.cpu, self.count = folder, cpu, 0
        self.long = 20 if cpu else 300  # steps of a long run
        pixels = np.random.default_rng(0).integers(0, 256, (512, 1, 28, 28), np.uint8)
        write_shard_set(Source("noise", len(pixels), [], lambda i: (pixels[i], -1)), folder / "set")

    def train(self, *overrides: str, processes: int = 1, run: Path | None = None) -> Path:
        """Trains a run; returns its folder."""
        self.count += 1
        run = run or self.folder / f"run{self.count}"
        fixed = [
            f"run={run}",
            f"data.shards={self.folder}/set",
            "tracking.trackers=[]",
            "tracking.progress=false",
        ]
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        env = {**os.environ, **({"ACCELERATE_USE_CPU": "true"} if self.cpu else {})}
        words = [*launcher, "-m", "infogan_dist.train", PRESET, "train.log_every=1", *fixed, *overrides]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CheckError(f"exit status {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
        return run


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def difference(a: Path, b: Path) -> float:
    """The largest relative difference of the losses and gradient norms of two runs."""
    names = ("d/loss", "g/loss", "grad_norm/d", "grad_norm/g")
    rows = zip(metrics(a), metrics(b), strict=True)
    return max(abs(x[n] - y[n]) / max(abs(x[n]), 1e-9) for x, y in rows for n in names)


def within(value: float, limit: float) -> str:
    if not value <= limit:
        raise CheckError(f"differ by {value:.1e}, more than {limit:.0e}")
    return f"differ by {value:.1e} (limit {limit:.0e})"


def rate(run: Path) -> str:
    last = json.loads((run / "timing.jsonl").read_text().splitlines()[-1])
    return f"{last['images_per_second']:,.0f} images/s"


def single_precision(bench: Bench) -> str:
    return rate(bench.train("train.steps=100", "train.log_every=50"))


def bf16(bench: Bench) -> str:
    return mixed(bench, "bf16")


def fp16(bench: Bench) -> str:
    return mixed(bench, "fp16")


def mixed(bench: Bench, precision: str) -> str:
    """Near fp32 at first, finite for long."""
    full, low = (bench.train("train.steps=3", f"train.precision={p}") for p in ("fp32", precision))
    near = within(difference(full, low), 0.1)
    long = bench.train(
        f"train.steps={bench.long}", f"train.log_every={bench.long // 2}", f"train.precision={precision}"
    )
    if not all(isinstance(v, (int, float)) for row in metrics(long) for v in row.values()):
        raise CheckError("a metric is not finite")
    return f"{near}; {bench.long} steps finite, {rate(long)}"


def cpu_and_gpu(bench: Bench) -> str:
    """The run is a function of its config, not of the device."""
    here = bench.train("train.steps=3", "train.precision=fp64")
    cpu, bench.cpu = bench.cpu, True
    there = bench.train("train.steps=3", "train.precision=fp64")
    bench.cpu = cpu
    return within(difference(here, there), 1e-9)


def compiled(bench: Bench) -> str:
    runs = [
        bench.train("train.steps=3", "train.precision=fp64", f"train.compile={c}") for c in ("false", "true")
    ]
    speed = bench.train(
        f"train.steps={bench.long}", f"train.log_every={bench.long // 2}", "train.compile=true"
    )
    return f"{within(difference(*runs), 1e-9)}; {rate(speed)}"


def resume(bench: Bench, processes: int = 1, *overrides: str) -> str:
    through = bench.train("train.steps=9", *overrides, processes=processes)
    halting = bench.train("train.steps=4", *overrides, processes=processes)
    bench.train("train.steps=9", *overrides, processes=processes, run=halting)
    if (through / "metrics.jsonl").read_bytes() != (halting / "metrics.jsonl").read_bytes():
        raise CheckError("metrics.jsonl differs")
    for file in sorted((through / "checkpoints" / "step_00000009").glob("*.safetensors")):
        other = load_file(halting / "checkpoints" / "step_00000009" / file.name)
        if not all(torch.equal(v, other[k]) for k, v in load_file(file).items()):
            raise CheckError(f"{file.name} differs")
    return "bit for bit"


def resume_fp16(bench: Bench) -> str:
    return resume(bench, 1, "train.precision=fp16")


def sync_batch_norm(bench: Bench) -> str:
    """Two processes on one GPU, by gloo, against the whole batch on one."""
    with tempfile.NamedTemporaryFile() as meeting:
        torch.multiprocessing.spawn(_half_batch, (meeting.name + ".store", bench.folder), nprocs=2)
    halves = torch.load(bench.folder / "halves.pt", weights_only=True)
    network, images = _normed()
    network(images.cuda()).square().mean().backward()
    whole = _gradient(network).cpu()
    return within(float((halves - whole).abs().max() / whole.abs().max()), 1e-9)


def _normed() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 4, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(1352, 1)
    )
    return network.double().cuda(), torch.randn(16, 1, 28, 28).double()


def _gradient(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def _half_batch(rank: int, store: str, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    network, images = _normed()
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network(images[rank * 8 : rank * 8 + 8].cuda()).square().mean().backward()
    gradient = _gradient(network).cpu()
    dist.all_reduce(gradient)
    if rank == 0:
        torch.save(gradient / 2, folder / "halves.pt")
    dist.destroy_process_group()


def two_gpus(bench: Bench) -> str:
    """NCCL and SyncBatchNorm: two GPUs on half the batch each equal one on the whole."""
    options = ["train.steps=3", "train.precision=fp64"]
    one, two = (bench.train(*options, processes=n) for n in (1, 2))
    return f"{within(difference(one, two), 1e-7)}; resume {resume(bench, 2)}"


def two_processes_on_cpu(bench: Bench) -> str:
    options = ["train.steps=3", "train.precision=fp64", *NO_NORM]
    one, two = (bench.train(*options, processes=n) for n in (1, 2))
    return f"{within(difference(one, two), 1e-9)}; resume {resume(bench, 2)}"


def checks(cpu: bool) -> dict[str, Check]:
    """What can be checked here, by name."""
    table: dict[str, Check] = {
        "fp32": single_precision,
        "bf16": bf16,
        "compile = eager": compiled,
        "resume": resume,
    }
    if cpu:
        return {**table, "two processes = one (gloo)": two_processes_on_cpu}
    table |= {
        "fp16": fp16,
        "resume in fp16": resume_fp16,
        "CPU = GPU": cpu_and_gpu,
        "SyncBatchNorm": sync_batch_norm,
    }
    if torch.cuda.device_count() > 1:
        table["two GPUs = one (NCCL)"] = two_gpus
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cpu", action="store_true", help="run the checks on the CPU, to try the script itself"
    )
    cpu = parser.parse_args().cpu
    if not cpu and not torch.cuda.is_available():
        print("no GPU here: nothing was checked (--cpu tries the script itself)", file=sys.stderr)
        return 2
    devices = (
        "CPU" if cpu else ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    )
    print(f"torch {torch.__version__} on {devices}\n\n| check | result | |\n| --- | --- | --- |")
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), cpu)
        for name, check in checks(cpu).items():
            try:
                said, verdict = check(bench), "ok"
            except CheckError as error:
                said, verdict, failures = str(error), "FAILED", failures + 1
            print(f"| {name} | {verdict} | {said} |", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
