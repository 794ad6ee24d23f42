"""Steps on two real processes: when gradients are reduced, and what is equal on both afterwards."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from infogan_dist.launcher import process_place
from tests.runtime.ranks import on_ranks
from tests.training.by_hand import StepsByHand
from tests.training.steps import NORMED, SHAPE, create_train_step, share_of_inputs, state_of

STEPS = 2


def do_steps(folder: str, overrides: tuple[str, ...], nan_rank: int | None = None) -> dict[str, Any]:
    """Do steps on this process's share; count reductions of gradients, and return the state and flags."""
    own_folder = Path(folder) / str(process_place().rank)
    own_folder.mkdir()
    train_step = create_train_step(own_folder, *overrides)
    counts = {"d": 0, "g": 0}

    def count_in(name: str):
        def counted(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            counts[name] += bucket.is_last()
            return allreduce_hook(group, bucket)

        return counted

    for name, part in (("d", train_step.state.d), ("g", train_step.state.g)):
        part.module.register_comm_hook(None, count_in(name))  # type: ignore[operator]
    before, flags = state_of(train_step), []
    # After its first backward DDP reorders its buckets; a run does one whose results it discards.
    micro = next(train_step.share.micro_batches())
    _, latents = share_of_inputs(train_step, STEPS)
    train_step.warm_up(torch.zeros(micro.latents, *SHAPE).double(), latents.map(micro.take))
    assert all(torch.equal(v, before[k]) for k, v in state_of(train_step).items())
    warm_up_counts, counts["d"], counts["g"] = dict(counts), 0, 0
    for step in range(STEPS):
        real, latents = share_of_inputs(train_step, step)
        if train_step.engine.rank == nan_rank:
            real[0] = torch.nan
        flags.append(train_step.run(real, latents).nonfinite.tolist())
    after = state_of(train_step)
    return {
        "warm_up_counts": warm_up_counts,
        "counts": counts,
        "state": {k: v.flatten().tolist() for k, v in after.items()},
        "changed": [k for k in after if not torch.equal(after[k], before[k])],
        "flags": flags,
    }


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        (("train.accumulation=4",), {"d": STEPS, "g": STEPS}),
        (
            ("train.accumulation=2", "objective.d_updates=split", "objective.r1=2"),
            {"d": 2 * STEPS, "g": STEPS},
        ),
    ],
    ids=["joint", "split"],
)
def test_each_update_reduces_its_gradients_once(
    tmp_path: Path, create_step, overrides: tuple[str, ...], counts: dict[str, int]
):
    eps = ("optim.discriminator.eps=1e-3", "optim.generator.eps=1e-3")
    expected = StepsByHand(create_step(*overrides, *eps)).run(STEPS)
    for answer in on_ranks(2, do_steps, str(tmp_path), (*overrides, *eps)):
        assert answer["warm_up_counts"] == {"d": 1, "g": 1}
        assert answer["counts"] == counts
        for name, value in expected.items():
            ours = torch.tensor(answer["state"][name], dtype=value.dtype).view_as(value)
            torch.testing.assert_close(ours, value, rtol=1e-13, atol=1e-13, msg=name)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_running_statistics_are_equal_on_all_processes(tmp_path: Path, accumulation: int):
    overrides = (*NORMED, f"train.accumulation={accumulation}")
    first, second = on_ranks(2, do_steps, str(tmp_path), overrides)
    assert first["state"] == second["state"]
    statistics = [k for k in first["state"] if "running" in k]
    assert statistics
    assert set(statistics) <= set(first["changed"])


def test_an_image_that_is_not_finite_on_one_process_suppresses_the_step_on_all(tmp_path: Path):
    for answer in on_ranks(2, do_steps, str(tmp_path), NORMED, 1):
        assert answer["changed"] == []
        assert answer["flags"] == [[1, 0]] * STEPS
