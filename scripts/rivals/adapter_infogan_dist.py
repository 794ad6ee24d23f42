"""This project's loader: the state is the number of the step."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from harness import BATCH, SHARDS, STEPS, Place

from infogan_dist.data.loader import Loader as ShardLoader
from infogan_dist.data.order import Order
from infogan_dist.data.shards import load_manifest

LANES = SHARDS  # data.lanes: a multiple of every number of processes of the run
SEED = 0


def prepare(shards: Path, data: Path) -> None:
    """Use the shard set where it is."""
    data.symlink_to(shards)


class Loader:
    """The loader that a training run creates, from the step of its checkpoint on."""

    def __init__(self, data: Path, place: Place, states: Sequence[Any] | None):
        manifest = load_manifest(str(data))
        order = Order(SEED, manifest.shard_sizes, LANES, BATCH)
        share = LANES // place.world
        lanes = range(place.rank * share, (place.rank + 1) * share)
        self.loader = ShardLoader(manifest, order, lanes, workers=place.workers)
        self.step = states[0] if states else 0

    def __iter__(self) -> Iterator[list[int]]:
        for batch in islice(self.loader.batches(self.step), STEPS - self.step):
            self.step += 1
            yield [int(image[0, 0, 0]) * 256 + int(image[0, 0, 1]) for image in batch.images]

    def state(self) -> int:
        """Return the number of the next step."""
        return self.step
