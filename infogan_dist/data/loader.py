"""The real images of one process: its rows of every global batch, from any step on."""

import heapq
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from infogan_dist.data.augment import Augmentation, apply_moves
from infogan_dist.data.cache import MemoryCache
from infogan_dist.data.fetch import Store
from infogan_dist.data.order import Order, ShardSpan
from infogan_dist.data.shard_dataset import ShardDataset, ShardTensors, raise_open_file_limit
from infogan_dist.data.shards import Manifest
from infogan_dist.data.transfer import concatenate_on_device
from infogan_dist.errors import UserError

CPU = torch.device("cpu")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """The rows of one process in a global batch.

    Attributes:
        images: uint8 [n, C, H, W], on the loader's device.
        labels: int64 [n], on the host; -1 where there is none.
        substituted: bool [n], on the host: whether another image replaces a broken one.
    """

    images: Tensor
    labels: Tensor
    substituted: Tensor


class PlannedSpan(NamedTuple):
    """A span of a shard, and how the shard is obtained.

    Attributes:
        span: the span.
        is_read: whether the shard has to be fetched and decoded, because it is not in the memory cache.
        is_added: whether it is then added to the memory cache.
    """

    span: ShardSpan
    is_read: bool
    is_added: bool


class ShardRows(NamedTuple):
    """Rows of a shard.

    Attributes:
        shard: the shard.
        rows: int64 [m] on the host, as of `Loader._rows`.
        moves: of each row, int64 [m, 3] on the host, as of `Augmentation.draw`; [m, 0] without augmentation.
    """

    shard: ShardTensors
    rows: Tensor
    moves: Tensor


