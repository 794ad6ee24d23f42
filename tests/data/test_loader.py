"""What processes read: together the global batch, whoever reads it and however."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from infogan_dist.data import loader as loader_module
from infogan_dist.data.loader import Loader
from infogan_dist.data.order import Order
from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.errors import DataError
from infogan_dist.make_shards import make_shards
from tests.conftest import images_source, number_of

BATCH, LANES = 16, 8


def loaders(folder: Path, world: int, **options: Any) -> list[Loader]:
    manifest = load_manifest(str(folder))
    order = Order(5, [s.samples for s in manifest.shards], LANES, BATCH)
    own = LANES // world
    return [Loader(manifest, order, range(r * own, (r + 1) * own), **options) for r in range(world)]


def seen(folder: Path, world: int, step: int, count: int, **options: int) -> list[list[int]]:
    """The numbers of the images in `count` global batches, put together from all processes' slices."""
    streams = [loader.batches(step) for loader in loaders(folder, world, **options)]
    return [[number_of(image) for s in streams for image in next(s).images] for _ in range(count)]


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_processes_together_see_the_same_batches_in_the_same_order(small_set: Path, world: int):
    assert seen(small_set, world, 0, 40) == seen(small_set, 1, 0, 40)


@pytest.mark.parametrize(
    "options", [{"workers": 2}, {"cache_bytes": 10_000}, {"workers": 1, "cache_bytes": 10**9}]
)
def test_workers_and_cache_do_not_change_the_order(small_set: Path, options: dict[str, int]):
    assert seen(small_set, 2, 0, 40, **options) == seen(small_set, 1, 0, 40)


@pytest.mark.parametrize("step", [1, 7, 15, 33])
def test_starting_at_a_step_goes_on_as_if_read_through(small_set: Path, step: int):
    through = seen(small_set, 1, 0, step + 12)[step:]
    assert seen(small_set, 4, step, 12, cache_bytes=20_000) == through


def test_a_pass_sees_each_image_once(small_set: Path):
    for number in range(3):
        batches = seen(small_set, 2, number * 15, 15)  # 240 images in batches of 16
        assert Counter(n for b in batches for n in b) == dict.fromkeys(range(240), 1)


def test_shards_of_sizes_one_apart_lose_nothing_and_double_nothing(tmp_path: Path):
    make_shards(images_source(247), tmp_path, shards=8)
    assert seen(tmp_path, 4, 0, 200) == seen(tmp_path, 1, 0, 200)
    counts = Counter(n for b in seen(tmp_path, 1, 0, 247) for n in b)  # 16 passes' worth
    assert set(counts.values()) <= {14, 15, 16, 17, 18}
    assert len(counts) == 247


def test_labels_stay_with_their_images(small_set: Path):
    (loader,) = loaders(small_set, 1)
    batch = next(loader.batches(3))
    assert batch.labels.tolist() == [number_of(image) % 2 for image in batch.images]


def test_every_shard_is_read_by_one_process_a_pass(small_set: Path, monkeypatch: pytest.MonkeyPatch):
    reads: list[int] = []

    def noted(manifest, index):
        reads.append(index)
        return read_shard(manifest, index)

    monkeypatch.setattr(loader_module, "read_shard", noted)
    for passes in (1, 3):
        reads.clear()
        for loader in loaders(small_set, 4):
            stream = loader.batches(0)
            for _ in range(15 * passes):
                next(stream)
        assert Counter(reads) == dict.fromkeys(range(8), passes)


def test_what_fits_the_cache_is_read_once(small_set: Path, monkeypatch: pytest.MonkeyPatch):
    reads: list[int] = []

    def noted(manifest, index):
        reads.append(index)
        return read_shard(manifest, index)

    monkeypatch.setattr(loader_module, "read_shard", noted)
    (loader,) = loaders(small_set, 1, cache_bytes=5 * 30 * 72)  # five of the eight decoded shards
    stream = loader.batches(0)
    for _ in range(15 * 4):
        next(stream)
    assert sorted(Counter(reads).values()) == [1] * 5 + [4] * 3


def test_more_processes_than_shards_still_see_everything(tmp_path: Path):
    make_shards(images_source(48), tmp_path, shards=2)
    assert seen(tmp_path, 8, 0, 30) == seen(tmp_path, 1, 0, 30)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_shard_is_named_where_it_is_needed(tmp_path: Path, workers: int):
    manifest = make_shards(images_source(80), tmp_path, shards=8)
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
    blocks = [read_shard(manifest, i) for i in range(8)]
    expected = []
    for lane in range(LANES):
        visit = next(order.visits(lane, 0))
        expected += [blocks[visit.shard].images[i] for i in order.within(visit.place)[:2]]
    (loader,) = loaders(small_set, 1)
    assert torch.equal(next(loader.batches(0)).images, torch.stack([torch.from_numpy(i) for i in expected]))
