"""The order of samples: each once a pass, the same for every world, reached by arithmetic."""

import itertools
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infogan_dist.data.order import Order

Sample = tuple[int, int, int]  # place, shard, sample in the shard


def lane_samples(order: Order, lane: int, step: int, count: int) -> list[Sample]:
    """What a lane reads from a step on."""
    found: list[Sample] = []
    for visit in order.visits(lane, step):
        found += [(visit.place, visit.shard, int(i)) for i in order.within(visit.place)[visit.offset :]]
        if len(found) >= count:
            return found[:count]
    raise AssertionError


def batches(order: Order, step: int, count: int) -> list[list[Sample]]:
    """Global batches, lane by lane."""
    lanes = [lane_samples(order, lane, step, count * order.share) for lane in range(order.lanes)]
    return [
        [s for lane in lanes for s in lane[k * order.share : (k + 1) * order.share]] for k in range(count)
    ]


@pytest.mark.parametrize(("shards", "lanes"), [(8, 8), (16, 8), (8, 4), (5, 1)])
def test_a_pass_sees_each_sample_once(shards: int, lanes: int):
    order = Order(0, [6] * shards, lanes, lanes * 2)
    steps = 6 * shards // (lanes * 2)
    for number in range(3):
        seen = Counter(s[1:] for batch in batches(order, number * steps, steps) for s in batch)
        assert set(seen.values()) == {1}
        assert len(seen) == 6 * shards


def test_passes_and_shards_are_shuffled_anew():
    order = Order(0, [50] * 8, 8, 8)
    passes = [[order.shard_at(p) for p in range(n * 8, n * 8 + 8)] for n in range(4)]
    assert all(sorted(p) == list(range(8)) for p in passes)
    assert len({tuple(p) for p in passes}) == 4
    assert not np.array_equal(order.within(0), order.within(8))
    assert Order(1, [50] * 8, 8, 8).within(0).tolist() != order.within(0).tolist()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    lanes=st.sampled_from([1, 2, 4, 6]),
    share=st.integers(1, 9),
    start=st.integers(0, 200),
)
def test_any_step_is_reached_by_arithmetic(seed: int, sizes: list[int], lanes: int, share: int, start: int):
    order = Order(seed, sizes, lanes, lanes * share)
    through = batches(order, 0, start + 3)[start:]
    assert batches(Order(seed, sizes, lanes, lanes * share), start, 3) == through


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    lanes=st.sampled_from([1, 2, 4, 8]),
    passes=st.integers(1, 4),
)
def test_each_shard_goes_to_one_lane_a_pass_whatever_its_size(sizes: list[int], lanes: int, passes: int):
    order = Order(3, sizes, lanes, lanes)
    places = passes * len(sizes)
    read = [
        list(itertools.takewhile(lambda v: v.place < places, order.visits(lane, 0))) for lane in range(lanes)
    ]
    assert sorted(v.place for lane in read for v in lane) == list(range(places))
    assert Counter(v.shard for lane in read for v in lane) == dict.fromkeys(range(len(sizes)), passes)


@pytest.mark.parametrize("unequal", [False, True])
def test_step_ten_million_of_a_billion_samples_is_found_at_once(unequal: bool):
    sizes = [10_000] * 100_000
    if unequal:
        sizes[0] += 1
    order = Order(0, sizes, 64, 1024)
    start = time.perf_counter()
    for lane in range(64):
        next(order.visits(lane, 10_000_000))
    assert time.perf_counter() - start < 1  # no step is walked through


def test_drift_tells_how_far_unequal_shards_drive_the_lanes_apart():
    assert Order(0, [5] * 8, 8, 8).drift() == 0
    assert Order(0, [5] * 10, 8, 8).drift() == 0
    assert Order(0, [10, 30], 2, 2).drift() == pytest.approx(1.0)  # 30 - 10 over a mean of 20
