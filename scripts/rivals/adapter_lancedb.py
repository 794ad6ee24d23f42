"""LanceDB: `StreamingDataset` with a fixed number of splits; the states of all processes are merged."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lancedb  # pyright: ignore[reportMissingImports]
import webdataset as wds
from harness import BATCH, Place, number_of
from lancedb.streaming import StreamingDataset  # pyright: ignore[reportMissingImports]
from torch.utils.data import DataLoader

TABLE = "samples"
SEED = 42


def prepare(shards: Path, data: Path) -> None:
    """Convert the tars, in their order, to a table."""
    tars = sorted(map(str, shards.glob("*.tar")))
    samples = wds.WebDataset(tars, shardshuffle=False)  # type: ignore[attr-defined]
    lancedb.connect(str(data)).create_table(TABLE, [{"png": sample["png"]} for sample in samples])


def collate(samples: list[dict[str, bytes]]) -> list[int]:
    """Return the numbers of the samples."""
    return [number_of(sample["png"]) for sample in samples]


class Loader:
    """One split per sample of a global batch, and no worker processes, since the dataset has threads."""

    def __init__(self, data: Path, place: Place, states: Sequence[Any] | None):
        self.dataset = StreamingDataset(
            lancedb.connect(str(data)).open_table(TABLE),
            num_splits=BATCH,
            shuffle_seed=SEED,
            rank=place.rank,
            world_size=place.world,
        )
        if states:
            self.dataset.load_state_dict(StreamingDataset.merge_state_dicts(list(states)))
        self.loader = DataLoader(self.dataset, place.batch, num_workers=0, collate_fn=collate)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.loader)

    def state(self) -> Any:
        """Return the state of this process's splits."""
        return self.dataset.state_dict()
