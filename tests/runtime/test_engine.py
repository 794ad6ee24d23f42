"""Gradients, updates, buffers and collectives of the engine, on one process and on two real ones."""

import math
from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from infogan_dist.config.load import read_config
from infogan_dist.config.schema import AdamConfig
from infogan_dist.runtime.distributed import Engine, TrainablePart
from tests.runtime.ranks import on_ranks

QUICK = "configs/mnist5k.yaml"


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def create_part(clip: float | None = None) -> tuple[Engine, nn.Linear, TrainablePart]:
    """Return an engine in fp64, a linear layer with weights 1, and the part that trains it."""
    engine = Engine(read_config([QUICK, "train.precision=fp64"]))
    layer = nn.Linear(3, 1)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    layer = engine.place(layer)
    assert isinstance(layer, nn.Linear)
    return engine, layer, engine.trainable_part(layer, AdamConfig(clip=clip))


def gradients(layer: nn.Module) -> list[float]:
    return [float(g) for p in layer.parameters() if p.grad is not None for g in p.grad.flatten()]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_gives_nan_gradients_though_its_own_are_finite(value: float):
    engine, layer, part = create_part()
    loss = part.module(torch.ones(2, 3, dtype=torch.float64)).sum() + value
    engine.backward(part, loss)
    assert all(math.isnan(g) for g in gradients(layer))
    before = [p.clone() for p in layer.parameters()]
    _, nonfinite = engine.update(part)
    assert bool(nonfinite)
    assert all(torch.equal(p, b) for p, b in zip(layer.parameters(), before, strict=True))
    engine.backward(part, part.module(torch.ones(2, 3, dtype=torch.float64)).sum())
    assert gradients(layer) == [2.0] * 4  # two rows of ones


def infinite_loss_on_one_rank(infinite_rank: int) -> tuple[list[float], bool, list[float]]:
    engine, layer, part = create_part()
    loss = part.module(torch.ones(2, 3, dtype=torch.float64)).sum()
    engine.backward(part, loss + (math.inf if engine.rank == infinite_rank else 0.0))
    values = gradients(layer)
    _, nonfinite = engine.update(part)
    return values, bool(nonfinite), [float(w) for p in layer.parameters() for w in p.flatten()]


def test_an_infinite_loss_on_one_process_suppresses_the_update_on_all():
    for values, nonfinite, weights in on_ranks(2, infinite_loss_on_one_rank, 1):
        assert all(math.isnan(g) for g in values)
        assert nonfinite
        assert weights == [1.0] * 4


def count_reductions(batches: int) -> tuple[list[int], list[float]]:
    """Return how often gradients were reduced after each micro-batch, and the final gradients."""
    engine, layer, part = create_part()
    reductions = 0

    def counted(group, bucket):
        nonlocal reductions
        reductions += 1
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        total = engine.sum(bucket.buffer()) / engine.world
        future.set_result(total)
        return future

    part.module.register_comm_hook(None, counted)  # type: ignore[operator]
    counts = []
    for i in range(batches):
        with engine.accumulate(part, last=i == batches - 1):
            x = torch.full((1, 3), float(i + 10 * engine.rank), dtype=torch.float64)
            engine.backward(part, part.module(x).sum())
        counts.append(reductions)
    return counts, gradients(layer)


def test_only_the_last_micro_batch_reduces_gradients():
    for counts, values in on_ranks(2, count_reductions, 3):
        assert counts == [0, 0, 1]
        # The mean over both processes of 0 + 1 + 2 and 10 + 11 + 12; the bias counts three rows.
        assert values == [18.0, 18.0, 18.0, 3.0]


def collectives() -> dict[str, object]:
    engine = Engine(read_config([QUICK, "train.precision=fp64"]))
    table = engine.distributed_map(5, 2, lambda i: [i, i * i])
    first = engine.exchange(torch.tensor([float(engine.rank), 0.0, 0.0]))
    second = engine.exchange(torch.tensor([0.0, 0.0, float(engine.rank == 0)]))
    return {
        "place": (engine.world, engine.rank, engine.is_main),
        "sum": engine.sum(torch.tensor([1.0, engine.rank])).tolist(),
        "rows": engine.gather(torch.tensor([1.0, engine.rank])).tolist(),
        "table": table.tolist(),
        "flags": (first, second, engine.last_flags(), engine.last_flags()),
    }


def test_collectives_of_two_processes():
    for rank, answer in enumerate(on_ranks(2, collectives)):
        assert answer == {
            "place": (2, rank, rank == 0),
            "sum": [2.0, 1.0],
            "rows": [[1.0, 0.0], [1.0, 1.0]],
            "table": [[i, i * i] for i in range(5)],
            # those of the step before; the first number is a requested stop
            "flags": (None, [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], None),
        }


def test_a_large_gradient_is_scaled_to_the_clipping_norm_and_a_small_one_is_not():
    engine, layer, part = create_part(clip=4.0)
    applied: list[float] = []
    part.optimizer.register_step_pre_hook(
        lambda *_: applied.append(sum(g * g for g in gradients(layer)) ** 0.5)
    )
    for rows, norm in ((1, 2.0), (5, 10.0)):  # a gradient of `rows` in each of four numbers
        engine.backward(part, part.module(torch.ones(rows, 3, dtype=torch.float64)).sum())
        reported, _ = engine.update(part)
        assert float(reported) == pytest.approx(norm, rel=1e-12)
    assert applied == [pytest.approx(2.0, rel=1e-12), pytest.approx(4.0, rel=1e-6)]
    assert gradients(layer) == []  # the next step starts without gradients
