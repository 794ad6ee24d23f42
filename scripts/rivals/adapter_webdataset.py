"""WebDataset in torchdata's `StatefulDataLoader`, which skips the batches that were read before."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import webdataset as wds
from harness import SHARDS, Place, number_of
from torchdata.stateful_dataloader import StatefulDataLoader  # pyright: ignore[reportMissingImports]

SEED = 0
BUFFER = 100  # samples in the shuffle buffer


def prepare(shards: Path, data: Path) -> None:
    """Use the tars where they are."""
    data.symlink_to(shards)


def collate(samples: list[dict[str, bytes]]) -> list[int]:
    """Return the numbers of the samples."""
    return [number_of(sample["png"]) for sample in samples]


class Loader:
    """Whole shards for each process, shuffled with fixed seeds, so that skipping leads to the same place."""

    def __init__(self, data: Path, place: Place, states: Sequence[Any] | None):
        dataset = wds.WebDataset(  # type: ignore[attr-defined]
            sorted(map(str, data.glob("*.tar"))),
            shardshuffle=SHARDS,
            detshuffle=True,
            seed=SEED,
            nodesplitter=wds.split_by_node,  # type: ignore[attr-defined]
        ).shuffle(BUFFER, seed=SEED)
        self.loader = StatefulDataLoader(
            dataset.batched(place.batch, collation_fn=collate),
            batch_size=None,
            num_workers=place.workers,
        )
        if states:
            # A state belongs to one process. With another number of processes no state fits; that of
            # another process skips the same number of batches.
            self.loader.load_state_dict(states[place.rank % len(states)])

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.loader)

    def state(self) -> Any:
        """Return the state of this process's loader."""
        return self.loader.state_dict()
