"""The bytes that processes exchange in a training step, counted on real steps, and the time for them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from infogan_dist.config.load import read_config
from infogan_dist.model.latents import LatentSpec
from infogan_dist.model.networks import build_networks
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
        `buffer_bytes`: bytes of the running statistics of batch norm.
        `norm_gathered`, `norm_reduced`, `norm_exchanges`: numbers that `nn.SyncBatchNorm` would gather
            (2 C + 1 in each forward of C channels) and reduce (2 C in each backward), and the number of these
            exchanges.
        `flops_per_image`: floating-point operations of the step divided by the batch size.
    """
    config = read_config([preset, f"train.batch_size={PRESET_BATCH}", "train.precision=fp32"])
    spec, engine = LatentSpec(config.noise, config.codes), Engine(config)
    networks = build_networks(config.networks, spec, PRESET_SHAPE, config.seed)
    state = initial_state(config, engine, networks)
    norms: dict[str, list[int]] = {"norm_gathered": [], "norm_reduced": []}

    def record(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        channels = norm.weight.numel()  # type: ignore[union-attr]
        norms["norm_gathered"].append(2 * channels + 1)
        if inputs[0].requires_grad:
            norms["norm_reduced"].append(2 * channels)

    for norm in (m for network in networks for m in network.modules() if isinstance(m, _BatchNorm)):
        norm.register_forward_hook(record)
    with FlopCounterMode(display=False) as counter:
        latents = spec.sample(config.seed, "latents", 0, PRESET_BATCH)
        TrainStep(config, spec, engine, state).run(torch.zeros(config.real_batch, *PRESET_SHAPE), latents)
    buffers = (b for network in networks for b in network.buffers() if b.is_floating_point())
    modules = {"d": state.d.module, "g": state.g.module}
    return {
        "parameters": {n: sum(p.numel() for p in m.parameters()) for n, m in modules.items()},
        "buckets": {n: bucket_bytes(m.parameters()) for n, m in modules.items()},
        "reductions": {"d": 2 if config.objective.split_updates else 1, "g": 1},
        "buffer_bytes": sum(b.numel() for b in buffers) * FLOAT,
        **{name: sum(numbers) for name, numbers in norms.items()},
        "norm_exchanges": sum(len(numbers) for numbers in norms.values()),
        "flops_per_image": counter.get_total_flops() / PRESET_BATCH,
    }


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

    Each process sends 2 (n - 1) / n times the bytes of a reduction, and n - 1 times the bytes that one
    process contributes to a gathering.

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
    norm_bytes = FLOAT * (counts["norm_gathered"] * (world - 1) + counts["norm_reduced"] * ring)
    times["batch_norm"] = norm_bytes / speeds.bandwidth / 1e6
    exchanges = sum(reductions[part] * len(sizes) for part, sizes in buckets.items())
    times["latency"] = (exchanges + counts["norm_exchanges"]) * speeds.latency / 1e3
    equivalent_images = sum(times.values()) * speeds.tflops * 1e9 / counts["flops_per_image"]
    return {**times, "equivalent_images": equivalent_images}
