"""A finite dataset reads shards no more often than its cache requires."""

from collections import Counter
from pathlib import Path

import pytest

from infogan_dist.data import finite
from infogan_dist.data.fetch import Store
from infogan_dist.data.finite import FiniteDataset
from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.data.write import write_shard_set
from tests.conftest import images_source


@pytest.mark.parametrize(("cached", "expected"), [(0, [2, 2, 2, 2]), (2, [1, 1, 2, 2]), (4, [1, 1, 1, 1])])
def test_shards_that_fit_the_cache_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: int, expected: list[int]
):
    write_shard_set(images_source(2400), tmp_path, shards=4)
    manifest = load_manifest(str(tmp_path))
    reads: Counter[int] = Counter()

    def recorded_read(manifest, index, *rest):
        reads[index] += 1
        return read_shard(manifest, index, *rest)

    monkeypatch.setattr(finite, "read_shard", recorded_read)
    dataset = FiniteDataset(manifest, Store(), cache_bytes=cached * 600 * manifest.decoded_sample_bytes)
    for _ in range(2):
        assert sum(len(dataset.read(i).images) for i in range(len(dataset.sizes))) == 2400
    assert [reads[i] for i in range(4)] == expected
