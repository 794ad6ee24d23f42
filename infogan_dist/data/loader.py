"""The real images of one process: its rows of every global batch, from any step on."""

import heapq
import logging
import resource
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from infogan_dist.data.cache import MemoryCache
from infogan_dist.data.fetch import NetworkError, Store
from infogan_dist.data.order import Order, ShardSpan
from infogan_dist.data.shards import DecodedShard, Manifest, read_shard
from infogan_dist.errors import DataError, UserError

CPU = torch.device("cpu")
# Of each loading subprocess: its pipes, and three descriptors for each shard that it has ready.
FILES_PER_WORKER, OTHER_FILES = 16, 256
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


class ShardTensors(NamedTuple):
    """A decoded shard, as of `DecodedShard`, in a form that PyTorch can pass between processes."""

    images: Tensor
    labels: Tensor
    substituted: Tensor
    notes: list[str]


class ShardRows(NamedTuple):
    """Rows of a shard, int64 [m] on the host, as of `Loader._rows`."""

    shard: ShardTensors
    rows: Tensor


class ShardDataset(Dataset):
    """Decoded shards by number.

    The error of a shard that cannot be read is returned, to be raised where the shard is needed. With `skip`
    a broken shard is replaced by the next intact one of the set. The set alone determines which one that is,
    so that it is the same for every process and after every start.

    Args:
        manifest: of the set.
        store: reads the shards.
        skip: replace broken shards and images.
    """

    def __init__(self, manifest: Manifest, store: Store, skip: bool):
        self.manifest, self.store, self.skip = manifest, store, skip

    def __getitem__(self, index: int) -> ShardTensors | UserError:
        try:
            shard = self._read(index)
        except UserError as error:
            return error
        columns = (shard.images, shard.labels, shard.substituted)
        images, labels, substituted = map(torch.from_numpy, columns)
        try:
            if get_worker_info() is not None:
                # Here an error can be reported; where the DataLoader would do this, it would be lost, and the
                # process would wait for the shard for ever.
                for tensor in (images, labels, substituted):
                    tensor.share_memory_()
        except RuntimeError as error:
            return DataError(
                f"data.workers: no shared memory for a decoded shard ({error}); enlarge /dev/shm (docker: "
                "--shm-size), set data.workers=0, or create the set again with smaller shards"
            )
        return ShardTensors(images, labels, substituted, shard.notes)

    def _read(self, index: int) -> DecodedShard:
        try:
            return read_shard(self.manifest, index, self.store, self.skip)
        except NetworkError:
            raise  # The shard may be intact, so it is not replaced.
        except DataError as error:
            if not self.skip:
                raise
            return self._substitute(index, error)

    def _substitute(self, index: int, error: DataError) -> DecodedShard:
        count = len(self.manifest.shards)
        for other in range(index + 1, index + count):
            try:
                shard = read_shard(self.manifest, other % count, self.store, skip=True)
            except NetworkError:
                raise
            except DataError:
                continue
            size = self.manifest.shards[index].samples
            rows = np.arange(size) % len(shard.images)
            notes, factors = [str(error)], shard.factors[rows]
            return DecodedShard(shard.images[rows], shard.labels[rows], np.ones(size, bool), notes, factors)
        raise error


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
    ):
        self.manifest, self.order, self.lanes = manifest, order, lanes
        self.workers, self.cache_bytes, self.device = workers, cache_bytes, device
        self.dataset = ShardDataset(manifest, store or Store(), skip)
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
                        cursors[lane] = cursor = _LaneCursor(shard, self._rows(span))
                    parts.append(cursor.take(share - taken))
                    taken += len(parts[-1].rows)
            position += share
            yield self._join(parts)

    def _rows(self, span: ShardSpan) -> Tensor:
        """Return the rows of a span in its shard, in the order in which they are needed, int64 [m]."""
        return torch.from_numpy(self.order.sample_order(span.place)[span.offset :])

    def _join(self, parts: list[ShardRows]) -> Batch:
        """Return the batch that consists of given rows."""
        return Batch(
            concatenate_on_device([shard.images[rows] for shard, rows in parts], self.device),
            torch.cat([shard.labels[rows] for shard, rows in parts]),
            torch.cat([shard.substituted[rows] for shard, rows in parts]),
        )

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
        _raise_open_file_limit(self.workers)
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


def _raise_open_file_limit(workers: int) -> None:
    """Permit as many open files as loading subprocesses need, where the limit is lower and can be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if workers and soft < OTHER_FILES + FILES_PER_WORKER * workers:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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

    def __init__(self, shard: ShardTensors, rows: Tensor):
        self.shard, self.rows = shard, rows

    @property
    def left(self) -> int:
        return len(self.rows)

    def take(self, count: int) -> ShardRows:
        rows, self.rows = self.rows[:count], self.rows[count:]
        return ShardRows(self.shard, rows)


def concatenate_on_device(parts: list[Tensor], device: torch.device) -> Tensor:
    """Concatenate tensors of the host along their first axis, on a device; the host does not wait for it.

    Args:
        parts: of one dtype, and of one shape but for the first axis.
        device: of the result.
    """
    if device.type == "cpu":
        return torch.cat(parts)
    # The copy is asynchronous only from page-locked memory. Its allocator gives a block out again only after
    # the copies from it have ended, so that a few blocks serve all batches in turn.
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    pinned = torch.empty(shape, dtype=parts[0].dtype, pin_memory=True)
    return torch.cat(parts, out=pinned).to(device, non_blocking=True)
