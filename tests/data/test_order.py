"""The order of samples: each once in an epoch, the same for every world, computed directly at any step."""

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
    """The samples that a lane reads from a step on."""
    samples: list[Sample] = []
    for span in order.spans(lane, step):
        rows = order.sample_order(span.place)[span.offset :]
        samples += [(span.place, span.shard, int(i)) for i in rows]
        if len(samples) >= count:
            return samples[:count]
    raise AssertionError


def batches(order: Order, step: int, count: int) -> list[list[Sample]]:
    """Global batches, lane by lane."""
    lanes = [lane_samples(order, lane, step, count * order.share) for lane in range(order.lanes)]
    return [
        [s for lane in lanes for s in lane[k * order.share : (k + 1) * order.share]] for k in range(count)
    ]


@pytest.mark.parametrize(("shards", "lanes"), [(8, 8), (16, 8), (8, 4), (5, 1)])
def test_an_epoch_contains_each_sample_once(shards: int, lanes: int):
    order = Order(0, [6] * shards, lanes, lanes * 2)
    steps = 6 * shards // (lanes * 2)
    for epoch in range(3):
        counts = Counter(s[1:] for batch in batches(order, epoch * steps, steps) for s in batch)
        assert set(counts.values()) == {1}
        assert len(counts) == 6 * shards


def test_every_epoch_and_every_shard_is_shuffled_differently():
    order = Order(0, [50] * 8, 8, 8)
    epochs = [[order.shard_at(p) for p in range(n * 8, n * 8 + 8)] for n in range(4)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert not np.array_equal(order.sample_order(0), order.sample_order(8))
    assert Order(1, [50] * 8, 8, 8).sample_order(0).tolist() != order.sample_order(0).tolist()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    lanes=st.sampled_from([1, 2, 4, 6]),
    share=st.integers(1, 9),
    start=st.integers(0, 200),
)
def test_any_step_is_computed_directly(seed: int, sizes: list[int], lanes: int, share: int, start: int):
    order = Order(seed, sizes, lanes, lanes * share)
    expected = batches(order, 0, start + 3)[start:]
    assert batches(Order(seed, sizes, lanes, lanes * share), start, 3) == expected


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    lanes=st.sampled_from([1, 2, 4, 6]),
    share=st.integers(1, 9),
    step=st.integers(0, 200),
)
def test_places_lanes_and_rows_follow_the_formula(sizes: list[int], lanes: int, share: int, step: int):
    order = Order(7, sizes, lanes, lanes * share)
    (batch,) = batches(order, step, 1)
    for i, (place, shard, row) in enumerate(batch):
        lane = i // share
        assert place % lanes == lane
        assert shard == order.shard_at(place)
        # Sample k * S + (i mod S) of the lane: those of its earlier places come before.
        earlier = sum(int(sizes[order.shard_at(p)]) for p in range(lane, place, lanes))
        assert row == order.sample_order(place)[step * share + i % share - earlier]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    lanes=st.sampled_from([1, 2, 4, 8]),
    epochs=st.integers(1, 4),
)
def test_each_shard_goes_to_one_lane_in_an_epoch_whatever_its_size(sizes: list[int], lanes: int, epochs: int):
    order = Order(3, sizes, lanes, lanes)
    places = epochs * len(sizes)
    spans = [
        list(itertools.takewhile(lambda s: s.place < places, order.spans(lane, 0))) for lane in range(lanes)
    ]
    assert sorted(s.place for lane in spans for s in lane) == list(range(places))
    assert Counter(s.shard for lane in spans for s in lane) == dict.fromkeys(range(len(sizes)), epochs)


@pytest.mark.parametrize("unequal", [False, True])
def test_step_ten_million_of_a_billion_samples_takes_no_time(unequal: bool):
    sizes = [10_000] * 100_000
    if unequal:
        sizes[0] += 1
    order = Order(0, sizes, 64, 1024)
    start = time.perf_counter()
    for lane in range(64):
        next(order.spans(lane, 10_000_000))
    assert time.perf_counter() - start < 1  # earlier steps are not walked through


def test_drift_is_how_far_unequal_shards_drive_the_lanes_apart():
    assert Order(0, [5] * 8, 8, 8).drift() == 0
    assert Order(0, [5] * 10, 8, 8).drift() == 0
    assert Order(0, [10, 30], 2, 2).drift() == pytest.approx(1.0)  # 30 - 10, divided by the mean 20


def test_only_noticeable_drift_is_warned_of():
    assert Order(0, [100] * 7 + [101], 8, 8).drift_warning() is None
    warning = Order(0, [10, 30], 2, 2).drift_warning()
    assert warning is not None
    assert "10 to 30 images on 2 lanes: epochs overlap by 100% of an epoch" in warning
    assert "create the set again" in warning


def distinct_by_counting(order: Order, samples: int, windows: int) -> float:
    """Return the share of distinct samples in each of the first windows of an epoch's length, on average."""
    shares = []
    steps = samples / (order.lanes * order.share)
    for window in range(windows):
        first, last = round(window * steps), round((window + 1) * steps)
        samples_read = []
        for lane in range(order.lanes):
            left = (last - first) * order.share
            for span in order.spans(lane, first):
                rows = order.sample_order(span.place)[span.offset :][:left]
                samples_read += [(span.shard, int(row)) for row in rows]
                left -= len(rows)
                if left == 0:
                    break
        shares.append(len(set(samples_read)) / len(samples_read))
    return float(np.mean(shares))


@pytest.mark.parametrize(
    ("sizes", "lanes"), [([20] * 5, 6), ([200] * 6, 4), ([200] * 3, 8), ([300, 100, 200, 200], 4)]
)
def test_samples_repeated_within_an_epoch_s_length_are_reported(sizes: list[int], lanes: int):
    """Also where all shards are equal, so that the lanes do not drift apart."""
    order = Order(0, sizes, lanes, lanes)
    counted = distinct_by_counting(order, sum(sizes), 3)
    # The expectation over the order within shards; its deviation is below 3 points for these sets.
    assert order.distinct_share() == pytest.approx(counted, abs=0.06)
    warning = order.drift_warning()
    assert warning is not None
    assert f"{order.distinct_share():.0%} of the samples" in warning


def test_equal_shards_that_divide_evenly_need_no_warning():
    order = Order(0, [30] * 16, 8, 16)
    assert order.distinct_share() == distinct_by_counting(order, 480, 3) == 1
    assert order.drift_warning() is None
