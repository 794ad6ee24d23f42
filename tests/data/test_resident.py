"""Images that stay on the device give the batches of the streaming loader, and a run the same weights."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from infogan_dist.config.load import read_config
from infogan_dist.data import resident, shard_dataset
from infogan_dist.data.loader import Batch, Loader
from infogan_dist.data.order import Order
from infogan_dist.data.resident import MAX_DEVICE_SHARE, ResidentLoader, should_hold_images
from infogan_dist.data.shards import Manifest, load_manifest, read_shard
from infogan_dist.errors import DataError
from infogan_dist.training import loop
from infogan_dist.training.run import Run
from tests.data.conftest import numbered_set

BATCH, LANES = 16, 8
CPU, GPU = torch.device("cpu"), torch.device("cuda")
COLUMNS = ("images", "labels", "substituted")


def streams(
    kind: Callable[..., Loader], manifest: Manifest, world: int, step: int, **options: Any
) -> list[Iterator[Batch]]:
    """The batches of each process from a step on."""
    order, own = Order(5, manifest.shard_sizes, LANES, BATCH), LANES // world
    return [
        kind(manifest, order, range(r * own, (r + 1) * own), **options).batches(step) for r in range(world)
    ]


def assert_equal_batches(manifest: Manifest, world: int, step: int, count: int, **options: Any) -> None:
    streaming = streams(Loader, manifest, world, step, **options)
    held = streams(ResidentLoader, manifest, world, step, **options)
    for _ in range(count):
        for expected, batch in zip(map(next, streaming), map(next, held), strict=True):
            for name in COLUMNS:
                column = getattr(batch, name)
                assert column.dtype == getattr(expected, name).dtype
                assert torch.equal(column, getattr(expected, name)), name


@pytest.mark.parametrize("step", [0, 7, 33])
@pytest.mark.parametrize("world", [1, 2, 8])
@pytest.mark.parametrize("name", ["small_set", "damaged_set"])
def test_the_batches_are_those_of_the_streaming_loader(
    request: pytest.FixtureRequest, name: str, world: int, step: int
):
    manifest = load_manifest(str(request.getfixturevalue(name)))
    assert_equal_batches(manifest, world, step, 35, skip=True)  # more than two epochs of 15 steps


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    world=st.sampled_from([1, 2, 8]),
    step=st.integers(0, 60),
)
def test_the_batches_are_the_same_for_shards_of_any_sizes(sizes: list[int], world: int, step: int):
    manifest, read_numbered = numbered_set(sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_dataset, "read_shard", read_numbered)
        assert_equal_batches(manifest, world, step, 20)


def test_each_process_reads_each_shard_once(small_set: Path, reads: list[int]):
    for stream in streams(ResidentLoader, load_manifest(str(small_set)), 2, 0):
        reads.clear()
        for _ in range(15 * 12):  # in 12 epochs each half of the lanes visits all shards
            next(stream)
        assert Counter(reads) == dict.fromkeys(range(8), 1)


def test_subprocesses_do_not_change_the_batches(small_set: Path):
    assert_equal_batches(load_manifest(str(small_set)), 2, 4, 40, workers=1)


def test_subprocesses_read_the_shards(small_set: Path, reads: list[int]):
    (stream,) = streams(ResidentLoader, load_manifest(str(small_set)), 1, 0, workers=1)
    for _ in range(15):
        next(stream)
    assert reads == []  # in this process


def test_the_images_of_the_set_are_held_in_the_order_of_the_manifest(small_set: Path):
    manifest = load_manifest(str(small_set))
    loader = ResidentLoader(manifest, Order(5, manifest.shard_sizes, LANES, BATCH), range(LANES))
    stream = loader.batches(0)
    for _ in range(15):
        next(stream)
    shards = [read_shard(manifest, i).images for i in range(8)]
    assert torch.equal(loader.images, torch.cat([torch.from_numpy(images) for images in shards]))


def test_a_broken_shard_ends_a_run_at_the_step_that_needs_it(damaged_set: Path):
    def count_batches(stream: Iterator[Batch]) -> int:
        for count in range(100):
            try:
                next(stream)
            except DataError:
                return count
        return 100

    manifest = load_manifest(str(damaged_set))
    expected, counts = (
        [count_batches(stream) for stream in streams(kind, manifest, 8, 5)]
        for kind in (Loader, ResidentLoader)
    )
    assert counts == expected
    assert min(counts) == 0  # of a process whose lane starts with a broken shard
    assert 0 < max(counts) < 100


def set_of(images: int) -> Manifest:
    return numbered_set([images])[0]  # of two bytes each


def test_auto_holds_images_on_a_gpu_that_has_four_times_their_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resident, "free_memory", lambda device: 8000)
    assert MAX_DEVICE_SHARE == 0.25
    assert should_hold_images("auto", set_of(1000), GPU)
    assert not should_hold_images("auto", set_of(1001), GPU)
    assert not should_hold_images("auto", set_of(1), CPU)
    assert not should_hold_images("host", set_of(1), GPU)


@pytest.mark.parametrize("device", [CPU, GPU])
def test_images_that_cannot_fit_the_device_are_refused(monkeypatch: pytest.MonkeyPatch, device: torch.device):
    monkeypatch.setattr(resident, "free_memory", lambda device: 8 * 2**20)
    assert should_hold_images("device", set_of(4 * 2**20), device)
    message = (
        rf"data\.device: the decoded images take 8 MiB, but 8 MiB of {device} are free; set data\.device"
    )
    with pytest.raises(DataError, match=message):
        should_hold_images("device", set_of(4 * 2**20 + 1), device)


def test_the_memory_of_the_machine_is_a_plausible_number_of_bytes():
    assert 2**28 < resident.free_memory(CPU) < 2**50


def test_the_choice_and_the_settings_are_those_of_the_config(tiny: Path, tmp_path: Path):
    words = ["data.workers=2", "data.on_error=skip", f"data.disk_cache={tmp_path}"]
    for device, kind in (("device", ResidentLoader), ("host", Loader), ("auto", Loader)):
        run = Run(read_config([str(tiny), *words, f"data.device={device}"]))
        run.folder.unlock()
        assert type(run.loader) is kind
        assert (run.loader.workers, run.loader.device) == (2, CPU)
        assert run.loader.dataset.skip
        assert run.loader.dataset.store.cache is not None


def test_a_run_may_change_its_choice_and_ends_with_the_same_weights(tiny: Path, tmp_path: Path):
    def train(folder: str, device: str, steps: int) -> None:
        words = [f"run={tmp_path}/{folder}", f"data.device={device}", f"train.steps={steps}"]
        loop.train(read_config([str(tiny), *words]))

    train("a", "host", 5)
    train("b", "device", 3)
    train("b", "host", 4)
    train("b", "device", 5)
    files = [tmp_path / run / "checkpoints" / "step_00000005" / "generator.safetensors" for run in "ab"]
    expected, weights = map(load_file, files)
    assert expected.keys() == weights.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
