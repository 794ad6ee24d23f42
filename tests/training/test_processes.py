"""Steps on two real processes: when gradients are reduced, and what is equal on both afterwards."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from infogan_dist.launcher import process_place
from infogan_dist.training.step import StepResult
from tests.runtime.ranks import on_ranks
from tests.training.by_hand import StepsByHand
from tests.training.steps import NORMED, SHAPE, create_train_step, inputs, share_of_inputs, state_of

STEPS = 2


def losses_of(result: StepResult) -> list[float]:
    return [float(result.terms.by_name()[name]) for name in ("d/loss", "g/loss")]


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
    before, flags, losses = state_of(train_step), [], []
    # After its first backward DDP reorders its buckets; a run does one whose results it discards.
    micro = next(train_step.share.micro_batches())
    _, latents = share_of_inputs(train_step, STEPS)
    zeros = torch.zeros(micro.latents, *SHAPE, dtype=train_step.engine.dtype)
    train_step.warm_up(zeros, latents.map(micro.take))
    assert all(torch.equal(v, before[k]) for k, v in state_of(train_step).items())
    warm_up_counts, counts["d"], counts["g"] = dict(counts), 0, 0
    for step in range(STEPS):
        real, latents = share_of_inputs(train_step, step)
        if train_step.engine.rank == nan_rank:
            real[0] = torch.nan
        result = train_step.run(real, latents)
        flags.append(result.nonfinite.tolist())
        losses.append(losses_of(result))
    after = state_of(train_step)
    return {
        "warm_up_counts": warm_up_counts,
        "counts": counts,
        "state": {k: v.flatten().tolist() for k, v in after.items()},
        "changed": [k for k in after if not torch.equal(after[k], before[k])],
        "flags": flags,
        "losses": losses,
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


# Each number of processes below divides the rows and lanes, also of micro-batches and of half batches.
SHARED = (
    *NORMED,
    "train.batch_size=96",
    "data.lanes=24",
    "optim.discriminator.eps=1e-3",
    "optim.generator.eps=1e-3",
)


@pytest.mark.parametrize(
    ("world", "options", "tolerance"),
    [
        (2, ("train.accumulation=2", "objective.r1=2"), 1e-12),
        (3, ("objective.r1=2", "objective.d_updates=split"), 1e-12),
        (4, ("train.accumulation=2", "objective.q_step=generator"), 1e-12),
        # Rounding of 6e-8 in weights of order 1, a few steps, and a gradient of order 1 divided by eps.
        (3, ("train.precision=fp32",), 1e-5),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_number_of_processes_changes_only_rounding(
    tmp_path: Path, create_step, world: int, options: tuple[str, ...], tolerance: float
):
    """With batch norm in all networks: weights, running statistics and losses."""
    overrides = (*SHARED, *options)
    train_step = create_step(*overrides)
    losses = [losses_of(train_step.run(*inputs(train_step, step))) for step in range(STEPS)]
    expected = state_of(train_step)
    answers = on_ranks(world, do_steps, str(tmp_path), overrides)
    for answer in answers:
        assert answer["state"] == answers[0]["state"]
        for name, value in expected.items():
            ours = torch.tensor(answer["state"][name], dtype=value.dtype).view_as(value)
            torch.testing.assert_close(ours, value, rtol=tolerance, atol=tolerance, msg=name)
    means = torch.tensor([answer["losses"] for answer in answers], dtype=torch.float64).mean(0)
    torch.testing.assert_close(
        means, torch.tensor(losses, dtype=torch.float64), rtol=tolerance, atol=tolerance
    )


def test_an_image_that_is_not_finite_on_one_process_suppresses_the_step_on_all(tmp_path: Path):
    for answer in on_ranks(2, do_steps, str(tmp_path), NORMED, 1):
        assert answer["changed"] == []
        assert answer["flags"] == [[1, 0]] * STEPS
