"""The shards and samples that each process of a large run reads, computed from the order of the data."""

import math
import time
import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np

from infogan_dist.config.schema import DataConfig
from infogan_dist.data.loader import Loader
from infogan_dist.data.order import Order
from infogan_dist.data.shards import Manifest

FAR_STEP = 10_000_000  # at which a start is timed
SPAN = np.dtype([(name, np.int64) for name in ("process", "place", "shard", "begin", "is_read")])

Figures = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """The size of a simulated run.

    Attributes:
        processes: number of processes.
        processes_per_node: number of processes that share a disk cache.
        samples: number of images of the shard set.
        shards: number of its shards.
        lanes: `data.lanes`, a multiple of the processes.
        batch: `train.batch_size`, a multiple of the lanes.
        epochs: number of simulated epochs, from step 0 on.
        image_bytes: bytes of an image, in its shard and decoded alike.
    """

    processes: int
    processes_per_node: int
    samples: int
    shards: int
    lanes: int
    batch: int
    epochs: int
    image_bytes: int

    @property
    def shard_sizes(self) -> list[int]:
        """Samples of each shard, which differ by at most one, as in the sets of `make_shards`."""
        size, larger = divmod(self.samples, self.shards)
        return [size + 1] * larger + [size] * (self.shards - larger)

    @property
    def steps(self) -> int:
        """Steps of an epoch, rounded to an integer."""
        return round(self.samples / self.batch)

    def order(self) -> Order:
        """Return the order of the samples."""
        return Order(0, self.shard_sizes, self.lanes, self.batch)


def simulate(scale: Scale) -> Figures:
    """Return all figures of the simulated epochs, and of a start at step `FAR_STEP`."""
    order = scale.order()
    spans = plan_spans(scale, order)
    return {
        "scale": vars(scale),
        "steps_per_epoch": scale.steps,
        "steps_per_shard": int(order.sizes.min()) / order.share,
        "drift": order.drift(),
        "epochs": {f"epoch {n + 1}": epoch_figures(scale, order, spans, n) for n in range(scale.epochs)},
        "start_up": {"equal shards": start_up(scale, True), "unequal shards": start_up(scale, False)},
    }


def plan_spans(scale: Scale, order: Order) -> np.ndarray:
    """Compute the spans of all processes in the simulated epochs.

    Args:
        scale: the run.
        order: of its samples.

    Returns:
        SPAN [V], the fields of `ShardSpan` and `PlannedSpan` that are used here.
    """
    manifest = Manifest("simulated", (1, 1, scale.image_bytes), [], [])
    count, cache_bytes = scale.lanes // scale.processes, DataConfig().cache_mib * 2**20
    plans = [
        Loader(manifest, order, range(r * count, (r + 1) * count), cache_bytes=cache_bytes).plan(0)
        for r in range(scale.processes)
    ]
    current, rows = [next(plan) for plan in plans], []
    # One epoch after the other for all processes, since the order caches the permutations of few epochs.
    for epoch in range(scale.epochs):
        end = (epoch + 1) * scale.steps * order.share
        for process, plan in enumerate(plans):
            while current[process].span.begin < end:
                span, is_read, _ = current[process]
                rows.append((process, span.place, span.shard, span.begin, is_read))
                current[process] = next(plan)
    return np.array(rows, SPAN)


