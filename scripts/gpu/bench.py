"""Short runs in a temporary folder, and comparisons of them."""

import itertools
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from infogan_dist.creation.source import Source
from infogan_dist.creation.write import write_shard_set
from infogan_dist.errors import ConfigError
from infogan_dist.launcher import launch_command
from infogan_dist.runtime import checkpoint

PRESET = "configs/mnist5k.yaml"
COMPARED = ("d/loss", "g/loss", "grad_norm/d", "grad_norm/g")
Rows = list[dict[str, float]]


class CheckError(Exception):
    """A property does not hold on this machine."""


class Bench:
    """Trains runs in a temporary folder, in processes of their own; threads may share it.

    Args:
        folder: contains the shard set and the runs.
        cpu: train on the CPU.
        images: number of generated images of the shard set.

    Attributes:
        device: `cpu` or `cuda`.
        long_steps: number of steps of a long run.
    """

    def __init__(self, folder: Path, cpu: bool, images: int = 512):
        self.folder, self.cpu, self._numbers = folder, cpu, itertools.count()
        self.device, self.long_steps = ("cpu", 20) if cpu else ("cuda", 300)
        pixels = np.random.default_rng(0).integers(0, 256, (images, 1, 28, 28), np.uint8)
        write_shard_set(Source("noise", images, [], lambda i: (pixels[i], -1)), folder / "set")

    def train(
        self,
        *overrides: str,
        preset: str = PRESET,
        processes: int = 1,
        run: Path | None = None,
        cpu: bool = False,
    ) -> Path:
        """Train a run, by default one that logs each step.

        Args:
            overrides: `key=value`.
            preset: the config file.
            processes: more than one are started by torchrun.
            run: the run folder; None: a new one.
            cpu: train on the CPU, whatever the other runs use.

        Returns:
            The run folder.

        Raises:
            CheckError: training failed.
        """
        run = run or self.new_run()
        words = self.arguments(run, *overrides, preset=preset)
        command = launch_command("-m", "infogan_dist.train", *words, processes=processes)
        env = {**os.environ, **({"ACCELERATE_USE_CPU": "true"} if self.cpu or cpu else {})}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            # torchrun prints a summary of its own after the messages of the processes.
            message = next((line for line in lines if line.startswith("error: ")), lines[-1])
            raise CheckError(f"exit status {done.returncode}: {message}")
        return run

    def new_run(self) -> Path:
        """Return the folder of a run that does not exist yet."""
        return self.folder / f"run{next(self._numbers)}"

    def arguments(self, run: Path, *overrides: str, preset: str = PRESET) -> list[str]:
        """Return the arguments of a training command: config file and overrides."""
        return [
            preset,
            "train.log_every=1",
            f"run={run}",
            f"data.shards={self.folder}/set",
            "tracking.trackers=[]",
            "tracking.progress=false",
            *overrides,
        ]

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


def largest_weight_difference(a: Path, b: Path) -> float:
    """Return the largest relative difference between the tensors of two runs' last checkpoints."""
    first, second = (checkpoint.require(run).path for run in (a, b))
    differences = []
    for file in sorted(first.glob("*.safetensors")):
        other = load_file(second / file.name)
        for name, value in load_file(file).items():
            x, y = value.double(), other[name].double()
            differences.append(float((x - y).norm() / x.norm().clamp(min=1e-9)))
    return max(differences)


def check_same_bits(a: Path, b: Path) -> str:
    """Check that two runs have the same metrics and last weights, bit for bit. Raises `CheckError`."""
    if (a / "metrics.jsonl").read_bytes() != (b / "metrics.jsonl").read_bytes():
        raise CheckError("metrics.jsonl differs")
    first, second = (checkpoint.require(run).path for run in (a, b))
    for file in sorted(first.glob("*.safetensors")):
        other = load_file(second / file.name)
        if not all(torch.equal(value, other[name]) for name, value in load_file(file).items()):
            raise CheckError(f"{file.name} differs")
    return "bit for bit"


def device_names(cpu: bool) -> str:
    """Return the names of this machine's GPUs, or `CPU`. Raises `ConfigError` if a GPU is missing."""
    if cpu:
        return "CPU"
    if not torch.cuda.is_available():
        raise ConfigError("this machine has no GPU; use --cpu to test the script itself")
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
