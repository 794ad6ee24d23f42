"""Real image i and latent i of a global batch are one row of one process, for every number of processes."""

from pathlib import Path

import pytest
import torch

from infogan_dist.config.batch_share import BatchShare
from infogan_dist.config.load import read_config
from infogan_dist.config.schema import Config
from infogan_dist.data.loader import Loader
from infogan_dist.data.order import Order
from infogan_dist.data.shards import Manifest, load_manifest, read_shard
from infogan_dist.model.latents import LatentSpec
from tests.conftest import number_of

STEPS = range(3, 25)  # over the end of an epoch of 7.5 or 15 steps


def image_numbers(manifest: Manifest, order: Order, share: BatchShare) -> list[list[int]]:
    """The numbers of a process's real images in each of the steps."""
    batches = Loader(manifest, order, share.lanes).batches(STEPS.start)
    return [[number_of(image) for image in next(batches).images] for _ in STEPS]


def expected_numbers(manifest: Manifest, order: Order, step: int) -> list[int]:
    """The numbers of the images of a global batch, by the formula in `data/order.py`."""
    numbers = []
    for i in range(order.share * order.lanes):
        lane, sample = i // order.share, step * order.share + i % order.share
        place, offset = order.locate(lane, sample)
        images = read_shard(manifest, order.shard_at(place)).images
        numbers.append(number_of(images[order.sample_order(place)[offset]]))
    return numbers


@pytest.fixture(params=["joint", "split"])
def config(request: pytest.FixtureRequest, tiny: Path) -> Config:
    return read_config([str(tiny), f"objective.d_updates={request.param}", "train.accumulation=2"])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_image_i_of_a_global_batch_is_row_i_of_the_processes_together(
    config: Config, small_set: Path, world: int
):
    manifest = load_manifest(str(small_set))
    order = Order(config.seed, manifest.shard_sizes, config.data.lanes, config.real_batch)
    shares = [BatchShare(config, world, rank) for rank in range(world)]
    parts = [image_numbers(manifest, order, share) for share in shares]
    single = image_numbers(manifest, order, BatchShare(config))
    for position, step in enumerate(STEPS):
        joined = [number for part in parts for number in part[position]]
        assert joined == single[position]
        assert len(joined) == config.real_batch
        if step in (STEPS[0], STEPS[-1]):
            assert joined == expected_numbers(manifest, order, step)
        for rank, part in enumerate(parts):
            n = shares[rank].real_images
            assert part[position] == single[position][rank * n : (rank + 1) * n]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_latents_of_a_row_are_on_the_process_of_its_image(config: Config, world: int):
    batch, spec = config.train.batch_size, LatentSpec(config.noise, config.codes)
    ratio = (
        batch // config.real_batch
    )  # latents for each real image: 1, or 2 where D learns from half batches
    assert ratio == (2 if config.objective.split_updates else 1)
    shares = [BatchShare(config, world, rank) for rank in range(world)]
    for step in STEPS:
        complete = spec.sample(config.seed, "latents", step * batch, batch)
        parts = [
            spec.sample(config.seed, "latents", share.first_latent(step), share.latents) for share in shares
        ]
        assert torch.equal(torch.cat([part.vector for part in parts]), complete.vector)
        for rank, (share, part) in enumerate(zip(shares, parts, strict=True)):
            for j in range(share.real_images):
                i = rank * share.real_images + j  # row of the real image in the global batch
                assert share.first_latent(step) + ratio * j == step * batch + ratio * i
                assert torch.equal(part.vector[ratio * j], complete.vector[ratio * i])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_micro_batch_contains_the_latents_of_its_images(config: Config, world: int):
    ratio = config.train.batch_size // config.real_batch
    for rank in range(world):
        share = BatchShare(config, world, rank)
        micro_batches = list(share.micro_batches())
        assert len(micro_batches) == 2
        real, latents = torch.arange(share.real_images), torch.arange(share.latents)
        for micro in micro_batches:
            assert torch.equal(micro.take(latents)[::ratio], ratio * micro.take(real))
        assert torch.equal(torch.cat([m.take(real) for m in micro_batches]).sort().values, real)
