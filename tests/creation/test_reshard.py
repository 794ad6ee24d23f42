"""Class-sorted tars are reported, and resharded into a shuffled set without a loss."""

import gzip
import logging
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from infogan_dist.creation.index import index_tars
from infogan_dist.creation.sortedness import sorted_warning
from infogan_dist.data.images import encode_png
from infogan_dist.data.loader import Loader
from infogan_dist.data.order import Order
from infogan_dist.data.shards import Manifest, load_manifest, read_shard
from infogan_dist.make_shards import main
from tests.creation.test_index import error_line
from tests.data.test_tars import tar_of

CLASSES, LANES, BATCH = 10, 8, 128


def numbered(number: int) -> bytes:
    """A PNG file of 8x8 with this number in its first pixels."""
    image = np.zeros((1, 8, 8), np.uint8)
    image[0, 0, :3] = number // 65536, number // 256 % 256, number % 256
    return encode_png(image)


def numbers_of(manifest: Manifest) -> list[tuple[int, int]]:
    """The number and the label of every image of a set."""
    pairs = []
    for i in range(len(manifest.shards)):
        shard = read_shard(manifest, i)
        numbers = shard.images[:, 0, 0, :3].astype(int) @ [65536, 256, 1]
        pairs += list(zip(numbers.tolist(), shard.labels.tolist(), strict=True))
    return pairs


def write_tars(folder: Path, sizes: list[int], compress: bool = False) -> tuple[str, int]:
    """Write tars whose images are sorted by class, and return their pattern and the number of images."""
    total, number = sum(sizes), 0
    for i, size in enumerate(sizes):
        members = []
        for _ in range(size):
            label = b"%d" % (number * CLASSES // total)
            members += [(f"{number:06d}.png", numbered(number)), (f"{number:06d}.cls", label)]
            number += 1
        content = tar_of(*members)
        (folder / f"{i:03d}.tar").write_bytes(gzip.compress(content) if compress else content)
    return f"{folder}/*.tar", total


def batch_chi_squares(manifest: Manifest) -> np.ndarray:
    """Chi-square of the class counts of the first 25 global batches, with 9 degrees of freedom."""
    loader = Loader(manifest, Order(0, manifest.shard_sizes, LANES, BATCH), range(LANES), cache_bytes=10**7)
    counts = np.stack(
        [np.bincount(batch.labels.numpy(), minlength=CLASSES) for batch in islice(loader.batches(0), 25)]
    )
    expected = BATCH / CLASSES
    return ((counts - expected) ** 2 / expected).sum(1)


@pytest.mark.rig
def test_a_resharded_set_has_the_class_counts_of_random_batches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    pattern, total = write_tars(tmp_path, [50] * 64)
    with caplog.at_level(logging.WARNING):
        indexed = index_tars([pattern], tmp_path / "indexed", "x")
    (message,) = caplog.messages
    assert message.startswith("x: its classes are sorted by tar: a batch of 128 images from 8 tars at a time")
    main(["tars", pattern, "--reshard", "--out", str(tmp_path / "set"), "--quiet"])
    resharded = load_manifest(str(tmp_path / "set"))
    # The mean of 25 independent values of chi-square with 9 degrees of freedom has a standard deviation of
    # sqrt(2 * 9 / 25) = 0.85. Drawn without replacement from 3,200 images they are 4% smaller.
    assert 9 - 4 * 0.85 - 0.4 < batch_chi_squares(resharded).mean() < 9 + 4 * 0.85
    assert batch_chi_squares(indexed).mean() > 60
    assert sorted(numbers_of(resharded)) == [(i, i * CLASSES // total) for i in range(total)]
    assert len(resharded.shards) == 8
    assert sorted_warning([read_shard(resharded, i).labels for i in range(8)]) is None


@pytest.mark.parametrize("compress", [False, True])
def test_tars_of_any_size_are_resharded_without_a_loss(tmp_path: Path, compress: bool):
    (tmp_path / "in").mkdir()
    pattern, total = write_tars(tmp_path / "in", [1, 97, 2, 30], compress)
    for name, seed in (("a", "0"), ("b", "1")):
        out = str(tmp_path / name)
        main(["tars", pattern, "--reshard", "--shards", "4", "--seed", seed, "--out", out, "--quiet"])
    a, b = (load_manifest(str(tmp_path / name)) for name in "ab")
    assert a.shard_sizes == [33, 33, 32, 32]
    assert sorted(numbers_of(a)) == [(i, i * CLASSES // total) for i in range(total)]
    assert numbers_of(a) != numbers_of(b)
    assert a.label_names == [str(i) for i in range(CLASSES)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "in"]


def test_resharding_fits_images_and_leaves_out_broken_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    members = [(f"{i}.png", numbered(i)) for i in range(8)]
    (tmp_path / "x.tar").write_bytes(tar_of(*members, ("8.png", b"no png")))
    arguments = ["tars", f"{tmp_path}/x.tar", "--reshard", "--shards", "2", "--out", str(tmp_path / "set")]
    assert "x.tar, 8.png: not a readable image" in error_line(arguments, capsys)
    assert not (tmp_path / "set").exists()
    main([*arguments, "--skip-broken", "--size", "16x12", "--mode", "colour"])
    assert "1 samples cannot be decoded; they are left out" in capsys.readouterr().err
    manifest = load_manifest(str(tmp_path / "set"))
    assert (manifest.image_shape, manifest.shard_sizes, manifest.fit) == ((3, 12, 16), [4, 4], False)


def test_the_memory_does_not_grow_with_a_tar(tmp_path: Path):
    image = encode_png(np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8))  # 12 KB
    (tmp_path / "x.tar").write_bytes(tar_of(*((f"{i}.png", image) for i in range(450))))
    arguments = ["tars", f"{tmp_path}/x.tar", "--reshard", "--out", str(tmp_path / "set"), "--quiet"]
    tracemalloc.start()
    try:
        main(arguments)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The tar has 5.8 MB; 32 images are encoded at once, and a block of 1 MiB is read for the checksum.
    assert peak < 4 * 2**20


def test_shards_without_reshard_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pattern, _ = write_tars(tmp_path, [4])
    assert "need --reshard" in error_line(["tars", pattern, "--shards", "2", "--out", "set"], capsys)


def random_shards(shards: int, size: int, concentration: float) -> list[np.ndarray]:
    """Labels of shards whose class shares vary as by a Dirichlet distribution."""
    rng = np.random.default_rng(0)
    return [rng.choice(CLASSES, size, p=rng.dirichlet([concentration] * CLASSES)) for _ in range(shards)]


def test_sorted_classes_are_reported_and_random_ones_are_not():
    assert sorted_warning(random_shards(64, 100, 1e6)) is None
    assert sorted_warning(random_shards(1000, 4, 1e6)) is None
    assert sorted_warning([np.zeros(50, np.int64), np.zeros(70, np.int64)]) is None
    assert sorted_warning([np.full(50, -1), np.full(70, -1)]) is None
    assert sorted_warning([np.repeat(0, 50)]) is None
    assert sorted_warning([np.repeat(i % CLASSES, 50) for i in range(64)]) == (
        "its classes are sorted by tar: a batch of 128 images from 8 tars at a time contains 5.7 classes on "
        "average instead of 10.0; create a shuffled set with --reshard, or raise data.lanes"
    )
    assert sorted_warning(random_shards(64, 100, 1.0)) is not None
