"""Steps as one graph, rehearsed on the CPU: a recording of operations that is replayed as a CUDA graph is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from infogan_dist.training.graph import GraphedStep
from infogan_dist.training.step import StepResult, TrainStep
from tests.training.steps import NORMED, inputs, state_of


class RecordedGraph(TorchDispatchMode):
    """Records every operation with its arguments, and repeats them on the same tensors.

    As in a CUDA graph, numbers of Python are repeated as they were when they were recorded, results are
    written into the same memory, and recording itself changes nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, list[torch.Tensor]]] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            # The schema of batch norm does not declare that it changes the running statistics.
            if (argument.alias_info and argument.alias_info.is_write) or argument.name.startswith("running"):
                self.before += [(t, t.detach().clone()) for t in tensors(value)]
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, tensors(result)))
        return result

    def record(self, function: Callable[[], StepResult]) -> StepResult:
        with self:
            result = function()
        with torch.no_grad():
            for tensor, value in reversed(self.before):
                tensor.copy_(value)
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, results in self.calls:
            for old, new in zip(results, tensors(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():  # neither in place nor a view
                    old.copy_(new)


def tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in tree_flatten(tree)[0] if isinstance(x, torch.Tensor)]


def run_steps(train_step: TrainStep, run: Callable, count: int) -> list[list[float]]:
    """Do steps; return the logged terms of each."""
    rows = []
    for step in range(count):
        if step == 4:
            train_step.state.d.optimizer.param_groups[0]["lr"].mul_(3)  # as a schedule would
        result = run(*inputs(train_step, step))
        rows.append([*result.terms.values(torch.float64).tolist(), *result.nonfinite.tolist()])
    return rows


@pytest.mark.parametrize(
    "options",
    [
        NORMED,
        (*NORMED, "objective.d_updates=split", "objective.r1=1", "objective.q_step=generator"),
        pytest.param(
            (*NORMED, "train.accumulation=4", "optim.discriminator.clip=0.1", "train.precision=fp32"),
            marks=pytest.mark.rig,
        ),
    ],
    ids=["defaults", "split", "accumulation"],
)
def test_replays_equal_steps(create_step, options: tuple[str, ...]):
    """Bit for bit: weights, moments, running statistics, the average and what is logged."""
    plain, recorded = create_step(*options, graphed=True), create_step(*options, graphed=True)
    expected = run_steps(plain, plain.run, 6)
    assert run_steps(recorded, GraphedStep(recorded, RecordedGraph()).run, 6) == expected
    ours, theirs = state_of(recorded), state_of(plain)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert recorded.state.step == plain.state.step == 6
    for name in ("d", "g"):
        a, b = (s.state.optimizers()[name]["adam"]["state"] for s in (recorded, plain))
        assert all(torch.equal(a[i][k], v) for i in b for k, v in b[i].items())


def test_a_step_that_is_not_finite_changes_nothing_in_a_replay(create_step):
    train_step = create_step(*NORMED, graphed=True)
    run = GraphedStep(train_step, RecordedGraph()).run
    run(*inputs(train_step, 0))
    before = state_of(train_step)
    real, latents = inputs(train_step, 1)
    result = run(real.index_fill(0, torch.tensor([0]), torch.nan), latents)
    assert result.nonfinite.tolist() == [1, 0]
    assert all(torch.equal(v, before[k]) for k, v in state_of(train_step).items())
