"""What one process of a measurement does, which cases are measured, and how samples are counted."""

import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

SAMPLES, SHARDS, BATCH = 960, 24, 48  # 20 global batches; 1, 2, 3 and 4 processes divide shards and batch
STEPS = SAMPLES // BATCH
SAVE_EVERY = 3  # steps between two states
TIME_LIMIT = 120  # seconds that the processes of a segment may take


@dataclass(frozen=True)
class Segment:
    """A part of a training run between two starts.

    Attributes:
        world: number of processes.
        stop: number of global batches of the run after which it is stopped; None: at the end of the epoch.
        kill: all processes are killed by SIGKILL then; else they save a state and end. A segment that is
            killed stops between two states, not at a multiple of `SAVE_EVERY`.
    """

    world: int
    stop: int | None = None
    kill: bool = False

    @property
    def saved(self) -> int:
        """Number of global batches in the last state that was saved."""
        assert self.stop is not None
        return self.stop // SAVE_EVERY * SAVE_EVERY if self.kill else self.stop


@dataclass(frozen=True)
class Case:
    """An epoch that is interrupted between its segments; each continues from the last saved state."""

    name: str
    segments: tuple[Segment, ...]


CASES = (
    Case("uninterrupted, 2 processes", (Segment(2),)),
    Case("stopped, 2 to 2", (Segment(2, 7), Segment(2))),
    Case("stopped twice, 2 to 2 to 2", (Segment(2, 7), Segment(2, 13), Segment(2))),
    Case("stopped, 2 to 1", (Segment(2, 7), Segment(1))),
    Case("stopped, 2 to 3", (Segment(2, 7), Segment(3))),
    Case("stopped, 2 to 4", (Segment(2, 7), Segment(4))),
    Case("stopped twice, 2 to 4 to 1", (Segment(2, 7), Segment(4, 13), Segment(1))),
    Case("killed, 2 to 2", (Segment(2, 8, kill=True), Segment(2))),
    Case("killed, 2 to 4", (Segment(2, 8, kill=True), Segment(4))),
)


@dataclass(frozen=True)
class Task:
    """What one process reads.

    Attributes:
        loader: name of the loader in `compare.LOADERS`.
        data: folder of the samples in the loader's format.
        folder: of this segment, for records and states.
        segment: the segment.
        rank: index of the process.
        workers: subprocesses that read in advance, for loaders that have them.
        states: folder of the segment to continue from; None at the start of the epoch.
        first: number of global batches before this segment.
    """

    loader: str
    data: Path
    folder: Path
    segment: Segment
    rank: int
    workers: int
    states: Path | None = None
    first: int = 0

    @property
    def record(self) -> Path:
        """File whose first line is the time at which the process had imported its packages.

        Each further line is a batch: its number, the ids of its samples, the time.
        """
        return self.folder / f"rank{self.rank}.jsonl"


class Adapter(Protocol):
    """A data loader as the measurement uses it; a module of its own has the class `Loader`."""

    def __init__(self, data: Path, place: "Place", states: Sequence[Any] | None): ...

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the ids of this process's samples of each batch, to the end of the epoch."""
        ...

    def state(self) -> Any:
        """Return the state after the last batch, as `torch.save` can write it."""
        ...


@dataclass(frozen=True)
class Place:
    """The place of a process, as an adapter needs it.

    Attributes:
        rank, world: index of the process, and number of processes.
        workers: subprocesses that read in advance.
    """

    rank: int
    world: int
    workers: int

    @property
    def batch(self) -> int:
        """Number of samples of the process in a global batch."""
        return BATCH // self.world


@dataclass(frozen=True)
class Outcome:
    """The samples of an epoch, joined from all segments.

    Attributes:
        batches: ids of each global batch, sorted.
        lost: number of samples that no process received.
        doubled: number of deliveries beyond the first, over all samples.
        seconds: from the start of the last segment's processes to the first batch of the slowest; None if a
            process received none.
        loader_seconds: the part of it after the process had imported its packages.
    """

    batches: list[list[int]]
    lost: int
    doubled: int
    seconds: float | None
    loader_seconds: float | None


def image_of(number: int) -> Image.Image:
    """Return the image of a sample, 8x8 grey, whose first two pixels are its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
    pixels[0, :2] = divmod(number, 256)
    return Image.fromarray(pixels)


def number_of(png: bytes) -> int:
    """Return the number of a sample from its PNG file."""
    first, second = np.asarray(Image.open(io.BytesIO(png)))[0, :2]
    return int(first) * 256 + int(second)


def read_batches(task: Task, loader: type[Adapter], pause: Callable[[], None] = lambda: None) -> None:
    """Read a process's batches of a segment, record them, and save the states.

    Args:
        task: what to read.
        loader: class of the loader.
        pause: called after the last batch of a segment that is to be killed.
    """
    imported, states = time.time(), None
    if task.states is not None:
        files = sorted(task.states.glob(f"state{task.first}-rank*.pt"))
        states = [torch.load(file, weights_only=False) for file in files]
    place = Place(task.rank, task.segment.world, task.workers)
    adapter, step = loader(task.data, place, states), task.first
    with task.record.open("w", buffering=1) as record:
        record.write(f"{imported}\n")
        for ids in adapter:
            record.write(json.dumps([step, ids, time.time()]) + "\n")
            step += 1
            at_stop = step == task.segment.stop
            if step % SAVE_EVERY == 0 or (at_stop and not task.segment.kill):
                torch.save(adapter.state(), task.folder / f"state{step}-rank{task.rank}.pt")
            if at_stop:
                if task.segment.kill:
                    pause()
                return


def run_case(
    case: Case,
    loader: str,
    data: Path,
    folder: Path,
    workers: int,
    start: Callable[[list[Task]], float],
) -> Outcome:
    """Read an epoch with the interruptions of a case.

    Args:
        case: the interruptions.
        loader: name of the loader.
        data: folder of the samples in the loader's format.
        folder: folder for records and states.
        workers: subprocesses of a process that read in advance.
        start: function that runs the tasks of a segment to its end, and returns the time of their start.

    Returns:
        What the processes received, up to each segment's last saved state.
    """
    batches: list[list[int]] = []
    states, first, begin, imported, records = None, 0, 0.0, [], []
    for number, segment in enumerate(case.segments):
        part = folder / f"segment{number}"
        part.mkdir(parents=True)
        ranks = range(segment.world)
        tasks = [Task(loader, data, part, segment, rank, workers, states, first) for rank in ranks]
        begin = start(tasks)
        lines = [[json.loads(line) for line in task.record.read_text().splitlines()] for task in tasks]
        imported, records = [line[0] for line in lines], [line[1:] for line in lines]
        saved = max(len(r) for r in records) + first if segment.stop is None else segment.saved
        for step in range(first, saved):
            rows = [ids for record in records for number, ids, _ in record if number == step]
            batches.append(sorted(sample for ids in rows for sample in ids))
        states, first = part, saved
    counts = Counter(sample for batch in batches for sample in batch)
    lost, doubled = SAMPLES - len(counts), sum(counts.values()) - len(counts)
    if not all(records):
        return Outcome(batches, lost, doubled, None, None)
    arrivals = [record[0][2] for record in records]
    after_import = max(arrival - ready for arrival, ready in zip(arrivals, imported, strict=True))
    return Outcome(batches, lost, doubled, max(arrivals) - begin, after_import)
