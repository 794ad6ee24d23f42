"""Values read back from the logs of a run folder, and the settings with which a W&B run starts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infogan_dist.config.schema import TrackingConfig
from infogan_dist.runtime import run_logs, tracking


def test_a_metric_is_read_by_step_without_values_that_are_missing(tmp_path: Path):
    tracker = tracking.RunFolderTracker(tmp_path)
    for step, value in ((2, 1.5), (4, float("nan")), (6, 3), (8, float("inf"))):
        tracker.log({"d/loss": value, "timing/seconds": 2.0 * step}, step=step)
    tracker.log({"g/loss": 1.0}, step=10)
    with (tmp_path / run_logs.METRICS).open("a") as stream:
        stream.write('{"step": 12, "d/lo')  # of a process that was killed
    assert run_logs.logged_values(tmp_path, run_logs.METRICS, "d/loss") == {2: 1.5, 6: 3}
    assert run_logs.logged_values(tmp_path, run_logs.TIMING, "seconds") == {2: 4, 4: 8, 6: 12, 8: 16}
    assert run_logs.logged_values(tmp_path, run_logs.SCORES, "score/fid") == {}
    run_logs.truncate_logs(tmp_path, 6)
    assert (tmp_path / run_logs.METRICS).read_text().count("\n") == 3
    assert not (tmp_path / run_logs.SCORES).exists()


@pytest.mark.parametrize(("mode", "resume"), [("online", "allow"), ("offline", None)])
def test_a_wandb_run_is_resumed_by_its_id_where_the_service_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, resume: str | None
):
    calls: list[dict[str, Any]] = []

    def init(**settings: Any) -> Any:
        calls.append(settings)
        return SimpleNamespace(define_metric=lambda *_, **__: None, finish=lambda **_: None)

    monkeypatch.setattr(tracking.wandb, "init", init)
    config = TrackingConfig(wandb_mode=mode, project="p", group="g", tags=[], notes="n")
    folder = tmp_path / "run_7"
    folder.mkdir()
    for _ in range(2):
        mirror = tracking.WandbMirror(folder, config)
        mirror.start()
        mirror.finish()
    first, second = calls
    assert first["id"] == second["id"] == (folder / tracking.WANDB_ID).read_text().strip()
    for call in calls:
        assert (call["mode"], call["resume"], call["project"]) == (mode, resume, "p")
        assert (call["name"], call["group"], call["tags"], call["notes"]) == ("run_7", "g", None, "n")
        assert call["dir"] == folder
