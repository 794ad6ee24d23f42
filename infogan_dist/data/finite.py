"""A shard set read from its start to its end, for scores: each image once, nothing padded or dropped."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from infogan_dist.data.cache import MemoryCache
from infogan_dist.data.fetch import Store
from infogan_dist.data.shards import DecodedShard, Manifest, read_shard
from infogan_dist.rng import permutation

# Images of a chunk at most. Networks process one chunk at a time, so batch statistics are those of a chunk.
CHUNK_SIZE = 500
SAMPLE_SEED = 0  # of random samples: models that were trained with different seeds are scored on equal images


@dataclass(frozen=True)
class Chunk:
    """Some images of a shard set.

    Attributes:
        images: uint8 [n, C, H, W].
        labels: int64 [n], -1 where there is none.
        factors: int64 [n, K], the values of the manifest's known factors.
    """

    images: np.ndarray
    labels: np.ndarray
    factors: np.ndarray


class FiniteDataset:
    """A shard set, or a random sample of it, in chunks that do not depend on the number of processes.

    Images are in the order of the shards. A chunk has at most `CHUNK_SIZE` of them; of a complete set, a
    chunk has images of one shard only.

    Args:
        manifest: of the set.
        store: reads the shards.
        skip: replace images that cannot be decoded by others of their shard, instead of raising.
        limit: number of images, drawn at random over all shards; None: all.
        cache_bytes: limit of the decoded images in memory, because several scores read the same images.
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
        ends = np.cumsum(manifest.shard_sizes)
        total = int(ends[-1])
        self.is_complete = limit is None or limit >= total
        if self.is_complete:
            self._numbers = np.arange(total)
        else:
            self._numbers = np.sort(permutation(SAMPLE_SEED, "scores/sample", 0, total)[:limit])
        self._shard_starts = ends - manifest.shard_sizes
        # Position in this dataset of the first image of each shard, and the end.
        self._bounds = np.searchsorted(self._numbers, [0, *ends])
        # Chunks of a small sample contain images of several shards, because chunks of a few images would be
        # slow.
        groups = (self._bounds if self.is_complete else self._bounds[[0, -1]]).tolist()
        self._chunks = [
            (first, min(first + CHUNK_SIZE, end))
            for begin, end in pairwise(groups)
            for first in range(begin, end, CHUNK_SIZE)
        ]
        self._cache: MemoryCache[int, DecodedShard] = MemoryCache(cache_bytes)
        self._last: tuple[int, DecodedShard] | None = None

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def sizes(self) -> list[int]:
        """Number of images of each chunk."""
        return [end - first for first, end in self._chunks]

    @property
    def sampling(self) -> str:
        """Which images of the set these are, for protocols."""
        total = self.manifest.samples
        return f"all {total:,} images" if self.is_complete else f"{len(self):,} random of {total:,} images"

    def read(self, i: int) -> Chunk:
        """Return the i-th chunk. Raises `DataError`."""
        return self.take(np.arange(*self._chunks[i]))

    def take(self, positions: np.ndarray) -> Chunk:
        """Return the images at given positions of this dataset; each of their shards is decoded once.

        Args:
            positions: int64 [n], in ascending order, n >= 1.

        Raises:
            DataError: a shard cannot be read.
        """
        shards = np.searchsorted(self._bounds, positions, side="right") - 1
        parts: list[tuple[np.ndarray, ...]] = []
        for shard in np.unique(shards):
            decoded, rows = self._decoded(int(shard)), positions[shards == shard] - self._bounds[shard]
            parts.append((decoded.images[rows], decoded.labels[rows], decoded.factors[rows]))
        return Chunk(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _decoded(self, shard: int) -> DecodedShard:
        """Return the images that this dataset has of a shard.

        Those of the last shard stay in memory for the following chunks even without a cache.
        """
        if shard in self._cache:
            return self._cache[shard]
        if self._last is None or self._last[0] != shard:
            decoded = self._select(read_shard(self.manifest, shard, self.store, self.skip), shard)
            self._last = shard, decoded
            self._cache.add(shard, decoded, len(decoded.images) * self.manifest.decoded_sample_bytes)
        return self._last[1]

    def _select(self, decoded: DecodedShard, shard: int) -> DecodedShard:
        if self.is_complete:
            return decoded
        first, end = self._bounds[shard], self._bounds[shard + 1]
        rows = self._numbers[first:end] - self._shard_starts[shard]
        images, labels = decoded.images[rows], decoded.labels[rows]
        return DecodedShard(images, labels, decoded.substituted[rows], decoded.notes, decoded.factors[rows])
