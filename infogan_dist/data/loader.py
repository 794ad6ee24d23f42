"""The batches of one process: its lanes' slice of every global batch, from any step on."""

import heapq
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from infogan_dist.data.fetch import NetworkError, Store
from infogan_dist.data.order import Order, ShardVisit
from infogan_dist.data.shards import DecodedShard, Manifest, read_shard
from infogan_dist.errors import DataError, UserError


@dataclass(frozen=True)
class Batch:
    """A process's slice of a global batch.

    Attributes:
        images: uint8 [n, C, H, W].
        labels: int64 [n], -1 where there is none.
        substituted: bool [n], whether another image took the place of a broken one.
    """

    images: Tensor
    labels: Tensor
    substituted: Tensor


Decoded = tuple[Tensor, Tensor, Tensor, list[str]]  # a DecodedShard as tensors


class ShardDataset(Dataset):
    """Decoded shards by number. A broken one is handed over as its error, to be raised where it is seen.

    Where broken ones are to be skipped, the next shard of the set that is whole takes a broken one's place.
    Which one that is depends on the set alone, so that every process and every start sees the same.
    """

    def __init__(self, manifest: Manifest, store: Store, skip: bool):
        self.manifest, self.store, self.skip = manifest, store, skip

    def __getitem__(self, index: int) -> Decoded | UserError:
        try:
            block = self._read(index)
        except UserError as error:
            return error
        return (
            torch.from_numpy(block.images),
            torch.from_numpy(block.labels),
            torch.from_numpy(block.substituted),
            block.notes,
        )

    def _read(self, index: int) -> DecodedShard:
        try:
            return read_shard(self.manifest, index, self.store, self.skip)
        except NetworkError:
            raise  # the shard may be whole: it is tried again, never skipped
        except DataError as error:
            if not self.skip:
                raise
            return self._stand_in(index, error)

    def _stand_in(self, index: int, error: DataError) -> DecodedShard:
        count = len(self.manifest.shards)
        for other in range(index + 1, index + count):
            try:
                block = read_shard(self.manifest, other % count, self.store, skip=True)
            except NetworkError:
                raise
            except DataError:
                continue
            size = self.manifest.shards[index].samples
            rows = np.arange(size) % len(block.images)
            notes, factors = [str(error)], block.factors[rows]
            return DecodedShard(block.images[rows], block.labels[rows], np.ones(size, bool), notes, factors)
        raise error


class Loader:
    """Reads the shards of a process's lanes in the order in which their samples are needed.

    Args:
        lanes: this process's lanes, in the order in which they make up its slice.
        workers: subprocesses that fetch and decode ahead; 0 reads when a shard is needed.
        cache_bytes: decoded shards are kept, in the order met, until they fill this.
        pin: put shards and batches into page-locked memory, for copies that the device need not wait for.
        skip: let others take the place of broken shards and images, instead of raising.
        store: how shards are fetched; None: without a cache on disk.
    """

    def __init__(
        self,
        manifest: Manifest,
        order: Order,
        lanes: range,
        workers: int = 0,
        cache_bytes: int = 0,
        pin: bool = False,
        skip: bool = False,
        store: Store | None = None,
    ):
        self.manifest, self.order, self.lanes = manifest, order, lanes
        self.workers, self.cache_bytes, self.pin = workers, cache_bytes, pin
        self.blocks = ShardDataset(manifest, store or Store(), skip)
        self._noted: set[str] = set()

    def batches(self, step: int) -> Iterator[Batch]:
        """Batches `step`, `step + 1`, ... without end. Raises `DataError` where a shard is broken."""
        share = self.order.share
        blocks = self._blocks(step)
        current: dict[int, LaneCursor] = {}
        position = step * share
        while True:
            parts: list[tuple[Tensor, ...]] = []
            for lane in self.lanes:
                taken = 0
                while taken < share:
                    stay = current.get(lane)
                    if stay is None or stay.left == 0:
                        visit, block = next(blocks)
                        assert (visit.lane, visit.begin) == (lane, position + taken)
                        rows = torch.from_numpy(self.order.within(visit.place)[visit.offset :])
                        current[lane] = stay = LaneCursor(block, rows)
                    part = stay.take(share - taken)
                    parts.append(part)
                    taken += len(part[0])
            position += share
            yield self._join(parts)

    def _join(self, parts: list[tuple[Tensor, ...]]) -> Batch:
        joined = [torch.cat(side) for side in zip(*parts, strict=True)]
        return Batch(*(side.pin_memory() if self.pin else side for side in joined))

    def _blocks(self, step: int) -> Iterator[tuple[ShardVisit, Decoded]]:
        """Each visit with its decoded shard, fetched or kept."""
        fetched = iter(
            DataLoader(
                self.blocks,
                batch_size=None,
                sampler=_Fetches(self, step),  # type: ignore[arg-type]
                num_workers=self.workers,
                pin_memory=self.pin,
            )
        )
        kept: dict[int, Decoded] = {}
        for visit, fetch, keep in self.plan(step):
            block = next(fetched) if fetch else kept[visit.shard]
            if isinstance(block, UserError):
                raise block
            self._note(block[3])
            if keep:
                kept[visit.shard] = block
            yield visit, block

    def _note(self, notes: list[str]) -> None:
        """Says once what was broken and replaced."""
        for note in notes:
            if note not in self._noted:
                print(f"warning: skipped {note}", file=sys.stderr, flush=True)
        self._noted.update(notes)

    def plan(self, step: int) -> Iterator[tuple[ShardVisit, bool, bool]]:
        """The visits in the order of need, and for each whether its shard is fetched, and then kept.

        What is kept follows from the order alone, so that the loading subprocesses, which run ahead, and
        the process itself come to the same plan without a word.
        """
        start, share = step * self.order.share, self.order.share

        def need(visit: ShardVisit) -> tuple[int, int, int]:
            return (visit.begin - start) // share, visit.lane, visit.begin

        kept: set[int] = set()
        room = self.cache_bytes
        channels, height, width = self.manifest.image_shape
        for visit in heapq.merge(*(self.order.visits(lane, step) for lane in self.lanes), key=need):
            size = int(self.order.sizes[visit.shard]) * (channels * height * width + 9)
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


class LaneCursor:
    """What a lane still has to read of its current shard."""

    def __init__(self, block: Decoded, rows: Tensor):
        self.block, self.rows = block, rows

    @property
    def left(self) -> int:
        return len(self.rows)

    def take(self, count: int) -> tuple[Tensor, ...]:
        rows, self.rows = self.rows[:count], self.rows[count:]
        images, labels, substituted, _ = self.block
        return images[rows], labels[rows], substituted[rows]
