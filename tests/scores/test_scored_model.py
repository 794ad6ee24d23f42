"""The model that is scored: its lower bound on new latents, its batch norm, its images."""

import math

import numpy as np
import pytest
import torch

from infogan_dist.creation.source import Source
from infogan_dist.creation.write import write_shard_set
from infogan_dist.data.fetch import Store
from infogan_dist.data.finite import CHUNK_SIZE, FiniteDataset
from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.scores import scored_model
from infogan_dist.scores.information import information
from tests.conftest import images_source, number_of
from tests.scores.conftest import write_in_order

NORMED = (
    "networks.discriminator=[{kind: conv, out: 8, stride: 2, then: [batchnorm, lrelu]}]",
    "networks.recognition=[{kind: dense, out: 16, then: [batchnorm, lrelu]}]",
)


def test_a_finite_dataset_has_each_image_once(tmp_path):
    write_shard_set(images_source(1300), tmp_path, shards=2)
    manifest = load_manifest(str(tmp_path))
    for cache_bytes in (0, 2**30):
        data = FiniteDataset(manifest, Store(), cache_bytes=cache_bytes)
        assert data.sizes == [CHUNK_SIZE, 150, CHUNK_SIZE, 150]
        chunks = [data.read(i) for i in (3, 0, 2, 1)]
        numbers = [number_of(image) for chunk in chunks for image in chunk.images]
        assert sorted(numbers) == list(range(1300))
        assert all(
            n % 2 == label
            for chunk in chunks
            for n, label in zip(map(number_of, chunk.images), chunk.labels, strict=True)
        )


