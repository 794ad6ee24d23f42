"""After which steps a run logs, draws, evaluates and saves."""

from collections.abc import Callable
from pathlib import Path

import pytest

from infogan_dist.config.load import read_config
from infogan_dist.training.schedule import Schedule


def steps_of(is_due: Callable[[int], bool], last: int = 12) -> list[int]:
    return [step for step in range(1, last + 1) if is_due(step)]


@pytest.fixture
def create_schedule(tiny: Path):
    def create(*overrides: str) -> Schedule:
        return Schedule(read_config([str(tiny), *overrides]), samples=240)

    return create


def test_intervals_are_those_of_the_config(create_schedule):
    schedule = create_schedule(
        "train.steps=12",
        "train.log_every=5",
        "tracking.pictures_every=4",
        "train.evaluate_every=5",
        "checkpoint.every=6",
        "checkpoint.keep_every=4",
        "train.warm_up=10",
    )
    assert schedule.total == 12
    assert steps_of(schedule.should_log) == [5, 10]
    assert steps_of(schedule.should_draw) == [4, 8]  # the pictures of the last step follow its checkpoint
    assert steps_of(schedule.should_evaluate) == [5, 10, 12]  # and the last step
    assert steps_of(schedule.should_save) == [4, 6, 8, 12]
    assert steps_of(schedule.is_dead_code_reported) == [10, 11, 12]


def test_scores_and_permanent_checkpoints_are_optional(create_schedule):
    schedule = create_schedule("train.steps=12", "checkpoint.every=6")
    assert steps_of(schedule.should_evaluate) == []
    assert steps_of(schedule.should_save) == [6, 12]


def test_epochs_are_converted_to_steps(create_schedule):
    schedule = create_schedule("train.steps=null", "train.epochs=2", "train.batch_size=16")
    assert schedule.total == 30  # two times 240 images, in batches of 16
