"""The count of a run's floating-point operations, against formulas of its layers."""

import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))  # as for a script that is started by its path
import count_flops
from infogan_dist.config.load import read_config

# Multiplications and additions of dense layers with I inputs and O units, for a batch of N: 2 N I O.
DENSE = (
    "noise=5",
    "codes.digit.size=3",
    "networks.generator=[{kind: dense, out: 1, grid: true, then: [tanh]}]",
    "networks.discriminator=[{kind: dense, out: 7, then: [lrelu]}]",
    "networks.recognition=[]",
    "train.batch_size=8",
    "data.workers=0",
)


def test_operations_of_dense_networks_are_those_of_their_formula(tmp_path: Path):
    config = read_config([str(ROOT / "configs/mnist5k.yaml"), *DENSE, "train.steps=10"])
    (stage,) = count_flops.count(config, 60_000, (1, 2, 2), tmp_path)
    # 5 noise variables, and codes of 3 categories and 2 uniforms, which have 3 + 2 * 2 posterior parameters.
    generator, trunk, logit, posteriors = 10 * 4, 4 * 7, 7 * 1, 7 * 7
    heads = logit + posteriors
    # D's update: forward, gradients of the weights, and of the trunk's output. Of real images Q's posteriors
    # are computed for the metrics only.
    real = 2 * trunk + 3 * logit + posteriors
    fake = 2 * trunk + 3 * heads
    # G's update: D and Q forward, gradients of their inputs, and of G's weights.
    held = 2 * (trunk + heads)
    expected = 10 * 8 * 2 * (2 * generator + real + fake + held)
    assert (stage.name, stage.steps) == ("GAN", 10)
    assert stage.flops == pytest.approx(expected, rel=1e-12)


def test_searches_for_neighbours_are_counted_until_the_last_one(tmp_path: Path):
    words = ("clustering.steps=1000", "clustering.rebuild_every=100", "train.steps=1004", "data.workers=0")
    config = read_config([str(ROOT / "configs/quickstart.yaml"), *words])
    classifier, searches, gan = count_flops.count(config, 2_000, (1, 28, 28), tmp_path)
    assert (classifier.steps, searches.steps, gan.steps) == (1000, 1 + 7, 4)
    # The convolutions and dense layers of the classifier, forward: 4.6 million operations an image.
    layers = (14**2, 25, 1, 16), (14**2, 9, 16, 32), (7**2, 9, 32, 64), (1, 7**2, 64, 128), (1, 1, 128, 128)
    forward = sum(2 * area * kernel * i * o for area, kernel, i, o in layers)
    assert searches.flops == pytest.approx(2 * 2_000**2 * (40 + 7 * 32) + 7 * 2_000 * forward, rel=1e-12)