def epoch_figures(scale: Scale, order: Order, spans: np.ndarray, epoch: int) -> Figures:
    """Compute what processes and nodes read in an epoch.

    Args:
        scale: the run.
        order: of its samples.
        spans: SPAN [V], of `plan_spans`.
        epoch: number of the epoch, from 0 on.

    Returns:
        Figures by name. A shard is fetched unless it is in the memory cache of the process. A disk cache is
        assumed to have no limit. `fetched_sets` is the fetched volume as a multiple of the shard set.
    """
    first, last = epoch * scale.steps, (epoch + 1) * scale.steps
    process, shard, step = spans["process"], spans["shard"], spans["begin"] // order.share
    node = process // scale.processes_per_node
    samples = np.subtract(*_sample_range(order, spans, first, last)[::-1])
    fetched = (spans["is_read"] > 0) & (step >= first) & (step < last)
    gigabytes = fetched * order.sizes[shard] * scale.image_bytes / 1e9
    set_gigabytes = scale.samples * scale.image_bytes / 1e9
    # Only the first fetch of a shard by a node misses the disk cache; -1 stands for spans without a fetch.
    node_and_shard = np.where(spans["is_read"] > 0, node * scale.shards + shard, -1)
    missed = np.zeros(len(spans), bool)
    missed[np.unique(node_and_shard, return_index=True)[1]] = True
    fetches_per_step_and_node = np.unique(np.stack([step, node])[:, fetched], axis=1, return_counts=True)[1]
    return {
        "samples_per_process": _spread(np.bincount(process, samples, scale.processes)),
        "shards_per_process": _spread(np.bincount(process, samples > 0, scale.processes)),
        "samples_by_number_of_reads": samples_by_reads(order, spans, first, last).tolist(),
        "gigabytes_per_process": _spread(np.bincount(process, gigabytes, scale.processes)),
        "gigabytes_per_node": _spread(np.bincount(node, gigabytes)),
        "shards_by_number_of_fetches": np.bincount(
            np.bincount(shard[fetched], minlength=scale.shards)
        ).tolist(),
        "fetched_sets": float(gigabytes.sum() / set_gigabytes),
        "fetched_sets_with_disk_cache": float(gigabytes[missed].sum() / set_gigabytes),
        "most_fetches_in_a_step": int(np.bincount(step[fetched]).max(initial=0)),
        "most_fetches_in_a_step_of_a_node": int(fetches_per_step_and_node.max(initial=0)),
    }


def samples_by_reads(order: Order, spans: np.ndarray, first: int, last: int) -> np.ndarray:
    """Count the samples that are read 0, 1, 2, ... times.

    Args:
        order: of the samples.
        spans: SPAN [V].
        first, last: the steps `first` to `last - 1` are counted.

    Returns:
        Numbers of samples, int64 [largest number of reads + 1].
    """
    low, high = _sample_range(order, spans, first, last)
    shard, size = spans["shard"], order.sizes[spans["shard"]]
    complete_reads = np.bincount(shard[high - low == size], minlength=len(order.sizes))
    partial_reads: dict[int, list[np.ndarray]] = {}  # samples of each read, by shard
    for i in np.flatnonzero((high > low) & (high - low < size)):
        samples = order.sample_order(int(spans["place"][i]))[low[i] : high[i]].astype(np.int32)
        partial_reads.setdefault(int(shard[i]), []).append(samples)
    # All samples of a shard without partial reads are read equally often.
    uniform = np.ones(len(complete_reads), bool)
    uniform[list(partial_reads)] = False
    most = int(complete_reads.max()) + max(map(len, partial_reads.values()), default=0)
    counts = np.bincount(complete_reads[uniform], order.sizes[uniform], most + 1).astype(np.int64)
    for number, parts in partial_reads.items():
        partial = np.bincount(np.concatenate(parts), minlength=int(order.sizes[number]))
        counts += np.bincount(complete_reads[number] + partial, minlength=len(counts))
    return np.trim_zeros(counts, "b")


def start_up(scale: Scale, equal: bool) -> dict[str, float]:
    """Measure how long a process needs to find its samples of step `FAR_STEP`.

    Args:
        scale: the run.
        equal: shards of one size. Else one shard has one sample more, so that all epochs have to be counted.

    Returns:
        Seconds of processor time, and the megabytes in use afterwards.
    """
    sizes = [scale.samples // scale.shards] * scale.shards
    sizes[0] += not equal

    tracemalloc.start()
    times = [time.process_time()]
    order = Order(0, sizes, scale.lanes, scale.batch)
    times.append(time.process_time())
    for lane in range(scale.lanes // scale.processes):
        next(order.spans(lane, FAR_STEP))
        times.append(time.process_time())
    megabytes = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    order_s, *lanes = np.diff(times).tolist()
    return {
        "order_s": order_s,
        "all_lanes_s": sum(lanes),
        "slowest_lane_s": max(lanes),
        "megabytes": megabytes,
    }


def _sample_range(order: Order, spans: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first sample of each span that steps `first` to `last - 1` read, and the end, int64 [V]."""
    sizes = order.sizes[spans["shard"]]
    low, high = (np.clip(step * order.share - spans["begin"], 0, sizes) for step in (first, last))
    return low, high


def _spread(values: np.ndarray) -> dict[str, float]:
    low, high = float(values.min()), float(values.max())
    return {"min": low, "max": high, "ratio": high / low if low else math.inf}
