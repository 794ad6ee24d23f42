#!/usr/bin/env python
"""Works out what a run on thousands of processes does to its data and its network, on one core.

    python scripts/simulate_scale.py                      4,096 processes, a billion images, 100,000 shards
    python scripts/simulate_scale.py --shards 102400 --samples 1003520000     shards a multiple of the lanes

Simulated: which process reads which shard when, by the package's own `Order` and `Loader.plan`, for every
process and every shard. Measured: the time and the memory in which that order is found. Counted: the bytes
that processes exchange in a step, on a real step of each preset. Assumed: the speeds, which are options. No
shard is read, nothing is sent, and no GPU is used.
"""

import argparse
import json
import math
import time
import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from infogan_dist.config.load import read_config
from infogan_dist.config.schema import DataConfig
from infogan_dist.config.validate import check_batch
from infogan_dist.console import exit_on_user_error
from infogan_dist.data.loader import Loader
from infogan_dist.data.order import Order
from infogan_dist.data.shards import Manifest
from infogan_dist.model.latents import LatentSpec
from infogan_dist.model.networks import build_networks
from infogan_dist.runtime.distributed import Engine
from infogan_dist.training.state import initial_state
from infogan_dist.training.step import TrainStep

PRESETS = ("configs/mnist.yaml", "configs/mnist_tutorial.yaml")
PRESET_SHAPE, PRESET_BATCH = (1, 28, 28), 16  # of the step that is counted
FAR_STEP = 10_000_000
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes, DDP's defaults
FLOAT = 4  # bytes; gradients are fp32 under every mixed precision
VISIT = np.dtype([(name, np.int64) for name in ("process", "place", "shard", "begin", "fetch")])


@dataclass(frozen=True)
class Scale:
    """What is simulated: `passes` over a set from step 0, on nodes of `node` processes each."""

    processes: int
    node: int
    samples: int
    shards: int
    lanes: int
    batch: int
    passes: int
    image_bytes: int  # in its shard, and decoded

    @property
    def sizes(self) -> list[int]:
        """Samples of each shard, which differ by at most one, as `make_shards` writes them."""
        size, larger = divmod(self.samples, self.shards)
        return [size + 1] * larger + [size] * (self.shards - larger)

    @property
    def steps(self) -> int:
        """Steps of a pass, to the nearest whole one."""
        return round(self.samples / self.batch)


def walk(scale: Scale, order: Order) -> np.ndarray:
    """Every process's stays in shards over the passes, VISIT [V]; `fetch`: not in its memory already."""
    manifest = Manifest("simulated", (1, 1, scale.image_bytes), [], [])
    own, kept = scale.lanes // scale.processes, DataConfig().cache_mib * 2**20
    plans = [
        Loader(manifest, order, range(r * own, (r + 1) * own), cache_bytes=kept).plan(0)
        for r in range(scale.processes)
    ]
    heads, rows = [next(plan) for plan in plans], []
    for number in range(scale.passes):  # side by side, for the order holds only a few passes at a time
        end = (number + 1) * scale.steps * order.share
        for process, plan in enumerate(plans):
            while heads[process][0].begin < end:
                visit, fetch, _ = heads[process]
                rows.append((process, visit.place, visit.shard, visit.begin, fetch))
                heads[process] = next(plan)
    return np.array(rows, VISIT)


