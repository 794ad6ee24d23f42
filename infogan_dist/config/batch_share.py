"""How a global batch is divided into lanes, processes and micro-batches: the only place that decides it.

A step draws B = `train.batch_size` latents and reads R = `config.real_batch` real images (R = B, or B / 2
where D learns from half batches). Both global batches have one order, which does not depend on the number of
processes. Process r of w owns the lanes [rL/w, (r+1)L/w), the real images [rR/w, (r+1)R/w), which are those
lanes', and the latents [rB/w, (r+1)B/w). Real image i and latent i of a global batch are therefore on one
process, at the same row, whatever the number of processes (with half batches: real image i and latent 2i).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from infogan_dist.config.schema import Config
from infogan_dist.errors import ConfigError
from infogan_dist.launcher import process_place


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a process's share whose gradients are computed together.

    Attributes:
        real, latents: rows of the process's real images and of its latents.
        is_last: whether the step's gradients are complete after it, and have to be reduced.
    """

    real: slice
    latents: slice
    is_last: bool


@dataclass(frozen=True)
class BatchShare:
    """One process's share of every global batch.

    Attributes:
        config: the run's.
        world: number of processes.
        rank: index of the process.
    """

    config: Config
    world: int = 1
    rank: int = 0

    @property
    def lanes(self) -> range:
        """The process's lanes of the data order."""
        count = self.config.data.lanes // self.world
        return range(self.rank * count, (self.rank + 1) * count)

    @property
    def latents(self) -> int:
        """Latents of the process in a step."""
        return self.config.train.batch_size // self.world

    @property
    def real_images(self) -> int:
        """Real images of the process in a step."""
        return self.config.real_batch // self.world

    def first_latent(self, step: int) -> int:
        """Return the index, over the whole run, of the process's first latent of a step."""
        return step * self.config.train.batch_size + self.rank * self.latents

    def micro_batches(self) -> Iterator[MicroBatch]:
        """Yield the micro-batches of a step, equal parts of the process's share."""
        count = self.config.train.accumulation
        real, latents = self.real_images // count, self.latents // count
        for i in range(count):
            yield MicroBatch(
                slice(i * real, (i + 1) * real), slice(i * latents, (i + 1) * latents), is_last=i == count - 1
            )


def check_batch(config: Config, world: int) -> None:
    """Refuse a global batch that `world` processes cannot share evenly. Raises `ConfigError`."""
    train, lanes = config.train, config.data.lanes
    if lanes % world:
        near = " or ".join(str(n) for n in (lanes // world * world, (lanes // world + 1) * world) if n)
        raise ConfigError(
            f"data.lanes: {lanes} lanes cannot be divided among {world} processes; use data.lanes={near}"
        )
    split = 2 if config.objective.split_updates else 1
    unit = math.lcm(split * lanes, split * world * train.accumulation)
    if train.batch_size % unit:
        below = train.batch_size // unit * unit
        near = " or ".join(str(n) for n in (below, below + unit) if n)
        raise ConfigError(
            f"train.batch_size: {train.batch_size} is no multiple of {unit}, which {lanes} lanes, {world} "
            f"process(es) and {train.accumulation} micro-batch(es) need; use train.batch_size={near}"
        )


def launched_share(config: Config) -> BatchShare:
    """Return the share of this process in the world that the launcher started.

    Raises:
        ConfigError: another number of processes was asked for, or the batch cannot be shared evenly.
    """
    place, required = process_place(), config.train.processes
    if required is not None and required != place.world:
        raise ConfigError(
            f"train.processes: {required} asked for, {place.world} came up; without "
            "GPUs start them by `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu "
            f"--num_processes {required} ...` or `torchrun --nproc-per-node {required} ...`"
        )
    check_batch(config, place.world)
    return BatchShare(config, place.world, place.rank)
