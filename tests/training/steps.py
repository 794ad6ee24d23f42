"""Training steps on small networks: their creation, their inputs and their state."""

from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from infogan_dist.config.load import read_config
from infogan_dist.model.latents import Latents, LatentSpec
from infogan_dist.model.networks import build_networks
from infogan_dist.runtime.distributed import Engine
from infogan_dist.training.state import initial_state
from infogan_dist.training.step import TrainStep
from tests.conftest import TINY

SHAPE = (1, 8, 8)

# Batch norm everywhere, since which batches enter its running statistics is part of the law.
NORMED = (
    "networks.generator=[{kind: dense, out: 8, grid: true, then: [batchnorm, relu]},"
    "{kind: deconv, stride: 2, then: [tanh]}]",
    "networks.discriminator=[{kind: conv, out: 8, stride: 2, then: [batchnorm, lrelu]}]",
    "networks.recognition=[{kind: dense, out: 16, then: [batchnorm, lrelu]}]",
)

# A first stage with balanced targets, a search by features and consistency, and all options of the recipe.
CLUSTERED = (
    "networks.classifier=[{kind: conv, out: 4, kernel: 3, then: [batchnorm, lrelu, maxpool]},"
    "{kind: dense, out: 8, then: [batchnorm, lrelu]}]",
    "networks.init_std=null",
    "clustering.steps=4",
    "clustering.batch_size=24",
    "clustering.balanced_steps=2",
    "clustering.rebuild_every=2",
    "objective.loss=relativistic",
    "objective.r1=0.3",
    "objective.r2=0.3",
    "objective.penalty_every=2",
    "objective.equivariance={style.0: shear, style.1: dilation}",
    "optim.decay=0.5",
    "train.steps=8",
)


def create_train_step(folder: Path, *overrides: str, graphed: bool = False) -> TrainStep:
    """Return a step with new networks from overrides of the small config, in fp64 unless overridden.

    Args:
        folder: for the config file.
        overrides: of the config.
        graphed: prepare the optimizers for a CUDA graph, as `train.cuda_graph` does, which needs a GPU.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    path = folder / "step.yaml"
    path.write_text(TINY)
    config = read_config([str(path), "train.precision=fp64", *overrides])
    spec = LatentSpec(config.noise, config.codes)
    engine = Engine(config)
    engine.graphed = graphed
    state = initial_state(config, engine, build_networks(config.networks, spec, SHAPE, config.seed))
    return TrainStep(config, spec, engine, state)


def inputs(train_step: TrainStep, step: int) -> tuple[Tensor, Latents]:
    """Return the real images and the latents of a global batch."""
    count = train_step.config.train.batch_size
    generator = torch.Generator().manual_seed(step)
    real = torch.rand((train_step.config.real_batch, *SHAPE), generator=generator) * 2 - 1
    dtype = train_step.engine.dtype
    return real.to(dtype), train_step.spec.sample(0, "latents", step * count, count, dtype)


def share_of_inputs(train_step: TrainStep, step: int) -> tuple[Tensor, Latents]:
    """Return this process's rows of `inputs`."""
    real, latents = inputs(train_step, step)
    share = train_step.share
    rows = slice(share.rank * share.real_images, (share.rank + 1) * share.real_images)
    return real[rows], latents[share.rank * share.latents : (share.rank + 1) * share.latents]


def state_of(train_step: TrainStep) -> dict[str, Tensor]:
    """Return a copy of all weights and buffers, by network and name."""
    return {
        f"{n}.{k}": v.clone()
        for n, net in train_step.state.networks().items()
        for k, v in net.state_dict().items()
    }


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Return the names of the networks whose state differs."""
    return {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
