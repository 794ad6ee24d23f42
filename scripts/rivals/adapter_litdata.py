"""LitData: `StreamingDataLoader.state_dict`, with the same global batch for any number of processes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import webdataset as wds
from harness import SAMPLES, SHARDS, Place, number_of
from litdata import StreamingDataLoader, StreamingDataset, optimize  # pyright: ignore[reportMissingImports]


def as_is(sample: bytes) -> bytes:
    """Return the sample, as the function that `optimize` applies to each input."""
    return sample


def prepare(shards: Path, data: Path) -> None:
    """Convert the tars, in their order, to as many chunks."""
    tars = sorted(map(str, shards.glob("*.tar")))
    samples = [s["png"] for s in wds.WebDataset(tars, shardshuffle=False)]  # type: ignore[attr-defined]
    optimize(as_is, samples, str(data), chunk_size=SAMPLES // SHARDS, num_workers=1, keep_data_ordered=True)


def collate(samples: list[bytes]) -> list[int]:
    """Return the numbers of the samples."""
    return [number_of(sample) for sample in samples]


class Loader:
    """Shuffled, with `drop_last` as for training on several processes, also if there is only one.

    Its default depends on the number of processes, and a state with another value is refused.
    """

    def __init__(self, data: Path, place: Place, states: Sequence[Any] | None):
        dataset = StreamingDataset(str(data), shuffle=True, drop_last=True)
        self.loader = StreamingDataLoader(
            dataset, batch_size=place.batch, num_workers=place.workers, collate_fn=collate
        )
        if states:
            # A process of the same number has its own state; all agree on what is global.
            self.loader.load_state_dict(states[place.rank % len(states)])

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.loader)

    def state(self) -> Any:
        """Return the loader's state."""
        return self.loader.state_dict()
