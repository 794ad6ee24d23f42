"""The exit status that W&B records for a run, with W&B itself replaced."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infogan_dist.config.load import read_config
from infogan_dist.config.schema import TrackingConfig
from infogan_dist.errors import EXIT_STOPPED
from infogan_dist.runtime import tracking


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tracking.WandbMirror:
    calls: list[Any] = []
    run = SimpleNamespace(
        define_metric=lambda *_, **__: None,
        finish=lambda exit_code: calls.append(exit_code),
        mark_preempting=lambda: calls.append("preempting"),
        calls=calls,
    )
    monkeypatch.setattr(tracking.wandb, "init", lambda **_: run)
    mirror = tracking.WandbMirror(tmp_path, TrackingConfig(wandb_mode="offline"))
    mirror.start()
    return mirror


def test_a_complete_run_has_succeeded(mirror: tracking.WandbMirror):
    mirror.finish()
    assert mirror.run.calls == [0]


def test_a_run_that_ends_with_an_error_has_failed(mirror: tracking.WandbMirror):
    def fail() -> None:
        try:
            raise ValueError
        finally:
            mirror.finish()  # as in the loop

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert mirror.run.calls == [1]


def test_a_stopped_run_is_marked_for_another_start(mirror: tracking.WandbMirror):
    tracking.mark_preempting(SimpleNamespace(trackers=[object(), mirror]))  # type: ignore[arg-type]
    mirror.finish()
    assert mirror.run.calls == ["preempting", EXIT_STOPPED]


def test_a_run_that_leaves_after_an_error_of_one_process_has_its_status(
    mirror: tracking.WandbMirror, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The trackers are then ended by a thread, which does not handle the exception itself."""
    ends: list[Any] = []
    monkeypatch.setattr(tracking, "end_trackers_by", ends.append)
    accelerator: Any = SimpleNamespace(
        is_main_process=True, trackers=[mirror], init_trackers=lambda *_, **__: None
    )
    config = read_config(["configs/mnist5k.yaml", "tracking.trackers=[]"])
    tracking.open_trackers(accelerator, config, tmp_path)
    (end,) = ends
    end(3)
    assert mirror.run.calls == [3]