class Loader:
    """Reads the shards of a process's lanes in the order in which their samples are needed.

    Args:
        manifest: of the shard set.
        order: the order of its samples.
        lanes: this process's lanes.
        workers: subprocesses that fetch and decode shards in advance; 0: a shard is read when it is needed.
        cache_bytes: limit of the decoded shards in memory, which are added in the order of their first use.
        device: where the images of a batch are put; the host does not wait until they are there.
        skip: replace broken shards and images by others, instead of raising.
        store: reads the shards; None: without a disk cache.
        augmentation: random flips and shifts of the images; None: none.
    """

    def __init__(
        self,
        manifest: Manifest,
        order: Order,
        lanes: range,
        workers: int = 0,
        cache_bytes: int = 0,
        device: torch.device = CPU,
        skip: bool = False,
        store: Store | None = None,
        augmentation: Augmentation | None = None,
    ):
        self.manifest, self.order, self.lanes = manifest, order, lanes
        self.workers, self.cache_bytes, self.device = workers, cache_bytes, device
        self.dataset, self.augmentation = ShardDataset(manifest, store or Store(), skip), augmentation
        self._warned: set[str] = set()

    def batches(self, step: int) -> Iterator[Batch]:
        """Yield the batches `step`, `step + 1`, ... without end.

        Raises:
            DataError: a shard is broken, at the step that needs it.
        """
        share = self.order.share
        shards = self._shards(step)
        cursors: dict[int, _LaneCursor] = {}
        position = step * share
        while True:
            parts: list[ShardRows] = []
            for lane in self.lanes:
                taken = 0
                while taken < share:
                    cursor = cursors.get(lane)
                    if cursor is None or cursor.left == 0:
                        span, shard = next(shards)
                        assert (span.lane, span.begin) == (lane, position + taken)
                        cursors[lane] = cursor = _LaneCursor(shard, self._rows(span), self._moves(span))
                    parts.append(cursor.take(share - taken))
                    taken += len(parts[-1].rows)
            position += share
            yield self._augmented(self._join(parts), parts)

    def _rows(self, span: ShardSpan) -> Tensor:
        """Return the rows of a span in its shard, in the order in which they are needed, int64 [m]."""
        return torch.from_numpy(self.order.sample_order(span.place)[span.offset :])

    def _moves(self, span: ShardSpan) -> Tensor:
        """Return the random moves of the rows of a span, as of `ShardRows`."""
        if self.augmentation is None:
            return torch.empty(int(self.order.sizes[span.shard]) - span.offset, 0)
        moves = self.augmentation.draw(span.place // len(self.order.sizes), span.shard)
        return moves[Loader._rows(self, span)]

    def _join(self, parts: list[ShardRows]) -> Batch:
        """Return the batch that consists of given rows, without augmentation."""
        return Batch(
            concatenate_on_device([part.shard.images[part.rows] for part in parts], self.device),
            torch.cat([part.shard.labels[part.rows] for part in parts]),
            torch.cat([part.shard.substituted[part.rows] for part in parts]),
        )

    def _augmented(self, batch: Batch, parts: list[ShardRows]) -> Batch:
        """Return a batch with the random moves of its rows."""
        if self.augmentation is None:
            return batch
        moves = concatenate_on_device([part.moves for part in parts], self.device)
        return replace(batch, images=apply_moves(batch.images, moves))

    def _place(self, number: int, shard: ShardTensors) -> ShardTensors:
        """Return a shard that was read, in the form in which it stays in memory.

        Args:
            number: number of the shard in the manifest.
            shard: as read.
        """
        if self.workers == 0:
            return shard
        # The tensors of a subprocess take shared memory, of which containers have little, and a file
        # descriptor each.
        return ShardTensors(
            shard.images.clone(), shard.labels.clone(), shard.substituted.clone(), shard.notes
        )

    def _shards(self, step: int) -> Iterator[tuple[ShardSpan, ShardTensors]]:
        """Yield every span with its decoded shard, which is read or cached."""
        raise_open_file_limit(self.workers)
        shards: Iterator[ShardTensors | UserError] = iter(
            DataLoader(
                self.dataset,
                batch_size=None,
                sampler=_ShardSampler(self, step),  # type: ignore[arg-type]
                num_workers=self.workers,
            )
        )
        cache: MemoryCache[int, ShardTensors] = MemoryCache(self.cache_bytes)
        for span, is_read, _ in self.plan(step):
            shard = next(shards) if is_read else cache[span.shard]
            if isinstance(shard, UserError):
                raise shard
            if is_read:
                self._warn(shard.notes)
                shard = self._place(span.shard, shard)
                cache.add(span.shard, shard, self._decoded_bytes(span.shard))
                if len(cache) == len(self.manifest.shards):
                    shards = iter(())  # Nothing is read any more: this ends the loading subprocesses.
            yield span, shard

    def _warn(self, notes: list[str]) -> None:
        """Warn of broken shards and images, once of each."""
        for note in notes:
            if note not in self._warned:
                logger.warning("skipped %s", note)
        self._warned.update(notes)

    def plan(self, step: int) -> Iterator[PlannedSpan]:
        """Yield the spans in the order in which they are needed, from global batch `step` on.

        The contents of the memory cache depend on the order alone. The sampler, which runs ahead, and the
        process itself therefore compute the same plan without communication.
        """
        start, share = step * self.order.share, self.order.share

        def need(span: ShardSpan) -> tuple[int, int, int]:
            return (span.begin - start) // share, span.lane, span.begin

        cache: MemoryCache[int, None] = MemoryCache(self.cache_bytes)
        for span in heapq.merge(*(self.order.spans(lane, step) for lane in self.lanes), key=need):
            is_read = span.shard not in cache
            is_added = is_read and cache.add(span.shard, None, self._decoded_bytes(span.shard))
            yield PlannedSpan(span, is_read, is_added)

    def _decoded_bytes(self, shard: int) -> int:
        return int(self.order.sizes[shard]) * self.manifest.decoded_sample_bytes


class _ShardSampler(Iterable[int]):
    """The numbers of the shards to read, for the DataLoader."""

    def __init__(self, loader: Loader, step: int):
        self.loader, self.step = loader, step

    def __iter__(self) -> Iterator[int]:
        cached = 0
        for span, is_read, is_added in self.loader.plan(self.step):
            cached += is_added
            if is_read:
                yield span.shard
            if cached == len(self.loader.manifest.shards):
                return  # All shards are in memory: the plan continues, but reads nothing any more.


class _LaneCursor:
    """The rows of a lane's current shard that have not been used yet."""

    def __init__(self, shard: ShardTensors, rows: Tensor, moves: Tensor):
        self.shard, self.rows, self.moves = shard, rows, moves

    @property
    def left(self) -> int:
        return len(self.rows)

    def take(self, count: int) -> ShardRows:
        part = ShardRows(self.shard, self.rows[:count], self.moves[:count])
        self.rows, self.moves = self.rows[count:], self.moves[count:]
        return part
