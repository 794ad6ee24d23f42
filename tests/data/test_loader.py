"""What processes read: together the global batch, whoever reads it and however."""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infogan_dist.data import fetch
from infogan_dist.data import loader as loader_module
from infogan_dist.data.loader import Loader
from infogan_dist.data.order import Order
from infogan_dist.data.shards import DecodedShard, Manifest, Shard, load_manifest, read_shard
from infogan_dist.data.write import write_shard_set
from infogan_dist.errors import DataError
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


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on one core
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
    write_shard_set(images_source(247), tmp_path, shards=8)
    assert seen(tmp_path, 4, 0, 200) == seen(tmp_path, 1, 0, 200)
    counts = Counter(n for b in seen(tmp_path, 1, 0, 247) for n in b)  # 16 passes' worth
    assert set(counts.values()) <= {14, 15, 16, 17, 18}
    assert len(counts) == 247


def test_labels_stay_with_their_images(small_set: Path):
    (loader,) = loaders(small_set, 1)
    batch = next(loader.batches(3))
    assert batch.labels.tolist() == [number_of(image) % 2 for image in batch.images]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the shards that are read, as they are."""
    reads: list[int] = []

    def noted(manifest, index, *rest):
        reads.append(index)
        return read_shard(manifest, index, *rest)

    monkeypatch.setattr(loader_module, "read_shard", noted)
    return reads


def test_every_shard_is_read_by_one_process_a_pass(small_set: Path, reads: list[int]):
    for passes in (1, 3):
        reads.clear()
        for loader in loaders(small_set, 4):
            stream = loader.batches(0)
            for _ in range(15 * passes):
                next(stream)
        assert Counter(reads) == dict.fromkeys(range(8), passes)


def test_what_fits_the_cache_is_read_once(small_set: Path, reads: list[int]):
    (loader,) = loaders(small_set, 1, cache_bytes=5 * 30 * 73)  # five of the eight decoded shards
    stream = loader.batches(0)
    for _ in range(15 * 4):
        next(stream)
    assert sorted(Counter(reads).values()) == [1] * 5 + [4] * 3


def test_more_processes_than_shards_still_see_everything(tmp_path: Path):
    write_shard_set(images_source(48), tmp_path, shards=2)
    assert seen(tmp_path, 8, 0, 30) == seen(tmp_path, 1, 0, 30)


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
    blocks = [read_shard(manifest, i) for i in range(8)]
    expected = []
    for lane in range(LANES):
        visit = next(order.visits(lane, 0))
        expected += [blocks[visit.shard].images[i] for i in order.within(visit.place)[:2]]
    (loader,) = loaders(small_set, 1)
    assert torch.equal(next(loader.batches(0)).images, torch.stack([torch.from_numpy(i) for i in expected]))


@pytest.fixture
def damaged_set(tmp_path: Path, small_set: Path) -> Path:
    """`small_set` with a shard missing, one cut short, and one that holds two samples that do not decode."""
    out = tmp_path / "damaged"
    shutil.copytree(small_set, out)
    (out / "000001.tar").unlink()
    (out / "000004.tar").write_bytes((out / "000004.tar").read_bytes()[:5000])
    path = out / "000006.tar"
    parts = path.read_bytes().split(b"\x89PNG")
    for i in (4, 9):
        parts[i] = b"no png, " + parts[i][8:]
    path.write_bytes(b"\x89PNG".join(parts))
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["shards"][6]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def test_others_take_the_place_of_what_is_broken_in_every_world(damaged_set: Path, capfd):
    expected = seen(damaged_set, 1, 0, 45, skip=True)  # three passes
    for world in (2, 4, 8):
        assert seen(damaged_set, world, 0, 45, skip=True) == expected
    assert seen(damaged_set, 1, 0, 45, skip=True, cache_bytes=10**9, workers=1) == expected
    assert seen(damaged_set, 2, 17, 20, skip=True) == expected[17:37]
    said = capfd.readouterr().err
    for what in ("000001.tar: the shard is missing", "000004.tar", "000006.tar, 0"):
        assert f"warning: skipped {damaged_set}/{what}" in said


def test_what_took_a_place_is_counted(damaged_set: Path, small_set: Path):
    (loader,) = loaders(damaged_set, 1, skip=True)
    stream = loader.batches(0)
    batches = [next(stream) for _ in range(15)]
    substituted = sum(int(b.substituted.sum()) for b in batches)
    assert substituted == 30 + 30 + 2  # two shards of 30, and two samples
    numbers = [number_of(i) for b in batches for i, s in zip(b.images, b.substituted, strict=True) if not s]
    assert len(set(numbers)) == len(numbers) == 240 - substituted  # the others are each seen once
    (whole,) = loaders(small_set, 1, skip=True)
    assert not next(whole.batches(0)).substituted.any()


def test_what_is_broken_ends_the_run_unless_it_is_to_be_skipped(damaged_set: Path):
    (loader,) = loaders(damaged_set, 1)
    with pytest.raises(DataError, match=r"00000[146]\.tar"):
        [None for _ in zip(range(15), loader.batches(0), strict=False)]


def test_an_unreachable_server_is_never_skipped(
    tmp_path: Path, small_set: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    far = dataclasses.replace(load_manifest(str(small_set)), location="http://127.0.0.1:9/set")
    loader = Loader(far, Order(0, [30] * 8, 8, 16), range(8), skip=True)
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
def test_any_window_is_the_same_for_every_world_from_any_step(
    seed: int, sizes: list[int], lanes: int, share: int, start: int, cache: int
):
    """What processes see together, in order, over seeds, shard sizes, lanes, worlds, stops and caches."""
    shards = [Shard(f"{i}", n, 0, "") for i, n in enumerate(sizes)]
    manifest = Manifest("made", (1, 1, 2), [], shards)
    starts = np.cumsum([0, *sizes])

    def block(manifest: Manifest, index: int, *rest: object) -> DecodedShard:
        numbers = np.arange(starts[index], starts[index + 1])
        images = np.stack([numbers // 256, numbers % 256], 1).astype(np.uint8).reshape(-1, 1, 1, 2)
        return DecodedShard(
            images, numbers, np.zeros(len(numbers), bool), [], np.zeros((len(numbers), 0), int)
        )

    def window(world: int, first: int, count: int) -> list[list[int]]:
        order, own = Order(seed, sizes, lanes, lanes * share), lanes // world
        streams = [
            Loader(manifest, order, range(r * own, (r + 1) * own), cache_bytes=cache).batches(first)
            for r in range(world)
        ]
        return [[int(n) for s in streams for n in next(s).labels] for _ in range(count)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader_module, "read_shard", block)
        through = window(1, 0, start + 8)[start:]
        for world in (1, 2, lanes):
            assert window(world, start, 8) == through
