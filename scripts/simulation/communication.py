"""The bytes that processes exchange in a training step, counted on real steps, and the time for them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from infogan_dist.config.load import read_config
from infogan_dist.model.latents import LatentSpec
from infogan_dist.model.networks import build_networks
from infogan_dist.runtime.batch_norm import convert_to_global
from infogan_dist.runtime.distributed import Engine
from infogan_dist.training.state import initial_state
from infogan_dist.training.step import TrainStep

PRESETS = ("configs/mnist.yaml", "configs/mnist_tutorial.yaml")
PRESET_SHAPE, PRESET_BATCH = (1, 28, 28), 16  # of the step that is counted
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes; the defaults of DDP
FLOAT = 4  # bytes; gradients are fp32 under every mixed precision

Counts = dict[str, Any]


@dataclass(frozen=True)
class Speeds:
    """Assumed speeds of a cluster.

    Attributes:
        bandwidth: GB/s of the slowest link of a ring of all processes.
        latency: microseconds that an exchange takes, however small it is.
        tflops: 10^12 operations/s of a process.
    """

    bandwidth: float
    latency: float
    tflops: float


def count_communication(preset: str) -> Counts:
    """Count what a process exchanges, on one real step of a preset with images of MNIST's shape.

    Returns:
        `parameters`, `buckets`, `reductions`: by part (`d`, `g`) the number of parameters, the bytes of the
            buckets of gradients, and the number of reductions in a step.
        `norm_exchanges`, `norm_bytes`: the number of all-reduces of batch norm, and their bytes in total.
        `r1_norm_exchanges`, `r1_norm_bytes`: how many more there are with R1, and their bytes.
        `flops_per_image`: floating-point operations of the step divided by the batch size.
    """
    step, step_with_r1 = create_step(preset), create_step(preset, "objective.r1=1")
    with FlopCounterMode(display=False) as counter, recorded_all_reduces() as sizes:
        run_step(step)
    # The counter of operations does not support R1's gradient within the loss.
    with recorded_all_reduces() as sizes_with_r1:
        run_step(step_with_r1)
    modules = {"d": step.state.d.module, "g": step.state.g.module}
    return {
        "parameters": {n: sum(p.numel() for p in m.parameters()) for n, m in modules.items()},
        "buckets": {n: bucket_bytes(m.parameters()) for n, m in modules.items()},
        "reductions": {"d": 2 if step.objective.split_updates else 1, "g": 1},
        "norm_exchanges": len(sizes),
        "norm_bytes": sum(sizes),
        "r1_norm_exchanges": len(sizes_with_r1) - len(sizes),
        "r1_norm_bytes": sum(sizes_with_r1) - sum(sizes),
        "flops_per_image": counter.get_total_flops() / PRESET_BATCH,
    }


def create_step(preset: str, *overrides: str) -> TrainStep:
    """Return the step of a preset whose batch norm is that of several processes."""
    config = read_config([preset, f"train.batch_size={PRESET_BATCH}", "train.precision=fp32", *overrides])
    spec, engine = LatentSpec(config.noise, config.codes), Engine(config)
    networks = build_networks(config.networks, spec, PRESET_SHAPE, config.seed)
    for network in networks:
        convert_to_global(network)  # The engine of a single process does not.
    return TrainStep(config, spec, engine, initial_state(config, engine, networks))


def run_step(step: TrainStep) -> None:
    """Do a step on images of zeros."""
    images = torch.zeros(step.config.real_batch, *PRESET_SHAPE)
    step.run(images, step.spec.sample(step.config.seed, "latents", 0, PRESET_BATCH))


@contextmanager
def recorded_all_reduces() -> Iterator[list[int]]:
    """Within the block, record the bytes of each all-reduce, as in a group of one process.

    The sum over one process is the tensor itself, so that nothing has to be sent and no group is needed.
    """
    sizes: list[int] = []

    def all_reduce(values: Tensor) -> None:
        sizes.append(values.nbytes)

    with patch.multiple(dist, all_reduce=all_reduce, get_world_size=lambda: 1):
        yield sizes


def bucket_bytes(parameters: Iterable[nn.Parameter]) -> list[int]:
    """Return the bytes of the buckets in which DDP reduces gradients, the last layers first."""
    buckets = [0]
    for parameter in reversed(list(parameters)):
        if buckets[-1] >= (FIRST_BUCKET if len(buckets) == 1 else BUCKET):
            buckets.append(0)
        buckets[-1] += parameter.numel() * FLOAT
    return buckets


def exchange_times(counts: Counts, world: int, speeds: Speeds) -> dict[str, float]:
    """Compute how long the exchanges of a step take in a ring of n processes.

    Each process sends 2 (n - 1) / n times the bytes of an exchange, all of which are sums.

    Args:
        counts: of `count_communication`.
        world: number of processes.
        speeds: of the cluster.

    Returns:
        Milliseconds in a step by kind of exchange, and `equivalent_images`: the number of images that a
        process could compute in their sum.
    """
    ring = 2 * (world - 1) / world
    reductions, buckets = counts["reductions"], counts["buckets"]
    times = {
        f"{part}_gradients": reductions[part] * sum(sizes) * ring / speeds.bandwidth / 1e6
        for part, sizes in buckets.items()
    }
    times["batch_norm"] = counts["norm_bytes"] * ring / speeds.bandwidth / 1e6
    exchanges = sum(reductions[part] * len(sizes) for part, sizes in buckets.items())
    times["latency"] = (exchanges + counts["norm_exchanges"]) * speeds.latency / 1e3
    equivalent_images = sum(times.values()) * speeds.tflops * 1e9 / counts["flops_per_image"]
    return {**times, "equivalent_images": equivalent_images}
