"""A finite pass over a shard set, for scores: each image once, nothing padded, nothing dropped."""

from dataclasses import dataclass

import numpy as np

from infogan_dist.data.fetch import Store
from infogan_dist.data.shards import DecodedShard, Manifest, read_shard

CHUNK_SIZE = 500  # images, at most: what networks see at a time, and so what batch statistics are of


@dataclass(frozen=True)
class Chunk:
    """Neighbouring images of a shard.

    Attributes:
        images: uint8 [n, C, H, W].
        labels: int64 [n], -1 where there is none.
        factors: int64 [n, K], the values of the manifest's known factors.
    """

    images: np.ndarray
    labels: np.ndarray
    factors: np.ndarray


class FiniteDataset:
    """A shard set cut into pieces of at most `CHUNK_SIZE` images, the same for any number of processes.

    Args:
        skip: let others of its shard take the place of images that do not decode, instead of raising.
        limit: images to take, from the set's start; None: all.
        cache_bytes: decoded shards are kept until they fill this, for there are several scores.
    """

    def __init__(
        self,
        manifest: Manifest,
        store: Store,
        skip: bool = False,
        limit: int | None = None,
        cache_bytes: int = 0,
    ):
        self.manifest, self.store, self.skip, self.room = manifest, store, skip, cache_bytes
        self._places: list[tuple[int, int, int]] = []  # shard, first image, end
        left = manifest.samples if limit is None else limit
        for number, shard in enumerate(manifest.shards):
            for first in range(0, min(shard.samples, left), CHUNK_SIZE):
                self._places.append((number, first, min(first + CHUNK_SIZE, shard.samples, left)))
            left = max(0, left - shard.samples)
        self._kept: dict[int, DecodedShard] = {}
        self._last: tuple[int, DecodedShard] | None = None

    @property
    def sizes(self) -> list[int]:
        """Images of each piece."""
        return [end - first for _, first, end in self._places]

    def read(self, i: int) -> Chunk:
        """The i-th piece. Raises `DataError`."""
        shard, first, end = self._places[i]
        block, rows = self._block(shard), slice(first, end)
        return Chunk(block.images[rows], block.labels[rows], block.factors[rows])

    def _block(self, shard: int) -> DecodedShard:
        """A decoded shard; the last one is at hand for its further pieces, whatever else is kept."""
        if shard in self._kept:
            return self._kept[shard]
        if self._last is None or self._last[0] != shard:
            self._last = shard, read_shard(self.manifest, shard, self.store, self.skip)
        block = self._last[1]
        if block.images.nbytes <= self.room:
            self.room -= block.images.nbytes
            self._kept[shard] = block
        return block
