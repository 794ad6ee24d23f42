"""Decoded shards by number, for the subprocesses of a DataLoader."""

import resource
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from infogan_dist.data.fetch import NetworkError, Store
from infogan_dist.data.shards import DecodedShard, Manifest, read_shard
from infogan_dist.errors import DataError, UserError

# Of each loading subprocess: its pipes, and three descriptors for each shard that it has ready.
FILES_PER_WORKER, OTHER_FILES = 16, 256


class ShardTensors(NamedTuple):
    """A decoded shard, as of `DecodedShard`, in a form that PyTorch can pass between processes."""

    images: Tensor
    labels: Tensor
    substituted: Tensor
    notes: list[str]


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


def raise_open_file_limit(workers: int) -> None:
    """Permit as many open files as loading subprocesses need, where the limit is lower and can be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if workers and soft < OTHER_FILES + FILES_PER_WORKER * workers:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
