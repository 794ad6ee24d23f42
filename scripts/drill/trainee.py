"""The training command line, which also records the images of each step: AUDIT_FOLDER POISON WORDS..."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from infogan_dist.data.loader import Batch, Loader
from infogan_dist.model.latents import Latents
from infogan_dist.train import main
from infogan_dist.training.step import StepResult, TrainStep


def train_recorded(audit: Path, poison: int, words: list[str]) -> None:
    """Train, and record which images each lane contributes to each step.

    Args:
        audit: folder in which each process writes a file with lines [step, lane, image numbers]; -1 stands
            for an image that takes the place of a broken one.
        poison: a step in which one image contains a NaN; -1: none.
        words: arguments of `infogan_dist.train`.
    """
    read_batches, run_step = Loader.batches, TrainStep.run

    def recorded_batches(self: Loader, step: int) -> Iterator[Batch]:
        with (audit / f"{time.time_ns()}-{os.getpid()}").open("a", buffering=1) as log:
            for k, batch in enumerate(read_batches(self, step), start=step):
                share, images = self.order.share, batch.images.cpu()
                for i, lane in enumerate(self.lanes):
                    rows = slice(i * share, (i + 1) * share)
                    numbers = images[rows, 0, 0, 0].long() * 256 + images[rows, 0, 0, 1]
                    numbers = torch.where(batch.substituted[rows], -1, numbers)
                    log.write(json.dumps([k, lane, numbers.tolist()]) + "\n")
                yield batch

    def poisoned_step(self: TrainStep, real: torch.Tensor, latents: Latents) -> StepResult:
        if self.state.step == poison:
            real = real.clone()
            real[0] = torch.nan
        return run_step(self, real, latents)

    Loader.batches, TrainStep.run = recorded_batches, poisoned_step  # type: ignore[method-assign]
    main(words)


if __name__ == "__main__":
    train_recorded(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
