"""The run folder: which checkpoints remain, and the order in which files reach the disk."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from infogan_dist.config.load import read_config
from infogan_dist.config.schema import CheckpointConfig
from infogan_dist.errors import ConfigError
from infogan_dist.runtime import checkpoint, run_folder
from infogan_dist.runtime.run_folder import RunFolder

CONFIG = read_config(["configs/mnist5k.yaml"])


def save(folder: RunFolder, step: int) -> Path | None:
    return folder.save(CONFIG, {"a": nn.Linear(2, 2)}, {}, {"step": step, "metrics": {}})


def log(folder: RunFolder, name: str, **values: Any) -> None:
    with (folder.path / name).open("a") as stream:
        stream.write(json.dumps(values) + "\n")


def steps(folder: RunFolder) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.step_folders(folder.path)]


def test_the_newest_the_permanent_and_the_best_checkpoint_remain(tmp_path: Path):
    folder = RunFolder(tmp_path)
    CONFIG.checkpoint = CheckpointConfig(keep=2, keep_every=4, best="d/loss", best_mode="min")
    for step, loss in {1: 5.0, 2: 1.0, 3: 3.0, 4: 4.0, 5: 2.0, 6: 9.0, 7: None}.items():
        log(folder, "metrics.jsonl", step=step, **{"d/loss": loss})
        save(folder, step)
    assert steps(folder) == [2, 4, 6, 7]
    assert folder.best_step(CONFIG.checkpoint) == 2


def test_the_best_checkpoint_may_be_chosen_by_a_score_of_its_own_step(tmp_path: Path):
    """Which is computed after the checkpoint was saved; between two evaluations the last score counts."""
    folder = RunFolder(tmp_path)
    CONFIG.checkpoint = CheckpointConfig(keep=1, best="score/accuracy")
    for step, accuracy in ((10, 0.2), (20, 0.9), (30, None), (40, 0.5), (50, 0.6)):
        save(folder, step)
        if accuracy is not None:
            log(folder, "scores.jsonl", step=step, **{"score/accuracy": accuracy})
    assert folder.best_step(CONFIG.checkpoint) == 20
    save(folder, 60)
    assert steps(folder) == [20, 60]


def test_logs_are_on_the_disk_before_the_checkpoint_that_follows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    events: list[str] = []
    folder = RunFolder(tmp_path)
    log(folder, "metrics.jsonl", step=1)
    monkeypatch.setattr(run_folder, "flush_to_disk", lambda path: events.append(path.name))
    monkeypatch.setattr(run_folder.checkpoint, "save", lambda *args: events.append("checkpoint"))
    save(folder, 1)
    assert events == ["metrics.jsonl", "checkpoint"]


def test_a_locked_folder_is_refused_and_an_unlocked_one_is_free(tmp_path: Path):
    first = RunFolder(tmp_path)
    first.lock()
    first.unlock()
    RunFolder(tmp_path).lock()
    with pytest.raises(ConfigError, match="cannot be created"):
        RunFolder(Path("/dev/null/run")).create()
