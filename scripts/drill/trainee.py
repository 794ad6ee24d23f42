"""A training run that writes down which images each process sees: AUDIT_FOLDER POISON WORDS..."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from infogan_dist.data.loader import Batch, Loader
from infogan_dist.train import main
from infogan_dist.training.step import TrainStep


def trainee(audit: Path, poison: int, words: list[str]) -> None:
    """The training command line. Each process appends (step, image numbers) to a file of its own.

    Args:
        poison: a step in which one image is not finite; -1: none.
    """
    read, run_step = Loader.batches, TrainStep.run

    def recorded(self: Loader, step: int) -> Iterator[Batch]:
        with (audit / f"{time.time_ns()}-{os.getpid()}").open("a", buffering=1) as log:
            for k, batch in enumerate(read(self, step), start=step):
                share = self.order.share
                for i, lane in enumerate(self.lanes):
                    rows = slice(i * share, (i + 1) * share)
                    numbers = batch.images[rows, 0, 0, 0].long() * 256 + batch.images[rows, 0, 0, 1]
                    seen = torch.where(batch.substituted[rows], -1, numbers)
                    log.write(json.dumps([k, lane, seen.tolist()]) + "\n")
                yield batch

    def poisoned(self: TrainStep, real: torch.Tensor, latents: object) -> object:
        if self.state.step == poison:
            real = real.clone()
            real[0] = torch.nan
        return run_step(self, real, latents)  # type: ignore[arg-type]

    Loader.batches, TrainStep.run = recorded, poisoned  # type: ignore[method-assign,assignment]
    main(words)


if __name__ == "__main__":
    trainee(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
