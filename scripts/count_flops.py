#!/usr/bin/env python
"""Count the floating-point operations of a training run, by stage, and estimate its time on this machine.

    python scripts/count_flops.py configs/mnist_best.yaml                  on MNIST's 60,000 images
    python scripts/count_flops.py configs/quickstart.yaml --images 5000

A few steps of each stage are trained on generated images, and the matrix products and convolutions in them
are counted, forward and backward. Searches for neighbours are added by their formula: N images
with D components need 2 N^2 D operations for their distances, and a pass through the classifier each.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from infogan_dist.config.load import read_config
from infogan_dist.config.schema import Config
from infogan_dist.console import exit_on_user_error, set_up_logging
from infogan_dist.creation.source import Source
from infogan_dist.creation.write import write_shard_set
from infogan_dist.data.loader import Batch
from infogan_dist.training.clustering import FEATURE_COMPONENTS, PIXEL_COMPONENTS, should_rebuild
from infogan_dist.training.run import Run

SAMPLES = 256  # generated images that the counted steps train on
CLUSTERING_STEPS = 2  # counted steps of the first stage: one of each kind
MATRIX_SIDE, MATRIX_SECONDS = 2048, 3.0


class FlopCounter(TorchDispatchMode):
    """Counts operations by torch's formulas.

    torch's own counter divides them by module, with hooks that second derivatives of D do not allow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


@dataclass(frozen=True)
class Stage:
    """A part of a run.

    Attributes:
        name: for the table.
        steps: its number of steps, or of searches.
        flops: of all of them.
    """

    name: str
    steps: int
    flops: float


def count(config: Config, images: int, shape: tuple[int, int, int], folder: Path) -> list[Stage]:
    """Return the stages of a run with their operations.

    Args:
        config: the run's.
        images: number of training images.
        shape: of an image, (channels, height, width).
        folder: for generated images and the run of the counted steps.
    """
    clustering, penalty_every = config.clustering, config.objective.penalty_every
    steps = clustering.steps, config.length(images) - clustering.steps
    searches = sum(should_rebuild(clustering, step) for step in range(1, steps[0]))
    pixels = np.random.default_rng(0).integers(0, 256, (SAMPLES, *shape), np.uint8)
    write_shard_set(Source("noise", SAMPLES, [], lambda i: (pixels[i], -1)), folder / "set")
    if steps[0]:
        clustering.steps, clustering.balanced_steps = CLUSTERING_STEPS, CLUSTERING_STEPS // 2
        clustering.rebuild_every = CLUSTERING_STEPS + 1
    config.train.steps, config.train.epochs = clustering.steps + penalty_every, None
    config.data.shards, config.data.test, config.run = str(folder / "set"), None, str(folder / "run")
    config.tracking.trackers = []

    run = Run(config)
    batches, stages = run.batches(), []
    if steps[0]:
        counted = [_flops_of_step(run, batches) for _ in range(CLUSTERING_STEPS)]
        stages.append(Stage("classifier", steps[0], steps[0] * float(np.mean(counted))))
        run.accumulator.window()  # the metrics of the next stage are other ones
        forward = _flops_of_features(run, shape)
        flops = 2 * images**2 * (PIXEL_COMPONENTS + searches * FEATURE_COMPONENTS)
        stages.append(Stage("searches for neighbours", 1 + searches, flops + searches * images * forward))
    # One of these steps has the penalties.
    counted = [_flops_of_step(run, batches) for _ in range(penalty_every)]
    stages.append(Stage("GAN", steps[1], steps[1] * float(np.mean(counted))))
    return stages


def _flops_of_step(run: Run, batches: Iterator[Batch]) -> int:
    batch = next(batches)
    with FlopCounter() as counter:
        run.step(batch)
    return counter.total


def _flops_of_features(run: Run, shape: tuple[int, int, int]) -> int:
    """Return the operations of the classifier's features of an image."""
    assert run.state.clustering is not None
    with FlopCounter() as counter, torch.no_grad():
        run.state.clustering.average.features(torch.zeros(1, *shape, dtype=run.engine.dtype))
    return counter.total


def matrix_flops_per_second() -> float:
    """Return the speed of fp32 matrix products on this machine's CPU."""
    matrix, done = torch.randn(MATRIX_SIDE, MATRIX_SIDE), 0
    torch.mm(matrix, matrix)
    start = time.perf_counter()
    while time.perf_counter() - start < MATRIX_SECONDS:
        torch.mm(matrix, matrix)
        done += 1
    return done * 2 * MATRIX_SIDE**3 / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="+", metavar="CONFIG | key=value", help="config files and overrides")
    parser.add_argument("--images", type=int, default=60_000, help="training images (default: %(default)s)")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        default=(1, 28, 28),
        metavar=("CHANNELS", "HEIGHT", "WIDTH"),
        help="of an image (default: 1 28 28)",
    )
    args = parser.parse_args()
    set_up_logging(quiet=True)
    with exit_on_user_error(), tempfile.TemporaryDirectory() as folder:
        stages = count(read_config(args.words), args.images, tuple(args.shape), Path(folder))
    total, speed = sum(s.flops for s in stages), matrix_flops_per_second()
    print("| stage | steps | TFLOP |\n| --- | --- | --- |")
    for stage in stages:
        print(f"| {stage.name} | {stage.steps:,} | {stage.flops / 1e12:.1f} |")
    print(f"| all | | {total / 1e12:.1f} |\n")
    print(
        f"fp32 matrix products here: {speed / 1e9:.0f} GFLOP/s with {torch.get_num_threads()} thread(s), "
        f"at which the run would take {total / speed / 60:.1f} min"
    )


if __name__ == "__main__":
    main()
