"""A shard set read from its start to its end, for scores: each image once, nothing padded or dropped."""

from dataclasses import dataclass

import numpy as np

from infogan_dist.data.cache import MemoryCache
from infogan_dist.data.fetch import Store
from infogan_dist.data.shards import DecodedShard, Manifest, read_shard

# Images of a chunk at most. Networks process one chunk at a time, so batch statistics are those of a chunk.
CHUNK_SIZE = 500


@dataclass(frozen=True)
class Chunk:
    """Consecutive images of a shard.

    Attributes:
        images: uint8 [n, C, H, W].
        labels: int64 [n], -1 where there is none.
        factors: int64 [n, K], the values of the manifest's known factors.
    """

    images: np.ndarray
    labels: np.ndarray
    factors: np.ndarray


class FiniteDataset:
    """A shard set in chunks of at most `CHUNK_SIZE` images, which do not depend on the number of processes.

    Args:
        manifest: of the set.
        store: reads the shards.
        skip: replace images that cannot be decoded by others of their shard, instead of raising.
        limit: number of images, from the start of the set; None: all.
        cache_bytes: limit of the decoded shards in memory, because several scores read the same images.
    """

    def __init__(
        self,
        manifest: Manifest,
        store: Store,
        skip: bool = False,
        limit: int | None = None,
        cache_bytes: int = 0,
    ):
        self.manifest, self.store, self.skip = manifest, store, skip
        self._chunks: list[tuple[int, int, int]] = []  # shard, first image, end
        left = manifest.samples if limit is None else limit
        for number, shard in enumerate(manifest.shards):
            for first in range(0, min(shard.samples, left), CHUNK_SIZE):
                self._chunks.append((number, first, min(first + CHUNK_SIZE, shard.samples, left)))
            left = max(0, left - shard.samples)
        self._cache: MemoryCache[int, DecodedShard] = MemoryCache(cache_bytes)
        self._last: tuple[int, DecodedShard] | None = None

    @property
    def sizes(self) -> list[int]:
        """Number of images of each chunk."""
        return [end - first for _, first, end in self._chunks]

    def read(self, i: int) -> Chunk:
        """Return the i-th chunk. Raises `DataError`."""
        shard, first, end = self._chunks[i]
        decoded, rows = self._decoded(shard), slice(first, end)
        return Chunk(decoded.images[rows], decoded.labels[rows], decoded.factors[rows])

    def _decoded(self, shard: int) -> DecodedShard:
        """Return a decoded shard; the last one stays in memory for its other chunks even without a cache."""
        if shard in self._cache:
            return self._cache[shard]
        if self._last is None or self._last[0] != shard:
            decoded = read_shard(self.manifest, shard, self.store, self.skip)
            self._last = shard, decoded
            self._cache.add(shard, decoded, len(decoded.images) * self.manifest.decoded_sample_bytes)
        return self._last[1]
