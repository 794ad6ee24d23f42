"""The meter: means over steps and processes, and half-filled windows that survive a checkpoint."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infogan_dist.runtime.metrics import MetricAccumulator


class World:
    """Meters of several processes in one, whose sums and gathers meet here."""

    def __init__(self, size: int):
        self.meters: list[MetricAccumulator] = []
        for rank in range(size):
            engine: Any = SimpleNamespace(world=size, rank=rank, is_main=rank == 0, dtype=torch.float64)
            engine.device = torch.device("cpu")
            engine.sum, engine.gather = lambda _: self.totals().sum(0), lambda _: self.totals()
            self.meters.append(MetricAccumulator(engine))

    def totals(self) -> torch.Tensor:
        return torch.stack([m.total for m in self.meters if m.total is not None])


def add(world: World, steps: range) -> None:
    """Global step s has the terms s and s squared; processes differ, but average to them."""
    size = len(world.meters)
    for s in steps:
        for rank, meter in enumerate(world.meters):
            tilt = rank - (size - 1) / 2
            terms = {"a": torch.tensor(s + tilt).double(), "b": torch.tensor(s**2 - tilt).double()}
            meter.add(terms, {"void": torch.tensor(0.0)})


@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_window_is_the_mean_whoever_fills_it(before: int, after: int):
    first, second = World(before), World(after)
    add(first, range(3))
    state = first.meters[0].state()
    for meter in second.meters:
        meter.load(state)
    add(second, range(3, 5))
    assert second.meters[0].window() == pytest.approx({"a": 2.0, "b": 6.0, "void": 0.0})


def test_an_empty_window_is_kept_empty():
    world = World(1)
    state = world.meters[0].state()
    world.meters[0].load(state)
    add(world, range(2))
    assert world.meters[0].window() == {"a": 0.5, "b": 0.5, "void": 0.0}
    assert world.meters[0].state()["rows"] == []


def test_void_steps_are_counted_and_leave_no_trace_in_the_means():
    world = World(2)
    add(world, range(2))
    for meter in world.meters:
        broken = torch.tensor(float("nan"))
        meter.add({"a": broken, "b": broken}, {"void": torch.tensor(1.0)})
    add(world, range(2, 4))
    assert world.meters[0].window() == pytest.approx({"a": 1.5, "b": 3.5, "void": 1.0})
