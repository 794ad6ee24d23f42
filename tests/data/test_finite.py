"""A finite dataset reads shards no more often than its cache requires."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from infogan_dist.creation.write import write_shard_set
from infogan_dist.data import finite
from infogan_dist.data.fetch import Store
from infogan_dist.data.finite import FiniteDataset
from infogan_dist.data.shards import load_manifest, read_shard
from tests.conftest import images_source, number_of


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Return a counter of how often each shard is read from now on."""
    reads: Counter[int] = Counter()

    def recorded_read(manifest, index, *rest):
        reads[index] += 1
        return read_shard(manifest, index, *rest)

    monkeypatch.setattr(finite, "read_shard", recorded_read)
    return reads


@pytest.mark.parametrize(("cached", "expected"), [(0, [2, 2, 2, 2]), (2, [1, 1, 2, 2]), (4, [1, 1, 1, 1])])
def test_shards_that_fit_the_cache_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: int, expected: list[int]
):
    write_shard_set(images_source(2400), tmp_path, shards=4)
    manifest = load_manifest(str(tmp_path))
    reads = count_reads(monkeypatch)
    dataset = FiniteDataset(manifest, Store(), cache_bytes=cached * 600 * manifest.decoded_sample_bytes)
    for _ in range(2):
        assert sum(len(dataset.read(i).images) for i in range(len(dataset.sizes))) == 2400
    assert [reads[i] for i in range(4)] == expected


@pytest.mark.parametrize(("cached", "expected"), [(0, 2), (1, 1)])
def test_a_sample_decodes_each_shard_once_per_pass_and_caches_its_images_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: int, expected: int
):
    write_shard_set(images_source(2400), tmp_path, shards=40)
    manifest = load_manifest(str(tmp_path))
    reads = count_reads(monkeypatch)
    # The cache has room for the sample, which is half of the set.
    cache_bytes = cached * 1200 * manifest.decoded_sample_bytes
    dataset = FiniteDataset(manifest, Store(), limit=1200, cache_bytes=cache_bytes)
    for _ in range(2):
        assert sum(len(dataset.read(i).images) for i in range(len(dataset.sizes))) == 1200
    assert [reads[i] for i in range(40)] == [expected] * 40


def test_images_are_taken_by_position(tmp_path: Path):
    write_shard_set(images_source(100), tmp_path, shards=5)
    dataset = FiniteDataset(load_manifest(str(tmp_path)), Store(), limit=50)
    every = [number_of(image) for image in dataset.read(0).images]
    positions = np.array([0, 3, 20, 21, 49])
    taken = [number_of(image) for image in dataset.take(positions).images]
    assert taken == [every[i] for i in positions]