@pytest.mark.parametrize(
    ("limit", "sizes"), [(1, [1]), (500, [500]), (649, [500, 149]), (1299, [500, 500, 299])]
)
def test_a_limit_takes_random_images_of_all_shards(tmp_path, limit: int, sizes: list[int]):
    write_in_order(images_source(1300), tmp_path, shards=13)
    manifest = load_manifest(str(tmp_path))
    for cache_bytes in (0, 2**30):
        data = FiniteDataset(manifest, Store(), limit=limit, cache_bytes=cache_bytes)
        assert data.sizes == sizes
        assert len(data) == limit
        assert data.sampling == f"{limit:,} random of 1,300 images"
        chunks = [data.read(i) for i in range(len(sizes))]
        images = np.concatenate([chunk.images for chunk in chunks])
        numbers = [number_of(image) for image in images]
        assert numbers == sorted(set(numbers))  # each image once
        assert np.array_equal(np.concatenate([chunk.labels for chunk in chunks]), np.array(numbers) % 2)
        shares = np.bincount(np.array(numbers) // 100, minlength=13) / limit
        # The share of a shard has a standard deviation of .0066 at most for 500 or more images.
        assert limit == 1 or np.abs(shares - 1 / 13).max() < 0.04
        assert np.array_equal(images[0], read_shard(manifest, numbers[0] // 100).images[numbers[0] % 100])


def test_a_limit_above_the_number_of_images_takes_all(tmp_path):
    write_shard_set(images_source(60), tmp_path, shards=2)
    data = FiniteDataset(load_manifest(str(tmp_path)), Store(), limit=61)
    assert (data.sizes, data.sampling) == ([30, 30], "all 60 images")


def test_a_posterior_that_ignores_the_image_has_the_marginal_bound(make_model):
    model = make_model("scores.images=4000", "codes.coin.kind=bernoulli")
    torch.nn.init.zeros_(model.trained_reader.recognition.output.weight)
    torch.nn.init.zeros_(model.trained_reader.recognition.output.bias)
    scores = {s.name: s for s in information(model)}
    assert scores["bound_digit"].value == pytest.approx(0.0, abs=1e-12)
    assert scores["bound_coin"].value == pytest.approx(0.0, abs=1e-12)
    # The bound of N(0, 1) as the posterior of U(-1, 1) is ln 2 - ln(2 pi) / 2 - E[c^2] / 2, for two
    # variables.
    expected = 2 * (math.log(2) - 0.5 * math.log(2 * math.pi) - 1 / 6)
    low, high = scores["bound_style"].protocol["interval_95"]
    assert low < expected < high
    # The half width of the interval follows from Var(c^2 / 2) = 1 / 45 for U(-1, 1).
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(2 / 45 / 4000), rel=0.05)


def test_the_averaged_generator_is_scored_by_default(make_model):
    assert next(information(make_model())).protocol["generator"] == "averaged"
    protocol = next(information(make_model("scores.ema=false"))).protocol
    assert protocol["generator"] == "last"


def test_recalibrated_statistics_are_those_of_the_images(make_model, tmp_path):
    """They normalise a single chunk as in training, except for the factor n / (n - 1) of the variance."""
    write_shard_set(images_source(240), tmp_path / "one", shards=1)
    model = make_model(*NORMED, train=tmp_path / "one")
    trained, recalibrated = model.real_readers()
    images = model.real_chunk("train", 0)
    assert len(images) == 240
    for network in (trained.discriminator, trained.recognition):
        network.train()
    expected = trained.posterior_params(images)
    difference = (recalibrated.posterior_params(images) - expected).abs().max() / expected.abs().max()
    assert 1e-6 < float(difference) < 5 / 240


def test_recalibration_mixes_the_images_of_shards_ordered_by_class(make_model, tmp_path, monkeypatch):
    """Chunks of one class each would normalise every class by its own statistics."""
    pixels = np.random.default_rng(0).integers(0, 100, (2000, 1, 8, 8), np.uint8)
    source = Source("levels", 2000, ["0", "1"], lambda i: (pixels[i] + 150 * (i // 1000), i // 1000))
    write_in_order(source, tmp_path / "levels", shards=4)
    for limit in (10_000, 1000):  # of 4 chunks, and of 2
        monkeypatch.setattr(scored_model, "RECALIBRATION_IMAGES", limit)
        model = make_model(*NORMED, train=tmp_path / "levels")
        trained, recalibrated = model.real_readers()
        assert recalibrated.batch_norm == f"recalibrated on {min(limit, 2000):,} random train images"
        every = torch.cat([model.real_chunk("train", i) for i in range(4)])
        for network in (trained.discriminator, trained.recognition):
            network.train()
        for layer in trained.batch_norms():
            layer.momentum = 1.0
        trained.posterior_params(every)
        for layer, expected in zip(recalibrated.batch_norms(), trained.batch_norms(), strict=True):
            assert layer.running_var is not None
            assert expected.running_var is not None
            torch.testing.assert_close(layer.running_var, expected.running_var, rtol=0.1, atol=1e-4)


def test_random_images_do_not_depend_on_how_many_are_read_at_a_time(make_model, tmp_path, monkeypatch):
    write_in_order(images_source(2000), tmp_path / "ordered", shards=4)
    model = make_model(*NORMED, train=tmp_path / "ordered")
    images = model._random_images("train", 1200)
    numbers = [number_of(image) for image in images]
    assert len(set(numbers)) == 1200
    # Each chunk has images of all shards.
    assert [len({n // 500 for n in numbers[i : i + CHUNK_SIZE]}) for i in (0, 500, 1000)] == [4, 4, 4]
    monkeypatch.setattr(scored_model, "GATHERED_NUMBERS", 1)
    assert np.array_equal(images, model._random_images("train", 1200))


def test_recalibration_does_not_change_the_model(make_model):
    model = make_model(*NORMED)
    networks = (model.trained_reader.discriminator, model.trained_reader.recognition)
    before = [b.clone() for network in networks for b in network.buffers()]
    model.real_readers()
    model.generated_readers()
    after = [b for network in networks for b in network.buffers()]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_without_batch_norm_there_is_one_reader(make_model):
    assert [reader.suffix for reader in make_model().real_readers()] == [""]


def test_latents_are_not_those_of_training(make_model):
    model = make_model("scores.images=700")
    assert model.generated_sizes == [500, 200]
    latents = torch.cat([model.latents(i).vector for i in range(2)])
    trained = model.spec.sample(model.config.seed, "latents", 0, 700).vector
    assert not torch.equal(latents, trained)
    assert len(torch.unique(latents[:, 0])) == 700


def test_generated_chunks_are_cached_up_to_the_limit(make_model):
    """A chunk of 500 images of 8x8 in float32 has 128,000 bytes, so 8 of them fit into 1 MiB."""
    model = make_model("scores.images=5000", "data.cache_mib=1")
    chunks = [model.generated_chunk(i) for i in range(10)]
    again = [model.generated_chunk(i) for i in range(10)]
    assert [a is b for a, b in zip(chunks, again, strict=True)] == [True] * 8 + [False] * 2
    assert all(torch.equal(a, b) for a, b in zip(chunks, again, strict=True))


def test_variables_are_listed_by_kind(make_model):
    model = make_model("codes.coin.kind=bernoulli", "codes.digit.count=2")
    assert model.categorical_variables() == [("digit", 0, "digit.0"), ("digit", 1, "digit.1")]
    assert model.continuous_variables() == [("style", 0, "style.0"), ("style", 1, "style.1")]
