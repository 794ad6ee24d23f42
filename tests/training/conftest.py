"""Training steps for the tests of this folder."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from infogan_dist.training.step import TrainStep
from tests.training.steps import create_train_step


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def create_step(tmp_path: Path) -> Callable[..., TrainStep]:
    """Return a function that creates a step from overrides of the small config."""

    def create(*overrides: str, graphed: bool = False) -> TrainStep:
        return create_train_step(tmp_path, *overrides, graphed=graphed)

    return create
