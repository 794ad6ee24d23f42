"""How a global batch is divided: the same micro-batches for any number of processes."""

import pytest
import torch

from infogan_dist.config.batch_share import BatchShare
from infogan_dist.config.load import read_config

QUICK = "configs/mnist5k.yaml"


def rows_by_micro_batch(overrides: list[str], world: int, real: bool) -> list[torch.Tensor]:
    """Return the sorted rows of the global batch in each micro-batch, over all processes."""
    config = read_config([QUICK, *overrides])
    count = config.real_batch if real else config.train.batch_size
    rows: list[list[torch.Tensor]] = [[] for _ in range(config.train.accumulation)]
    for rank in range(world):
        share = BatchShare(config, world, rank)
        own = torch.arange(count)[rank * count // world : (rank + 1) * count // world]
        parts = [micro.take(own) for micro in share.micro_batches()]
        assert len({len(part) for part in parts}) == 1  # equal parts
        assert [len(parts[0])] == [(m.real_images if real else m.latents) for m in share.micro_batches()][:1]
        for i, part in enumerate(parts):
            rows[i].append(part)
    return [torch.cat(part).sort().values for part in rows]


@pytest.mark.parametrize("d_updates", ["joint", "split"])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("real", [True, False])
def test_micro_batches_do_not_depend_on_the_number_of_processes(
    d_updates: str, accumulation: int, real: bool
):
    overrides = [
        f"objective.d_updates={d_updates}",
        f"train.accumulation={accumulation}",
        "train.batch_size=128",
    ]
    alone = rows_by_micro_batch(overrides, 1, real)
    assert torch.equal(
        torch.cat(alone).sort().values, torch.arange(64 if real and d_updates == "split" else 128)
    )
    for world in (2, 4, 8):
        for expected, rows in zip(alone, rows_by_micro_batch(overrides, world, real), strict=True):
            assert torch.equal(expected, rows)


def test_real_image_i_and_latent_i_are_in_one_micro_batch_at_one_row():
    config = read_config([QUICK, "train.accumulation=4"])
    share = BatchShare(config, 2, 1)
    # Four lanes of eight rows each: micro-batch i has rows 2i and 2i + 1 of every lane, of both tensors.
    for i, micro in enumerate(share.micro_batches()):
        expected = torch.tensor([lane * 8 + 2 * i + j for lane in range(4) for j in range(2)])
        assert torch.equal(micro.take(torch.arange(share.real_images)), expected)
        assert torch.equal(micro.take(torch.arange(share.latents)), expected)
    halves = read_config([QUICK, "train.accumulation=2", "objective.d_updates=split"])
    for micro in BatchShare(halves, 2, 1).micro_batches():  # real image i and latent 2i
        assert torch.equal(micro.take(torch.arange(32))[::2], 2 * micro.take(torch.arange(16)))
