"""Means over steps and processes, and partly filled windows that are continued after a checkpoint."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infogan_dist.config.load import read_config
from infogan_dist.runtime.distributed import Engine
from infogan_dist.runtime.metrics import MetricAccumulator, Terms
from tests.runtime.ranks import on_ranks


class World:
    """The accumulators of several processes in one, with their collectives."""

    def __init__(self, size: int):
        self.accumulators: list[MetricAccumulator] = []
        for rank in range(size):
            engine: Any = SimpleNamespace(world=size, rank=rank, is_main=rank == 0, dtype=torch.float64)
            engine.device = torch.device("cpu")
            engine.sum, engine.gather = lambda _: self.totals().sum(0), lambda _: self.totals()
            self.accumulators.append(MetricAccumulator(engine))

    def totals(self) -> torch.Tensor:
        return torch.stack([m.total for m in self.accumulators if m.total is not None])


def add(world: World, steps: range) -> None:
    """Global step s has the terms s and s squared; processes differ, but average to them."""
    size = len(world.accumulators)
    for s in steps:
        for rank, accumulator in enumerate(world.accumulators):
            offset = rank - (size - 1) / 2
            terms = {"a": torch.tensor(s + offset).double(), "b": torch.tensor(s**2 - offset).double()}
            accumulator.add(Terms(terms), Terms({"void": torch.tensor(0.0)}))


@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_window_is_the_mean_for_any_number_of_processes(before: int, after: int):
    first, second = World(before), World(after)
    add(first, range(3))
    state = first.accumulators[0].state()
    for accumulator in second.accumulators:
        accumulator.load(state)
    add(second, range(3, 5))
    assert second.accumulators[0].window() == pytest.approx({"a": 2.0, "b": 6.0, "void": 0.0})


def test_an_empty_window_stays_empty():
    world = World(1)
    state = world.accumulators[0].state()
    world.accumulators[0].load(state)
    add(world, range(2))
    assert world.accumulators[0].window() == {"a": 0.5, "b": 0.5, "void": 0.0}
    assert world.accumulators[0].state()["rows"] == []


def test_flagged_steps_are_counted_and_left_out_of_the_means():
    world = World(2)
    add(world, range(2))
    for accumulator in world.accumulators:
        broken = torch.tensor(float("nan"))
        accumulator.add(Terms({"a": broken, "b": broken}), Terms({"void": torch.tensor(1.0)}))
    add(world, range(2, 4))
    assert world.accumulators[0].window() == pytest.approx({"a": 1.5, "b": 3.5, "void": 1.0})


def test_a_window_of_other_metrics_is_dropped_with_a_warning(caplog: pytest.LogCaptureFixture):
    """As after an update to a version that logs more."""
    world = World(1)
    add(world, range(3))
    state = world.accumulators[0].state()
    (accumulator,) = World(1).accumulators
    accumulator.load(state)
    accumulator.add(
        Terms({"a": torch.tensor(7.0), "new": torch.tensor(5.0)}), Terms({"void": torch.tensor(0.0)})
    )
    assert "covers fewer steps" in caplog.text
    accumulator.engine = SimpleNamespace(world=1, sum=lambda values: values)  # type: ignore[assignment]
    assert accumulator.window() == {"a": 7.0, "new": 5.0, "void": 0.0}


def test_the_mean_over_no_step_is_not_a_number():
    world = World(1)
    (accumulator,) = world.accumulators
    for value in (3.0, math.inf):
        accumulator.add(
            Terms({"a": torch.tensor(value)}), Terms({"void": torch.tensor(1.0), "other": torch.tensor(0.0)})
        )
    window = accumulator.window()
    assert math.isnan(window.pop("a"))
    assert window == {"void": 2.0, "other": 0.0}


def accumulate_on_ranks() -> tuple[dict[str, float], dict[str, Any], dict[str, float]]:
    """Return a window of two steps, the state after a third, and the window that continues that state."""
    engine = Engine(read_config(["configs/mnist5k.yaml"]))
    accumulator = MetricAccumulator(engine)
    no_flag = Terms({"void": torch.tensor(0.0)})
    for step in range(2):
        accumulator.add(Terms({"a": torch.tensor(step + 10.0 * engine.rank)}), no_flag)
    window = accumulator.window()
    accumulator.add(Terms({"a": torch.tensor(engine.rank + 1.0)}), no_flag)
    state = accumulator.state()
    continued = MetricAccumulator(engine)
    continued.load(state)
    # Left out of the mean.
    continued.add(Terms({"a": torch.tensor(6.0)}), Terms({"void": torch.tensor(1.0)}))
    return window, state, continued.window()


def test_a_window_of_two_real_processes():
    for window, state, continued in on_ranks(2, accumulate_on_ranks):
        assert window == {"a": 5.5, "void": 0.0}
        assert state == {"names": ["a"], "flags": ["void"], "rows": [[1.0, 0.0, 1.0], [2.0, 0.0, 1.0]]}
        assert continued == {"a": 1.5, "void": 1.0}
