"""A model to score: networks of a small config on real shard sets, without a run."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from torch import nn

from infogan_dist.config.load import read_config
from infogan_dist.creation.source import Source
from infogan_dist.creation.write import write_shard_set
from infogan_dist.data.shards import load_manifest
from infogan_dist.model.latents import LatentSpec
from infogan_dist.model.networks import build_networks
from infogan_dist.rng import permutation
from infogan_dist.runtime.distributed import Engine
from infogan_dist.scores.scored_model import ScoredModel
from tests.conftest import TINY

FACTORS = {"brightness": 4, "side": 2}


def factor_values(i: int) -> list[int]:
    """Return the factors of image `i` of `write_factor_set`."""
    return [i % 4, i // 4 % 2]


def write_factor_set(out: Path) -> Path:
    """Write 240 images of known brightness and side, which is also the class; return the folder."""
    noise = np.random.default_rng(0).integers(0, 30, (240, 1, 8, 8))

    def read(i: int) -> tuple[np.ndarray, int]:
        brightness, side = factor_values(i)
        image = noise[i].copy()
        image[:, :, 4 * side : 4 * side + 4] += 40 * (brightness + 1)
        return image.astype(np.uint8), side

    source = Source("bars", 240, ["left", "right"], read, FACTORS, factor_values)
    write_shard_set(source, out, shards=6)
    return out


def write_in_order(source: Source, out: Path, shards: int) -> Path:
    """Write a shard set whose images are in the order of the source, unlike those of `write_shard_set`."""
    ranks = np.argsort(permutation(0, "make_shards", 0, source.count))
    ordered = replace(source, read=lambda i: source.read(int(ranks[i])))
    write_shard_set(ordered, out, shards, seed=0)
    return out


@pytest.fixture
def make_model(tmp_path: Path, small_set: Path) -> Iterator[Callable[..., ScoredModel]]:
    """Return a function that creates a model with new networks from overrides of the small config."""
    (tmp_path / "scored.yaml").write_text(TINY)

    def make(*overrides: str, train: Path = small_set, test: Path | None = None) -> ScoredModel:
        AcceleratorState._reset_state(reset_partial_state=True)
        config = read_config([str(tmp_path / "scored.yaml"), f"data.shards={train}", *overrides])
        manifest = load_manifest(str(train))
        spec = LatentSpec(config.noise, config.codes)
        networks = build_networks(config.networks, spec, manifest.image_shape, config.seed)
        names = ("generator", "discriminator", "recognition")
        trained = dict(zip(names, networks, strict=True)) | {"generator_ema": networks[0]}

        def load(name: str, network: nn.Module) -> None:
            network.load_state_dict(trained[name].state_dict())

        held_out = None if test is None else load_manifest(str(test))
        return ScoredModel(Engine(config), config, load, manifest, held_out)

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)
