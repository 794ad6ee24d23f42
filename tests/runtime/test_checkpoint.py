"""Checkpoints are complete or not used."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from infogan_dist.config.load import read_config
from infogan_dist.errors import ConfigError, DataError
from infogan_dist.runtime import checkpoint

CONFIG = read_config(["configs/mnist5k.yaml"])


def save(run: Path, step: int, **metrics: float) -> None:
    torch.manual_seed(step)
    networks = {"a": nn.Linear(2, 2), "b": nn.BatchNorm1d(2)}
    checkpoint.save(
        run,
        CONFIG,
        networks,
        {"adam": {"step": torch.tensor(float(step))}},
        {"step": step, "metrics": metrics},
    )


def steps(run: Path) -> list[int]:
    return [int(p.name.removeprefix("step_")) for p in checkpoint.step_folders(run)]


def test_a_checkpoint_is_loaded_as_it_was_saved(tmp_path: Path):
    save(tmp_path, 7)
    saved = checkpoint.require(tmp_path)
    torch.manual_seed(7)
    expected, fresh = nn.Linear(2, 2), nn.Linear(2, 2)
    checkpoint.load_network(saved, "a", fresh)
    assert torch.equal(fresh.weight, expected.weight)
    assert checkpoint.load_optimizers(saved)["adam"]["step"] == 7
    assert saved.step == 7
    assert checkpoint.require(saved.path).step == 7  # a checkpoint folder works as well


def test_a_checkpoint_truncated_or_damaged_anywhere_is_ignored(tmp_path: Path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    newest = checkpoint.step_folder(tmp_path, 2)
    for name in sorted(os.listdir(newest)):
        for damage in (
            lambda b: b[: len(b) // 2],
            lambda b: b"",
            lambda b: b[:-1] + bytes([b[-1] ^ 1]),
            None,
        ):
            copy = tmp_path / "copy"
            shutil.copytree(tmp_path / "checkpoints", copy / "checkpoints", dirs_exist_ok=True)
            file = checkpoint.step_folder(copy, 2) / name
            if damage is None:
                file.unlink()
            else:
                file.write_bytes(damage(file.read_bytes()))
            loaded = checkpoint.find(copy)
            assert loaded is not None
            assert loaded.step == 1, (name, damage)
            shutil.rmtree(copy)


def test_a_save_that_fails_changes_no_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    for broken in ("save_file", "flush_to_disk", "save_config"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, broken, full)
            with pytest.raises(DataError, match=r"step_00000002.*No space left.*continues from its newest"):
                save(tmp_path, 2)
        assert os.listdir(tmp_path / "checkpoints") == ["step_00000001"]


def test_a_missing_step_is_reported_with_the_saved_ones(tmp_path: Path):
    save(tmp_path, 3)
    save(tmp_path, 5)
    assert checkpoint.require(tmp_path, 3).step == 3
    with pytest.raises(DataError, match="no complete checkpoint of step 4 there; saved steps: 3, 5"):
        checkpoint.require(tmp_path, 4)
    with pytest.raises(DataError, match="saved steps: none"):
        checkpoint.require(tmp_path / "nowhere")


def test_weights_that_do_not_fit_are_named(tmp_path: Path):
    save(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"a\.safetensors: bias is \[2\], the config's network has \[3\]"):
        checkpoint.load_network(checkpoint.require(tmp_path), "a", nn.Linear(2, 3))


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("/tmp/nothing-unpickles-this",))


def test_optimizer_state_runs_no_code(tmp_path: Path):
    save(tmp_path, 1)
    folder = checkpoint.step_folder(tmp_path, 1)
    torch.save({"adam": Bomb()}, folder / checkpoint.OPTIMIZERS)
    index = json.loads((folder / checkpoint.INDEX).read_text())
    index[checkpoint.OPTIMIZERS] = checkpoint._digest(folder / checkpoint.OPTIMIZERS)
    (folder / checkpoint.INDEX).write_text(json.dumps(index))
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load_optimizers(checkpoint.require(tmp_path))
    assert not os.path.exists("/tmp/nothing-unpickles-this")
