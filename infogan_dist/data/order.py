"""Which sample is seen when: arithmetic on (seed, position), without I/O and without state.

The shards follow one another endlessly, each pass in an order of its own. Place p of that sequence goes
to lane p mod L, so a lane's turn t is place t L + lane. A lane reads its shards one after the other, each
in an order that depends on its place alone. Global batch k is the next B / L samples of every lane. None
of this knows how many processes there are: a process takes over L / world lanes, and so a slice of the batch.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from infogan_dist.rng import permutation

DRIFT_WARNING_THRESHOLD = 0.05  # epochs that lanes may be apart before the user is warned


@dataclass(frozen=True)
class ShardVisit:
    """A lane's stay in a shard: its samples `offset` to the end, in the place's own order.

    Attributes:
        lane, place: whose turn, and where in the endless sequence.
        shard: the shard's number in the manifest.
        begin: the lane's sample number at which the stay begins.
        offset: samples of the shard that came before it (of a stay that is resumed).
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
        sizes: samples of each shard.
        lanes: L.
        batch: B, real images of a global batch; a multiple of L.
    """

    def __init__(self, seed: int, sizes: list[int], lanes: int, batch: int):
        assert batch % lanes == 0
        self.seed, self.lanes, self.share = seed, lanes, batch // lanes
        self.sizes = np.asarray(sizes, np.int64)
        self._ends: list[np.ndarray] = []  # samples that each lane has read by the end of each pass
        self._pass = lru_cache(maxsize=4)(lambda n: permutation(seed, "shards", n, len(sizes)))

    def shard_at(self, place: int) -> int:
        """The shard that the endless sequence has at a place."""
        number, j = divmod(place, len(self.sizes))
        return int(self._pass(number)[j])

    def within(self, place: int) -> np.ndarray:
        """The order in which the shard at a place is read, int64 [its size]."""
        return permutation(self.seed, "within", place, int(self.sizes[self.shard_at(place)]))

    def locate(self, lane: int, sample: int) -> tuple[int, int]:
        """The place and the offset in its shard of a lane's n-th sample."""
        if (self.sizes == self.sizes[0]).all():
            turn, offset = divmod(sample, int(self.sizes[0]))
            return turn * self.lanes + lane, offset
        return self._locate_unequal(lane, sample)

    def _locate_unequal(self, lane: int, sample: int) -> tuple[int, int]:
        """Finds the pass by what each lane has read by its end, then the shard within the pass."""
        while not self._ends or self._ends[-1][lane] <= sample:
            self._ends.append((self._ends[-1] if self._ends else 0) + self._lane_samples(len(self._ends)))
        number = bisect_right(self._ends, sample, key=lambda ends: ends[lane])
        if number:
            sample -= int(self._ends[number - 1][lane])
        first = (lane - number * len(self.sizes)) % self.lanes  # of the lane's places within this pass
        sizes = self.sizes[self._pass(number)[first :: self.lanes]]
        ends = np.cumsum(sizes)
        turn = int(np.searchsorted(ends, sample, side="right"))
        place = number * len(self.sizes) + first + turn * self.lanes
        return place, int(sample - ends[turn] + sizes[turn])

    def _lane_samples(self, number: int) -> np.ndarray:
        """Samples that each lane reads in a pass, int64 [L]."""
        lane = (number * len(self.sizes) + np.arange(len(self.sizes))) % self.lanes
        return np.bincount(lane, self.sizes[self._pass(number)], self.lanes).astype(np.int64)

    def drift(self) -> float:
        """How far shards of unequal sizes drive the lanes apart in the first pass, in passes.

        The lane with the largest shards then ends it by so much later than the one with the smallest.
        """
        places = np.bincount(np.arange(len(self.sizes)) % self.lanes, minlength=self.lanes)
        ahead = self._lane_samples(0) - places * self.sizes.mean()
        return float(ahead.max() - ahead.min()) * self.lanes / float(self.sizes.sum())

    def drift_warning(self) -> str | None:
        """Return a message about lanes that drift apart noticeably, else None."""
        drift = self.drift()
        if drift <= DRIFT_WARNING_THRESHOLD:
            return None
        least, most = self.sizes.min(), self.sizes.max()
        return (
            f"data.shards: shards contain {least:,} to {most:,} images, so epochs overlap by {drift:.0%} of an epoch; "
            f"create the set again with --shards a multiple of {self.lanes}, or set data.lanes"
        )

    def visits(self, lane: int, step: int) -> Iterator[ShardVisit]:
        """A lane's stays from global batch `step` on, without end."""
        begin = step * self.share
        place, offset = self.locate(lane, begin)
        while True:
            shard = self.shard_at(place)
            yield ShardVisit(lane, place, shard, begin, offset)
            begin += int(self.sizes[shard]) - offset
            place, offset = place + self.lanes, 0
