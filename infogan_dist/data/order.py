"""The order of the real images, as arithmetic on (seed, position) without I/O and without state.

The N shards follow one another in an endless sequence of places, and every epoch of N places has a random
order of its own. The places are dealt to L lanes (`data.lanes`), the smallest parts of a global batch, which
are never split between processes:

    place p                  shard permutation(seed, "shards", p div N)[p mod N], read by lane p mod L
    turn t of a lane         place t * L + lane
    samples of a lane        those of its places, one after the other; those of place p in the order
                             permutation(seed, "within", p)
    global batch k           for each lane in order: the lane's samples k * S to (k + 1) * S, where S = B / L
    row i of global batch k  sample k * S + (i mod S) of lane i div S

Process r of w processes reads the lanes [r * L / w, (r + 1) * L / w), which are the rows
[r * B / w, (r + 1) * B / w). The concatenation of all processes' rows is therefore the same global batch for
every number of processes. `config/batch_share.py` assigns the latents to processes in the same way.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from infogan_dist.rng import permutation

DRIFT_WARNING_THRESHOLD = 0.05  # epochs that lanes may be apart before the user is warned
WINDOWS = 3  # epochs over which `distinct_share` is averaged


@dataclass(frozen=True)
class ShardSpan:
    """The samples that a lane reads of one shard: from `offset` to the end of `Order.sample_order`.

    Attributes:
        lane: the lane.
        place: position in the endless sequence of shards.
        shard: number of the shard in the manifest.
        begin: number of the span's first sample among all samples of the lane.
        offset: number of samples of the shard that come before; positive only where a run was resumed.
    """

    lane: int
    place: int
    shard: int
    begin: int
    offset: int


class Order:
    """The endless order of a shard set's samples.

    Args:
        seed: the run's.
        sizes: number of samples of each shard.
        lanes: L, the number of lanes.
        batch: B, the number of real images of a global batch; a multiple of L.

    Attributes:
        share: S = B / L, the number of samples of each lane in a global batch.
    """

    def __init__(self, seed: int, sizes: list[int], lanes: int, batch: int):
        assert batch % lanes == 0
        self.seed, self.lanes, self.share = seed, lanes, batch // lanes
        self.sizes = np.asarray(sizes, np.int64)
        self._ends: list[np.ndarray] = []  # samples that each lane has read by the end of each epoch
        self._epoch = lru_cache(maxsize=4)(lambda n: permutation(seed, "shards", n, len(sizes)))

    def shard_at(self, place: int) -> int:
        """Return the shard at a place of the endless sequence."""
        epoch, position = divmod(place, len(self.sizes))
        return int(self._epoch(epoch)[position])

    def sample_order(self, place: int) -> np.ndarray:
        """Return the order in which the samples of the shard at a place are read, int64 [samples]."""
        return permutation(self.seed, "within", place, int(self.sizes[self.shard_at(place)]))

    def locate(self, lane: int, sample: int) -> tuple[int, int]:
        """Return the place of a lane's n-th sample, and its offset in the order of that shard."""
        if (self.sizes == self.sizes[0]).all():
            turn, offset = divmod(sample, int(self.sizes[0]))
            return turn * self.lanes + lane, offset
        return self._locate_unequal(lane, sample)

    def _locate_unequal(self, lane: int, sample: int) -> tuple[int, int]:
        """Locate the epoch by the number of samples up to its end, then the shard within the epoch."""
        while not self._ends or self._ends[-1][lane] <= sample:
            self._ends.append((self._ends[-1] if self._ends else 0) + self._lane_samples(len(self._ends)))
        epoch = bisect_right(self._ends, sample, key=lambda ends: ends[lane])
        if epoch:
            sample -= int(self._ends[epoch - 1][lane])
        first = (
            lane - epoch * len(self.sizes)
        ) % self.lanes  # position of the lane's first shard in the epoch
        sizes = self.sizes[self._epoch(epoch)[first :: self.lanes]]
        ends = np.cumsum(sizes)
        turn = int(np.searchsorted(ends, sample, side="right"))
        place = epoch * len(self.sizes) + first + turn * self.lanes
        return place, int(sample - ends[turn] + sizes[turn])

    def _lane_samples(self, epoch: int) -> np.ndarray:
        """Return the number of samples that each lane reads in an epoch, int64 [L]."""
        lane = (epoch * len(self.sizes) + np.arange(len(self.sizes))) % self.lanes
        return np.bincount(lane, self.sizes[self._epoch(epoch)], self.lanes).astype(np.int64)

    def drift(self) -> float:
        """Return how far shards of unequal sizes drive the lanes apart in the first epoch, in epochs.

        That is the difference between the lane with the largest shards and the lane with the smallest.
        """
        places = np.bincount(np.arange(len(self.sizes)) % self.lanes, minlength=self.lanes)
        ahead = self._lane_samples(0) - places * self.sizes.mean()
        return float(ahead.max() - ahead.min()) * self.lanes / float(self.sizes.sum())

    def distinct_share(self) -> float:
        """Return the expected share of distinct samples among as many samples as the set has, in (0, 1].

        It is the mean over the first `WINDOWS` epochs. Below 1, some samples come twice within the length of
        an epoch and others not at all, since shards are unequal or do not divide evenly among the lanes.
        """
        samples = int(self.sizes.sum())
        if len(self.sizes) % self.lanes == 0 and (self.sizes == self.sizes[0]).all():
            return 1.0
        steps = samples / (self.lanes * self.share)
        shares = []
        for window in range(WINDOWS):
            first, last = round(window * steps), max(round((window + 1) * steps), round(window * steps) + 1)
            # A span is a random part of its shard: a sample is missing if it is in none of the shard's spans.
            missing = np.ones(len(self.sizes))
            for lane in range(self.lanes):
                left = (last - first) * self.share
                for span in self.spans(lane, first):
                    size = int(self.sizes[span.shard])
                    taken = min(left, size - span.offset)
                    missing[span.shard] *= 1 - taken / size
                    left -= taken
                    if left == 0:
                        break
            shares.append(self.sizes @ (1 - missing) / ((last - first) * self.share * self.lanes))
        return float(np.mean(np.minimum(shares, 1.0)))

    def drift_warning(self) -> str | None:
        """Return a message if epochs are not what users expect, else None.

        That is if the lanes drift apart by more than `DRIFT_WARNING_THRESHOLD` epochs, or if more than that
        share of the samples is repeated within the length of an epoch.
        """
        drift, distinct = self.drift(), self.distinct_share()
        if drift <= DRIFT_WARNING_THRESHOLD and distinct >= 1 - DRIFT_WARNING_THRESHOLD:
            return None
        sizes = " to ".join(f"{size:,}" for size in sorted({int(self.sizes.min()), int(self.sizes.max())}))
        return (
            f"data.shards: {len(self.sizes):,} shards of {sizes} images on "
            f"{self.lanes} lanes: epochs overlap by {drift:.0%} of an epoch, and {distinct:.0%} of the "
            "samples within the length of an epoch are distinct; create the set again with --shards a "
            f"multiple of {self.lanes}, or set data.lanes"
        )

    def spans(self, lane: int, step: int) -> Iterator[ShardSpan]:
        """Yield a lane's spans from global batch `step` on, without end."""
        begin = step * self.share
        place, offset = self.locate(lane, begin)
        while True:
            shard = self.shard_at(place)
            yield ShardSpan(lane, place, shard, begin, offset)
            begin += int(self.sizes[shard]) - offset
            place, offset = place + self.lanes, 0
