"""MosaicML Streaming: `StreamingDataLoader.state_dict`, the same global batch for any number of processes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import webdataset as wds
from harness import Place, number_of
from streaming import (  # pyright: ignore[reportMissingImports]
    MDSWriter,
    StreamingDataLoader,
    StreamingDataset,
)

SHARD_BYTES = 8192  # about the 40 samples of a tar


def prepare(shards: Path, data: Path) -> None:
    """Convert the tars, in their order, to MDS shards."""
    tars = sorted(map(str, shards.glob("*.tar")))
    with MDSWriter(out=str(data), columns={"png": "bytes"}, size_limit=SHARD_BYTES) as writer:
        for sample in wds.WebDataset(tars, shardshuffle=False):  # type: ignore[attr-defined]
            writer.write({"png": sample["png"]})


def collate(samples: list[dict[str, bytes]]) -> list[int]:
    """Return the numbers of the samples."""
    return [number_of(sample["png"]) for sample in samples]


class _CountedLoader(StreamingDataLoader):
    """A loader that counts the samples of a batch that is a list; by default it expects columns."""

    def _get_batch_size(self, batch: list[int]) -> int:
        return len(batch)


class Loader:
    """`num_canonical_nodes` has its default, the number of nodes of the first run: one."""

    def __init__(self, data: Path, place: Place, states: Sequence[Any] | None):
        dataset = StreamingDataset(local=str(data), shuffle=True, batch_size=place.batch)
        self.loader = _CountedLoader(
            dataset, batch_size=place.batch, num_workers=place.workers, collate_fn=collate
        )
        if states:
            self.loader.load_state_dict(states[0])

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.loader)

    def state(self) -> Any:
        """Return the loader's state, of which the first process's is loaded by all."""
        return self.loader.state_dict()
