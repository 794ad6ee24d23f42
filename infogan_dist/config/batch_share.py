"""How a global batch is divided into lanes, processes and micro-batches: the only place that decides it.

A step reads R = `config.real_batch` real images and draws B = `train.batch_size` latents (R = B, or B / 2
where D learns from half batches). Each of the L = `data.lanes` lanes contributes R / L real images and B / L
latents to every global batch. Process r of w owns the lanes [rL/w, (r+1)L/w), with their images and latents.
Rows are ordered by lane, so it owns the rows [rR/w, (r+1)R/w) and [rB/w, (r+1)B/w) of the global batch.

Micro-batch i of a consists of the i-th part of a of every lane's images and latents. Which images it contains
does therefore not depend on the number of processes, and each process has an equal part of it.

Real image i and latent i of a global batch are always on one process, in one micro-batch and at the same row
(with half batches: real image i and latent 2i).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infogan_dist.config.schema import Config
from infogan_dist.errors import ConfigError
from infogan_dist.launcher import process_place

if TYPE_CHECKING:  # importing torch takes seconds, and a command line must answer sooner
    from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """A process's part of a micro-batch, whose gradients are computed together.

    Attributes:
        share: the process's share of the global batch.
        index: number of the micro-batch in the step.
        is_last: whether the step's gradients are complete after it, and have to be reduced.
    """

    share: BatchShare
    index: int
    is_last: bool

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self.share.latents // self.share.config.train.accumulation

    @property
    def real_images(self) -> int:
        """Number of real images."""
        return self.share.real_images // self.share.config.train.accumulation

    @property
    def fake_images(self) -> int:
        """Number of generated images that D learns from at once."""
        return self.latents // 2 if self.share.config.objective.split_updates else self.latents

    def take(self, rows: Tensor) -> Tensor:
        """Return the micro-batch's rows [n / accumulation, ...] of the process's share [n, ...]."""
        count = self.share.config.train.accumulation
        if count == 1:
            return rows
        return rows.unflatten(0, (len(self.share.lanes), count, -1))[:, self.index].flatten(0, 1)


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
        """Number of latents of the process in a step."""
        return self.config.train.batch_size // self.world

    @property
    def real_images(self) -> int:
        """Number of real images of the process in a step."""
        return self.config.real_batch // self.world

    def first_latent(self, step: int) -> int:
        """Return the index, over the whole run, of the process's first latent of a step."""
        return step * self.config.train.batch_size + self.rank * self.latents

    def micro_batches(self) -> Iterator[MicroBatch]:
        """Yield the process's parts of the micro-batches of a step."""
        count = self.config.train.accumulation
        for i in range(count):
            yield MicroBatch(self, i, is_last=i == count - 1)


def check_batch(config: Config, world: int) -> None:
    """Refuse a global batch that `world` processes cannot share evenly. Raises `ConfigError`."""
    train, lanes = config.train, config.data.lanes
    if lanes % world:
        near = " or ".join(str(n) for n in (lanes // world * world, (lanes // world + 1) * world) if n)
        raise ConfigError(
            f"data.lanes: {lanes} lanes cannot be divided among {world} processes; use data.lanes={near}"
        )
    split = 2 if config.objective.split_updates else 1
    unit = split * lanes * train.accumulation
    if train.batch_size % unit:
        below = train.batch_size // unit * unit
        near = " or ".join(str(n) for n in (below, below + unit) if n)
        raise ConfigError(
            f"train.batch_size: {train.batch_size} is no multiple of {unit}, which {lanes} lanes and "
            f"{train.accumulation} micro-batch(es) need; use train.batch_size={near}"
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
