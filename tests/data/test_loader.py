"""The processes together read the global batch, whatever their number, workers and caches."""

import dataclasses
import multiprocessing
import os
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infogan_dist.console import set_up_logging
from infogan_dist.creation.write import write_shard_set
from infogan_dist.data import fetch, shard_dataset
from infogan_dist.data.loader import Loader
from infogan_dist.data.order import Order
from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.errors import DataError
from tests.conftest import images_source, number_of
from tests.data.conftest import numbered_set

BATCH, LANES = 16, 8


def loaders(folder: Path | str, world: int, **options: Any) -> list[Loader]:
    """One loader for each process."""
    manifest = load_manifest(str(folder))
    order = Order(5, [s.samples for s in manifest.shards], LANES, BATCH)
    own = LANES // world
    return [Loader(manifest, order, range(r * own, (r + 1) * own), **options) for r in range(world)]


def read_batches(folder: Path, world: int, step: int, count: int, **options: int) -> list[list[int]]:
    """The numbers of the images in `count` global batches, joined from all processes' rows."""
    streams = [loader.batches(step) for loader in loaders(folder, world, **options)]
    return [[number_of(image) for s in streams for image in next(s).images] for _ in range(count)]


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_every_number_of_processes_reads_the_same_batches_in_the_same_order(small_set: Path, world: int):
    assert read_batches(small_set, world, 0, 40) == read_batches(small_set, 1, 0, 40)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on one core
@pytest.mark.parametrize(
    "options", [{"workers": 2}, {"cache_bytes": 10_000}, {"workers": 1, "cache_bytes": 10**9}]
)
def test_workers_and_cache_do_not_change_the_order(small_set: Path, options: dict[str, int]):
    assert read_batches(small_set, 2, 0, 40, **options) == read_batches(small_set, 1, 0, 40)


@pytest.mark.parametrize("step", [1, 7, 15, 33])
def test_a_start_at_a_later_step_continues_the_same_order(small_set: Path, step: int):
    expected = read_batches(small_set, 1, 0, step + 12)[step:]
    assert read_batches(small_set, 4, step, 12, cache_bytes=20_000) == expected


def test_an_epoch_contains_each_image_once(small_set: Path):
    for epoch in range(3):
        batches = read_batches(small_set, 2, epoch * 15, 15)  # 240 images in batches of 16
        assert Counter(n for b in batches for n in b) == dict.fromkeys(range(240), 1)


def test_shards_whose_sizes_differ_by_one_lose_and_repeat_no_image(tmp_path: Path):
    write_shard_set(images_source(247), tmp_path, shards=8)
    assert read_batches(tmp_path, 4, 0, 200) == read_batches(tmp_path, 1, 0, 200)
    counts = Counter(n for b in read_batches(tmp_path, 1, 0, 247) for n in b)  # as many images as 16 epochs
    assert set(counts.values()) <= {14, 15, 16, 17, 18}
    assert len(counts) == 247


def test_labels_stay_with_their_images(small_set: Path):
    (loader,) = loaders(small_set, 1)
    batch = next(loader.batches(3))
    assert batch.labels.tolist() == [number_of(image) % 2 for image in batch.images]


def test_every_shard_is_read_by_one_process_in_an_epoch(small_set: Path, reads: list[int]):
    for epochs in (1, 3):
        reads.clear()
        for loader in loaders(small_set, 4):
            stream = loader.batches(0)
            for _ in range(15 * epochs):
                next(stream)
        assert Counter(reads) == dict.fromkeys(range(8), epochs)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on one core