def _within(order: Order, visits: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of each stay's samples that steps `first` to `last` read: from, and up to."""
    sizes = order.sizes[visits["shard"]]
    low, high = (np.clip(step * order.share - visits["begin"], 0, sizes) for step in (first, last))
    return low, high


def times_seen(order: Order, visits: np.ndarray, first: int, last: int) -> np.ndarray:
    """How many samples steps `first` to `last` show 0, 1, 2, ... times, int64 [most + 1]."""
    low, high = _within(order, visits, first, last)
    shard, size = visits["shard"], order.sizes[visits["shard"]]
    times = np.bincount(shard[high - low == size], minlength=len(order.sizes))
    parts: dict[int, list[np.ndarray]] = {}
    for i in np.flatnonzero((high > low) & (high - low < size)):
        rows = order.within(int(visits["place"][i]))[low[i] : high[i]].astype(np.int32)
        parts.setdefault(int(shard[i]), []).append(rows)
    whole = np.ones(len(times), bool)
    whole[list(parts)] = False
    most = int(times.max()) + max(map(len, parts.values()), default=0)
    seen = np.bincount(times[whole], order.sizes[whole], most + 1).astype(np.int64)
    for number, rows in parts.items():  # only here samples of one shard are seen unequally often
        counts = times[number] + np.bincount(np.concatenate(rows), minlength=int(order.sizes[number]))
        seen += np.bincount(counts, minlength=len(seen))
    return np.trim_zeros(seen, "b")


def pass_figures(scale: Scale, order: Order, visits: np.ndarray, number: int) -> dict[str, Any]:
    """What processes and nodes read and fetch in a pass; a node's disk cache is one that never forgets."""
    first, last = number * scale.steps, (number + 1) * scale.steps
    process, shard, step = visits["process"], visits["shard"], visits["begin"] // order.share
    node = process // scale.node
    read = np.subtract(*_within(order, visits, first, last)[::-1])
    fetched = (visits["fetch"] > 0) & (step >= first) & (step < last)
    gigabytes = fetched * order.sizes[shard] * scale.image_bytes / 1e9
    whole = scale.samples * scale.image_bytes / 1e9
    pair = np.where(visits["fetch"] > 0, node * scale.shards + shard, -1)
    fresh = np.zeros(len(visits), bool)
    fresh[np.unique(pair, return_index=True)[1]] = True
    together = np.unique(np.stack([step, node])[:, fetched], axis=1, return_counts=True)[1]
    return {
        "samples_per_process": _spread(np.bincount(process, read, scale.processes)),
        "shards_per_process": _spread(np.bincount(process, read > 0, scale.processes)),
        "samples_by_times_seen": times_seen(order, visits, first, last).tolist(),
        "gigabytes_per_process": _spread(np.bincount(process, gigabytes, scale.processes)),
        "gigabytes_per_node": _spread(np.bincount(node, gigabytes)),
        "shards_by_times_fetched": np.bincount(np.bincount(shard[fetched], minlength=scale.shards)).tolist(),
        "sets_fetched": float(gigabytes.sum() / whole),
        "sets_fetched_with_disk_cache": float(gigabytes[fresh].sum() / whole),
        "most_fetches_in_a_step": int(np.bincount(step[fetched]).max(initial=0)),
        "most_fetches_in_a_step_of_a_node": int(together.max(initial=0)),
    }


def start_up(scale: Scale, equal: bool) -> dict[str, float]:
    """Seconds of a core in which a process finds its place at step 10 million, and megabytes it then holds.

    Args:
        equal: shards of one size; else one is larger by a sample, and passes have to be counted.
    """
    sizes = [scale.samples // scale.shards] * scale.shards
    sizes[0] += not equal

    tracemalloc.start()
    marks = [time.process_time()]
    order = Order(0, sizes, scale.lanes, scale.batch)
    marks.append(time.process_time())
    for lane in range(scale.lanes // scale.processes):
        next(order.visits(lane, FAR_STEP))
        marks.append(time.process_time())
    held = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    made, *lanes = np.diff(marks).tolist()
    return {"order_s": made, "all_lanes_s": sum(lanes), "slowest_lane_s": max(lanes), "megabytes": held}


def simulate(scale: Scale) -> dict[str, Any]:
    """All there is to say of the data's order."""
    order = Order(0, scale.sizes, scale.lanes, scale.batch)
    visits = walk(scale, order)
    return {
        "scale": vars(scale),
        "steps_per_pass": scale.steps,
        "steps_per_shard": int(order.sizes.min()) / order.share,
        "drift": order.drift(),
        "passes": {f"pass {n + 1}": pass_figures(scale, order, visits, n) for n in range(scale.passes)},
        "start_up": {"equal shards": start_up(scale, True), "unequal shards": start_up(scale, False)},
    }


def bucket_bytes(parameters: Iterable[nn.Parameter]) -> list[int]:
    """Bytes of the buckets in which DDP reduces a part's gradients; backward meets the last layers first."""
    buckets = [0]
    for parameter in reversed(list(parameters)):
        if buckets[-1] >= (FIRST_BUCKET if len(buckets) == 1 else BUCKET):
            buckets.append(0)
        buckets[-1] += parameter.numel() * FLOAT
    return buckets


def communication(preset: str) -> dict[str, Any]:
    """What a process exchanges in a step, counted on one real step of a preset for images of MNIST's shape.

    Returns:
        Per part (`d`, `g`) its parameters, its gradients' buckets in bytes and its reductions a step; the
        numbers that SyncBatchNorm gathers (`norm_gathered`: 2 C + 1 a forward) and reduces (`norm_reduced`:
        2 C a backward) and in how many exchanges; the bytes of batch-norm statistics that are averaged on
        the CPU; and the floating-point operations of a step for each image of the batch.
    """
    config = read_config([preset, f"train.batch_size={PRESET_BATCH}", "train.precision=fp32"])
    spec, engine = LatentSpec(config.noise, config.codes), Engine(config)
    networks = build_networks(config.networks, spec, PRESET_SHAPE, config.seed)
    state = initial_state(config, engine, networks)
    norms: dict[str, list[int]] = {"norm_gathered": [], "norm_reduced": []}

    def note(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        channels = norm.weight.numel()  # type: ignore[union-attr]
        norms["norm_gathered"].append(2 * channels + 1)
        if inputs[0].requires_grad:
            norms["norm_reduced"].append(2 * channels)

    for norm in (m for network in networks for m in network.modules() if isinstance(m, _BatchNorm)):
        norm.register_forward_hook(note)
    with FlopCounterMode(display=False) as counter:
        latents = spec.sample(config.seed, "latents", 0, PRESET_BATCH)
        TrainStep(config, spec, engine, state).run(torch.zeros(config.real_batch, *PRESET_SHAPE), latents)
    buffers = (b for network in networks for b in network.buffers() if b.is_floating_point())
    modules = {"d": state.d.module, "g": state.g.module}
    return {
        "parameters": {n: sum(p.numel() for p in m.parameters()) for n, m in modules.items()},
        "buckets": {n: bucket_bytes(m.parameters()) for n, m in modules.items()},
        "reductions": {"d": 2 if config.objective.d_updates == "split" else 1, "g": 1},
        "buffer_bytes": sum(b.numel() for b in buffers) * FLOAT,
        **{name: sum(numbers) for name, numbers in norms.items()},
        "norm_exchanges": sum(len(numbers) for numbers in norms.values()),
        "flops_per_image": counter.get_total_flops() / PRESET_BATCH,
    }


def exchange_ms(counted: dict, world: int, bandwidth: float, latency: float, tflops: float) -> dict:
    """Milliseconds a step for what `communication` counted, by rings: each of n processes sends 2 (n - 1) / n
    of what they reduce, and n - 1 times what one of them gives to be gathered.

    Args:
        bandwidth: GB/s of the ring's slowest link.
        latency: microseconds that an exchange takes however small it is.
        tflops: 10^12 operations/s of a process; `images_meanwhile` is how many it could compute a step for.
    """
    ring = 2 * (world - 1) / world
    rounds, buckets = counted["reductions"], counted["buckets"]
    sent = {f"{n}_gradients": rounds[n] * sum(b) * ring / bandwidth / 1e6 for n, b in buckets.items()}
    calls = sum(rounds[n] * len(b) for n, b in buckets.items()) + counted["norm_exchanges"]
    norm = FLOAT * (counted["norm_gathered"] * (world - 1) + counted["norm_reduced"] * ring)
    times = {**sent, "batch_norm": norm / bandwidth / 1e6, "latency": calls * latency / 1e3}
    return {**times, "images_meanwhile": sum(times.values()) * tflops * 1e9 / counted["flops_per_image"]}


def _spread(values: np.ndarray) -> dict[str, float]:
    least, most = float(values.min()), float(values.max())
    return {"min": least, "max": most, "ratio": most / least if least else math.inf}


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['min']:,.6g} to {value['max']:,.6g} (ratio {value['ratio']:.4f})"
    if isinstance(value, list):
        return ", ".join(f"{times}: {count:,}" for times, count in enumerate(value) if count)
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def _print_table(columns: dict[str, dict[str, Any]]) -> None:
    """A Markdown table of columns by name, which have the same rows."""
    rows = next(iter(columns.values()))
    cells = [[name.replace("_", " "), *(_shown(c[name]) for c in columns.values())] for name in rows]
    lines = [["", *columns], ["---"] * (len(columns) + 1), *cells]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines), end="\n\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, default, meaning in (
        ("--processes", 4096, "processes"),
        ("--nodes-of", 8, "processes of a node, which share a disk cache"),
        ("--samples", 10**9, "images of the set"),
        ("--shards", 100_000, "shards of the set, of sizes that differ by at most one"),
        ("--lanes", None, "data.lanes, a multiple of the processes [one each]"),
        ("--batch", 32_768, "train.batch_size, a multiple of the lanes"),
        ("--passes", 2, "passes to simulate, from step 0"),
        ("--image-bytes", 3 * 64 * 64, "bytes of an image, in its shard and decoded: assumed"),
        ("--bandwidth", 25.0, "GB/s of the slowest link between neighbouring processes: assumed"),
        ("--latency", 20.0, "microseconds that an exchange takes however small: assumed"),
        ("--tflops", 20.0, "10^12 operations/s that a process keeps up: assumed"),
    ):
        said = meaning if default is None else f"{meaning} [{default:,}]"
        kind = float if isinstance(default, float) else int
        parser.add_argument(flag, type=kind, default=default, metavar="N", help=said)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    return parser


def main(argv: list[str] | None = None) -> None:
    a = _parser().parse_args(argv)
    lanes = a.lanes or a.processes
    asked = f"data.lanes={lanes}", f"train.batch_size={a.batch}"
    with exit_on_user_error():
        check_batch(read_config([PRESETS[0], *asked]), a.processes)
    scale = Scale(a.processes, a.nodes_of, a.samples, a.shards, lanes, a.batch, a.passes, a.image_bytes)
    found, speeds = simulate(scale), (a.bandwidth, a.latency, a.tflops)
    _print_table(found["passes"])
    print(*(f"{n}: {_shown(found[n])}" for n in ("steps_per_pass", "steps_per_shard", "drift")), sep=", ")
    print(f"\nstep {FAR_STEP:,}:\n")
    _print_table(found["start_up"])
    found["communication"] = {preset: communication(preset) for preset in PRESETS}
    for preset, counted in found["communication"].items():
        print(f"{preset}, counted: {json.dumps(counted)}\nmilliseconds a step by processes:\n")
        _print_table({f"{n}": exchange_ms(counted, n, *speeds) for n in (8, 64, 1024)})
    if a.json:
        a.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
