"""The loop in this process: what follows which step, stops, losses that are not finite, killed workers."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from infogan_dist.config.load import read_config
from infogan_dist.data.loader import Batch
from infogan_dist.errors import DataError, TrainingError
from infogan_dist.launcher import STOP_SIGNALS
from infogan_dist.training import loop
from infogan_dist.training.loop import Outcome
from infogan_dist.training.run import Run


@pytest.fixture(autouse=True)
def restored_signals() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def train(tiny: Path):
    def train(*overrides: str) -> Outcome:
        return loop.train(read_config([str(tiny), *overrides]))

    return train


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the run's actions, each with the step after which it was taken."""
    recorded: list[str] = []

    def record(name: str, then: Callable[..., None] | None = None) -> None:
        def action(run: Run, *arguments: object) -> None:
            recorded.append(f"{name} {run.state.step}")
            if then is not None:
                then(run, *arguments)

        monkeypatch.setattr(Run, name, action)

    record("log", Run.log)
    record("save", Run.save)
    for name in ("draw", "draw_real", "evaluate"):
        record(name)
    return recorded


@pytest.fixture
def change_step(monkeypatch: pytest.MonkeyPatch):
    """Return a function that sets what happens in one step, instead of or after the step itself."""

    def change(number: int, action: Callable[[torch.Tensor], torch.Tensor]) -> None:
        step = Run.step

        def changed(run: Run, batch: Batch) -> torch.Tensor:
            flags = step(run, batch)
            return action(flags) if run.state.step == number else flags

        monkeypatch.setattr(Run, "step", changed)

    return change


def checkpoints(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "run" / "checkpoints").glob("step_*"))


def test_each_action_follows_its_steps(train, events: list[str]):
    outcome = train(
        "train.steps=7",
        "train.log_every=3",
        "tracking.pictures_every=3",
        "checkpoint.every=4",
        "train.evaluate_every=5",
    )
    assert events == [
        "draw_real 0",
        "log 3",
        "draw 3",
        "save 4",
        "save 5",  # before the scores, whose computation may fail
        "evaluate 5",
        "log 6",
        "draw 6",
        "save 7",
        "evaluate 7",
        "save 7",
        "draw 7",
    ]
    assert (outcome.step, outcome.stopped) == (7, False)
    assert outcome.metrics["entropy/digit"] > 0


def test_a_finished_run_does_no_further_step(train, events: list[str]):
    train("train.steps=3")
    events.clear()
    outcome = train("train.steps=3")
    assert events == ["save 3", "draw 3"]
    assert (outcome.step, outcome.images_per_second) == (3, 0)


def test_the_speed_counts_the_images_of_this_call(train, monkeypatch: pytest.MonkeyPatch):
    train("train.steps=3")
    times = iter([10.0, 14.0])
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    assert train("train.steps=5").images_per_second == 2 * 32 / 4


def test_a_stop_signal_ends_the_run_after_the_next_step_with_a_checkpoint(
    train, events: list[str], change_step, tmp_path: Path
):
    def stop(flags: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return flags

    change_step(3, stop)
    outcome = train("train.steps=9", "train.log_every=100")
    assert (outcome.step, outcome.stopped) == (4, True)  # flags are read one step later
    assert events == ["draw_real 0", "save 4"]
    assert checkpoints(tmp_path) == ["step_00000004"]


@pytest.mark.parametrize("number", [3, 9])
@pytest.mark.parametrize(
    ("flags", "networks"),
    [([1.0, 0.0], "discriminator"), ([0.0, 1.0], "generator"), ([1.0, 1.0], "discriminator and generator")],
)
def test_a_loss_that_is_not_finite_ends_the_run_before_its_step_is_saved(
    train, change_step, tmp_path: Path, number: int, flags: list[float], networks: str
):
    change_step(number, lambda _: torch.tensor(flags))
    with pytest.raises(TrainingError, match=rf"^step {number}: the {networks}'s loss") as error:
        train("train.steps=9", "checkpoint.every=1", "checkpoint.keep=100")
    last = f"step_{number - 1:08d}"
    assert checkpoints(tmp_path)[-1] == last
    assert f"last checkpoint: {tmp_path}/run/checkpoints/{last};" in str(error.value)


def test_a_loss_that_is_not_finite_can_be_skipped(train, change_step):
    change_step(2, lambda _: torch.tensor([1.0, 0.0]))
    outcome = train("train.steps=4", "train.on_nonfinite=skip")
    assert (outcome.step, outcome.stopped) == (4, False)


def test_a_killed_loading_subprocess_is_reported_and_other_errors_are_not_hidden(train, change_step):
    def fail(message: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def action(flags: torch.Tensor) -> torch.Tensor:
            raise RuntimeError(message)

        return action

    change_step(2, fail("DataLoader worker (pid 7) is killed by signal: Killed."))
    with pytest.raises(DataError, match=r"^data\.workers: a loading subprocess ended \(DataLoader worker"):
        train()
    change_step(2, fail("another error"))
    change_step(1, fail("another error"))
    with pytest.raises(RuntimeError, match=r"^another error$"):
        train()


def test_the_first_message_describes_the_run(train, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    train("train.steps=1")
    (message,) = (r.getMessage() for r in caplog.records if "parameters:" in r.getMessage())
    assert "240 images of images, steps 0 to 1 of 32 on 1 x cpu" in message
    names = [part.split()[0] for part in message.partition("parameters: ")[2].split(", ")]
    assert names == ["generator", "discriminator", "recognition"]