def test_loading_subprocesses_end_once_all_shards_are_in_memory(small_set: Path):
    (loader,) = loaders(small_set, 1, workers=2, cache_bytes=10**9)
    before, stream = set(multiprocessing.active_children()), loader.batches(0)
    for _ in range(30):  # two epochs
        next(stream)
    assert set(multiprocessing.active_children()) <= before
    next(stream)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_shards_take_neither_shared_memory_nor_open_files_once_they_are_read(
    small_set: Path, cache_bytes: int
):
    def resources() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("/torch_")

    (loader,) = loaders(small_set, 1, workers=1, cache_bytes=cache_bytes)
    files, regions = resources()
    stream = loader.batches(0)
    for _ in range(16):  # more than an epoch
        batch = next(stream)
    used_files, used_regions = resources()
    # A subprocess that goes on has two shards of three tensors ready, and pipes.
    assert used_regions - regions <= (0 if cache_bytes else 6)
    assert used_files - files <= (0 if cache_bytes else 6 + 8)
    assert len(batch.images) == BATCH


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_limit_of_open_files_is_raised_where_many_subprocesses_need_it(small_set: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for limit, expected in ((256 + 16, 256 + 16), (256 + 15, hard)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            next(loaders(small_set, 1, workers=1)[0].batches(0))
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == expected
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_little_shared_memory_is_one_line(small_set: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    (loader,) = loaders(small_set, 1, workers=1)
    with pytest.raises(DataError, match=r"data\.workers: no shared memory .*--shm-size"):
        next(loader.batches(0))


def test_shards_that_fit_the_cache_are_read_once(small_set: Path, reads: list[int]):
    (loader,) = loaders(small_set, 1, cache_bytes=5 * 30 * 73)  # five of the eight decoded shards
    stream = loader.batches(0)
    for _ in range(15 * 4):
        next(stream)
    assert sorted(Counter(reads).values()) == [1] * 5 + [4] * 3


def test_more_processes_than_shards_read_everything(tmp_path: Path):
    write_shard_set(images_source(48), tmp_path, shards=2)
    assert read_batches(tmp_path, 8, 0, 30) == read_batches(tmp_path, 1, 0, 30)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_shard_is_named_where_it_is_needed(tmp_path: Path, workers: int):
    manifest = write_shard_set(images_source(80), tmp_path, shards=8)
    path = tmp_path / manifest.shards[3].url
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    (loader,) = loaders(tmp_path, 1, workers=workers)
    with pytest.raises(DataError, match=r"000003\.tar.*SHA-256"):
        next(loader.batches(0))


def test_batches_are_the_next_samples_of_every_lane(small_set: Path):
    manifest = load_manifest(str(small_set))
    order = Order(5, [s.samples for s in manifest.shards], LANES, BATCH)
    shards = [read_shard(manifest, i) for i in range(8)]
    expected = []
    for lane in range(LANES):
        span = next(order.spans(lane, 0))
        expected += [shards[span.shard].images[i] for i in order.sample_order(span.place)[:2]]
    (loader,) = loaders(small_set, 1)
    assert torch.equal(next(loader.batches(0)).images, torch.stack([torch.from_numpy(i) for i in expected]))


def test_the_same_images_replace_broken_ones_for_every_number_of_processes(damaged_set: Path, capsys):
    set_up_logging()
    expected = read_batches(damaged_set, 1, 0, 45, skip=True)  # three epochs
    for world in (2, 4, 8):
        assert read_batches(damaged_set, world, 0, 45, skip=True) == expected
    assert read_batches(damaged_set, 1, 0, 45, skip=True, cache_bytes=10**9, workers=1) == expected
    assert read_batches(damaged_set, 2, 17, 20, skip=True) == expected[17:37]
    output = capsys.readouterr().err
    for subject in ("000001.tar: the shard is missing", "000004.tar", "000006.tar, 0"):
        assert f"warning: skipped {damaged_set}/{subject}" in output


def test_substituted_images_are_marked(damaged_set: Path, small_set: Path):
    (loader,) = loaders(damaged_set, 1, skip=True)
    stream = loader.batches(0)
    batches = [next(stream) for _ in range(15)]
    substituted = sum(int(b.substituted.sum()) for b in batches)
    assert substituted == 30 + 30 + 2  # two shards of 30, and two samples
    numbers = [number_of(i) for b in batches for i, s in zip(b.images, b.substituted, strict=True) if not s]
    assert len(set(numbers)) == len(numbers) == 240 - substituted  # each of the others occurs once
    (intact,) = loaders(small_set, 1, skip=True)
    assert not next(intact.batches(0)).substituted.any()


def test_a_broken_shard_or_image_ends_a_run_without_skip(damaged_set: Path):
    (loader,) = loaders(damaged_set, 1)
    with pytest.raises(DataError, match=r"00000[146]\.tar"):
        [None for _ in zip(range(15), loader.batches(0), strict=False)]


def test_an_unreachable_server_is_never_skipped(
    tmp_path: Path, small_set: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    remote = dataclasses.replace(load_manifest(str(small_set)), location="http://127.0.0.1:9/set")
    loader = Loader(remote, Order(0, [30] * 8, 8, 16), range(8), skip=True)
    with pytest.raises(fetch.NetworkError, match=r"127\.0\.0\.1:9/set/00000\d\.tar"):
        next(loader.batches(0))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    lanes=st.sampled_from([2, 4, 8]),
    share=st.integers(1, 5),
    start=st.integers(0, 60),
    cache=st.sampled_from([0, 200, 10**6]),
)
def test_any_window_is_the_same_for_every_number_of_processes_from_any_step(
    seed: int, sizes: list[int], lanes: int, share: int, start: int, cache: int
):
    manifest, read_numbered = numbered_set(sizes)

    def window(world: int, first: int, count: int) -> list[list[int]]:
        order, own = Order(seed, sizes, lanes, lanes * share), lanes // world
        streams = [
            Loader(manifest, order, range(r * own, (r + 1) * own), cache_bytes=cache).batches(first)
            for r in range(world)
        ]
        return [[int(n) for s in streams for n in next(s).labels] for _ in range(count)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_dataset, "read_shard", read_numbered)
        expected = window(1, 0, start + 8)[start:]
        for world in (1, 2, lanes):
            assert window(world, start, 8) == expected
