"""The real images of one process, from a shard set whose decoded images stay on the device."""

import logging
import math
import os
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from infogan_dist.config.schema import Config
from infogan_dist.data.augment import Augmentation, open_augmentation
from infogan_dist.data.fetch import Store, open_store
from infogan_dist.data.loader import CPU, Batch, Loader, ShardRows
from infogan_dist.data.order import Order, ShardSpan
from infogan_dist.data.shard_dataset import ShardTensors
from infogan_dist.data.shards import Manifest
from infogan_dist.data.transfer import concatenate_on_device
from infogan_dist.errors import DataError

# Share of a GPU's free memory that the images may take by themselves; networks and activations need the rest.
MAX_DEVICE_SHARE = 0.25
logger = logging.getLogger(__name__)


def should_hold_images(choice: str, manifest: Manifest, device: torch.device) -> bool:
    """Return whether the decoded images of a set stay on the device.

    Processes may decide differently, since the batches are the same either way.

    Args:
        choice: `data.device` of the config.
        manifest: of the set.
        device: on which the networks are trained.

    Raises:
        DataError: `data.device=device` for images that do not fit. It is not a `ConfigError`, because one
            process alone may have too little memory, and then has to report it.
    """
    if choice == "host" or (choice == "auto" and device.type != "cuda"):
        return False
    need, free = manifest.samples * math.prod(manifest.image_shape), free_memory(device)
    if choice == "auto":
        return need <= MAX_DEVICE_SHARE * free
    if need > free:
        raise DataError(
            f"data.device: the decoded images take {need / 2**20:,.0f} MiB, but {free / 2**20:,.0f} MiB of "
            f"{device} are free; set data.device=auto"
        )
    return True


def free_memory(device: torch.device) -> int:
    """Return the free memory of a GPU in bytes; for the CPU the machine's memory, free or not."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class ResidentLoader(Loader):
    """Yields the batches of a `Loader`, from images that stay on the device as uint8 [N, C, H, W].

    Shards are read in the order of their first use, as by a `Loader` whose cache holds the whole set, and are
    copied to the device once. From then on a batch costs the transfer of its positions, 8 bytes per image.
    Each process has a copy of the set, of the shards that its lanes have visited.

    Args:
        manifest: of the shard set.
        order: the order of its samples.
        lanes: this process's lanes.
        workers: subprocesses that fetch and decode shards in advance; 0: a shard is read when it is needed.
        device: holds the images.
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
        device: torch.device = CPU,
        skip: bool = False,
        store: Store | None = None,
        augmentation: Augmentation | None = None,
    ):
        everything = manifest.samples * manifest.decoded_sample_bytes
        super().__init__(manifest, order, lanes, workers, everything, device, skip, store, augmentation)
        self.starts = list(accumulate(manifest.shard_sizes, initial=0))
        shape = (manifest.samples, *manifest.image_shape)
        self.images = torch.empty(shape, dtype=torch.uint8, device=device)
        self.labels = torch.empty(manifest.samples, dtype=torch.int64)
        self.substituted = torch.empty(manifest.samples, dtype=torch.bool)

    def _place(self, number: int, shard: ShardTensors) -> ShardTensors:
        rows = slice(self.starts[number], self.starts[number + 1])
        # The host does not wait for a copy from page-locked memory.
        images = shard.images.pin_memory() if self.device.type == "cuda" else shard.images
        return ShardTensors(
            self.images[rows].copy_(images, non_blocking=True),
            self.labels[rows].copy_(shard.labels),
            self.substituted[rows].copy_(shard.substituted),
            shard.notes,
        )

    def _rows(self, span: ShardSpan) -> Tensor:
        """Return the rows of a span in the whole set, int64 [m]."""
        return super()._rows(span) + self.starts[span.shard]

    def _join(self, parts: list[ShardRows]) -> Batch:
        rows = torch.cat([part.rows for part in parts])
        images = self.images[concatenate_on_device([rows], self.device)]
        return Batch(images, self.labels[rows], self.substituted[rows])


def open_loader(config: Config, manifest: Manifest, lanes: range, device: torch.device) -> Loader:
    """Return the loader of a run's real images.

    Args:
        config: the run's.
        manifest: of the training set.
        lanes: this process's.
        device: on which the networks are trained.

    Raises:
        DataError: the images must stay on the device, and do not fit there.
    """
    sizes, data = manifest.shard_sizes, config.data
    order = Order(config.seed, sizes, data.lanes, config.real_batch)
    options: dict[str, Any] = {
        "workers": data.workers,
        "device": device,
        "skip": data.on_error == "skip",
        "store": open_store(data),
        "augmentation": open_augmentation(data.augment, config.seed, sizes),
    }
    if should_hold_images(data.device, manifest, device):
        logger.info("the decoded images stay on %s (data.device)", device)
        return ResidentLoader(manifest, order, lanes, **options)
    return Loader(manifest, order, lanes, cache_bytes=data.cache_mib * 2**20, **options)
