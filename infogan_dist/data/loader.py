"""The batches of one process: its lanes' slice of every global batch, from any step on."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from infogan_dist.data.order import Order, Visit
from infogan_dist.data.shards import Block, Manifest, read_shard
from infogan_dist.errors import DataError


@dataclass(frozen=True)
class Batch:
    """A process's slice of a global batch: images uint8 [n, C, H, W], labels int64 [n] (-1: none)."""

    images: Tensor
    labels: Tensor


class Blocks(Dataset):
    """Decoded shards by number. A broken one is handed over as its error, to be raised where it is seen."""

    def __init__(self, manifest: Manifest):
        self.manifest = manifest

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | DataError:
        try:
            block: Block = read_shard(self.manifest, index)
        except DataError as error:
            return error
        return torch.from_numpy(block.images), torch.from_numpy(block.labels)


class Loader:
    """Reads the shards of a process's lanes in the order in which their samples are needed.

    Args:
        lanes: this process's lanes, in the order in which they make up its slice.
        workers: subprocesses that fetch and decode ahead; 0 reads when a shard is needed.
        cache_bytes: decoded shards are kept, in the order met, until they fill this.
        pin: put shards and batches into page-locked memory, for copies that the device need not wait for.
    """

    def __init__(
        self,
        manifest: Manifest,
        order: Order,
        lanes: range,
        workers: int = 0,
        cache_bytes: int = 0,
        pin: bool = False,
    ):
        self.manifest, self.order, self.lanes = manifest, order, lanes
        self.workers, self.cache_bytes, self.pin = workers, cache_bytes, pin

    def batches(self, step: int) -> Iterator[Batch]:
        """Batches `step`, `step + 1`, ... without end. Raises `DataError` where a shard is broken."""
        share = self.order.share
        blocks = self._blocks(step)
        current: dict[int, _Stay] = {}
        position = step * share
        while True:
            parts: list[tuple[Tensor, Tensor]] = []
            for lane in self.lanes:
                taken = 0
                while taken < share:
                    stay = current.get(lane)
                    if stay is None or stay.left == 0:
                        visit, images, labels = next(blocks)
                        assert (visit.lane, visit.begin) == (lane, position + taken)
                        rows = torch.from_numpy(self.order.within(visit.place)[visit.offset :])
                        current[lane] = stay = _Stay(images, labels, rows)
                    part = stay.take(share - taken)
                    parts.append(part)
                    taken += len(part[0])
            position += share
            yield self._join(parts)

    def _join(self, parts: list[tuple[Tensor, Tensor]]) -> Batch:
        images, labels = (torch.cat(side) for side in zip(*parts, strict=True))
        return Batch(images.pin_memory(), labels.pin_memory()) if self.pin else Batch(images, labels)

    def _blocks(self, step: int) -> Iterator[tuple[Visit, Tensor, Tensor]]:
        """Each visit with its decoded shard, fetched or kept."""
        fetched = iter(
            DataLoader(
                Blocks(self.manifest),
                batch_size=None,
                sampler=_Fetches(self, step),  # type: ignore[arg-type]
                num_workers=self.workers,
                pin_memory=self.pin,
            )
        )
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        for visit, fetch, keep in self.plan(step):
            block = next(fetched) if fetch else kept[visit.shard]
            if isinstance(block, DataError):
                raise block
            if keep:
                kept[visit.shard] = block
            yield visit, block[0], block[1]

    def plan(self, step: int) -> Iterator[tuple[Visit, bool, bool]]:
        """The visits in the order of need, and for each whether its shard is fetched, and then kept.

        What is kept follows from the order alone, so that the loading subprocesses, which run ahead, and
        the process itself come to the same plan without a word.
        """
        start, share = step * self.order.share, self.order.share

        def need(visit: Visit) -> tuple[int, int, int]:
            return (visit.begin - start) // share, visit.lane, visit.begin

        kept: set[int] = set()
        room = self.cache_bytes
        channels, height, width = self.manifest.image_shape
        for visit in heapq.merge(*(self.order.visits(lane, step) for lane in self.lanes), key=need):
            size = int(self.order.sizes[visit.shard]) * (channels * height * width + 8)
            fetch = visit.shard not in kept
            keep = fetch and size <= room
            if keep:
                kept.add(visit.shard)
                room -= size
            yield visit, fetch, keep


class _Fetches(Iterable[int]):
    """The shards to fetch, for the DataLoader's sampler."""

    def __init__(self, loader: Loader, step: int):
        self.loader, self.step = loader, step

    def __iter__(self) -> Iterator[int]:
        kept = 0
        for visit, fetch, keep in self.loader.plan(self.step):
            kept += keep
            if fetch:
                yield visit.shard
            if kept == len(self.loader.manifest.shards):
                return  # all there is stays in memory: the plan goes on, but fetches nothing more


class _Stay:
    """What a lane still has to read of its current shard."""

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor):
        self.images, self.labels, self.rows = images, labels, rows

    @property
    def left(self) -> int:
        return len(self.rows)

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        rows, self.rows = self.rows[:count], self.rows[count:]
        return self.images[rows], self.labels[rows]
