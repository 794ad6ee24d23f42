"""The model that is scored: its bound on fresh draws, its batch norm, its images."""

import math

import numpy as np
import pytest
import torch

from infogan_dist.data.fetch import Store
from infogan_dist.data.finite import CHUNK_SIZE, FiniteDataset
from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.data.write import write_shard_set
from infogan_dist.scores.information import information
from tests.conftest import images_source, number_of

NORMED = (
    "networks.discriminator=[{kind: conv, out: 8, stride: 2, then: [batchnorm, lrelu]}]",
    "networks.recognition=[{kind: dense, out: 16, then: [batchnorm, lrelu]}]",
)


def test_a_finite_pass_gives_each_image_once(tmp_path):
    write_shard_set(images_source(1300), tmp_path, shards=2)
    manifest = load_manifest(str(tmp_path))
    for kept in (0, 2**30):
        data = FiniteDataset(manifest, Store(), cache_bytes=kept)
        assert data.sizes == [CHUNK_SIZE, 150, CHUNK_SIZE, 150]
        pieces = [data.read(i) for i in (3, 0, 2, 1)]
        numbers = [number_of(image) for piece in pieces for image in piece.images]
        assert sorted(numbers) == list(range(1300))
        assert all(
            n % 2 == label
            for p in pieces
            for n, label in zip(map(number_of, p.images), p.labels, strict=True)
        )


@pytest.mark.parametrize(
    ("limit", "sizes"), [(1, [1]), (500, [500]), (649, [500, 149]), (652, [500, 150, 2])]
)
def test_a_limit_takes_the_set_s_start(tmp_path, limit: int, sizes: list[int]):
    write_shard_set(images_source(1300), tmp_path, shards=2)
    manifest = load_manifest(str(tmp_path))
    data = FiniteDataset(manifest, Store(), limit=limit)
    assert data.sizes == sizes
    assert np.array_equal(data.read(0).images, read_shard(manifest, 0).images[: sizes[0]])


def test_a_blind_posterior_s_bound_is_the_uninformed_one(make_subject):
    subject = make_subject("scores.images=4000", "codes.coin.kind=bernoulli")
    torch.nn.init.zeros_(subject.running.recognition.output.weight)
    torch.nn.init.zeros_(subject.running.recognition.output.bias)
    found = {s.name: s for s in information(subject)}
    assert found["bound_digit"].value == pytest.approx(0.0, abs=1e-12)
    assert found["bound_coin"].value == pytest.approx(0.0, abs=1e-12)
    # N(0, 1) for U(-1, 1): ln 2 - ln(2 pi) / 2 - E[c^2] / 2, of two variables
    expected = 2 * (math.log(2) - 0.5 * math.log(2 * math.pi) - 1 / 6)
    low, high = found["bound_style"].protocol["interval_95"]
    assert low < expected < high
    # Var(c^2 / 2) is 1 / 45 for U(-1, 1): the interval's half width follows.
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(2 / 45 / 4000), rel=0.05)


def test_scores_are_of_the_averaged_generator_unless_asked(make_subject):
    assert make_subject().scores.ema
    protocol = next(information(make_subject("scores.ema=false"))).protocol
    assert protocol["generator"] == "last"


def test_recalibrated_statistics_are_those_of_the_images(make_subject, tmp_path):
    """On a single piece they normalise it as training would, but for n / (n - 1) in the variance."""
    write_shard_set(images_source(240), tmp_path / "one", shards=1)
    subject = make_subject(*NORMED, train=tmp_path / "one")
    running, recalibrated = subject.real_readers()
    images = subject.reals("train", 0)
    assert len(images) == 240
    for network in (running.discriminator, running.recognition):
        network.train()
    trained = running.parameters(images)
    read = recalibrated.parameters(images)
    scale = trained.abs().max()
    assert float((read - trained).abs().max() / scale) < 5 / 240
    assert float((read - trained).abs().max() / scale) > 1e-6


def test_recalibration_leaves_the_model_as_it_was(make_subject):
    subject = make_subject(*NORMED)
    before = [
        b.clone() for n in (subject.running.discriminator, subject.running.recognition) for b in n.buffers()
    ]
    subject.real_readers()
    subject.fake_readers()
    after = [b for n in (subject.running.discriminator, subject.running.recognition) for b in n.buffers()]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_without_batch_norm_there_is_nothing_to_recalibrate(make_subject):
    assert [reader.suffix for reader in make_subject().real_readers()] == [""]


def test_fresh_draws_are_not_those_of_training(make_subject):
    subject = make_subject("scores.images=700")
    assert subject.fake_sizes == [500, 200]
    fresh = torch.cat([subject.latents(i).vector for i in range(2)])
    trained = subject.spec.sample(subject.config.seed, "latents", 0, 700).vector
    assert not torch.equal(fresh, trained)
    assert len(torch.unique(fresh[:, 0])) == 700
