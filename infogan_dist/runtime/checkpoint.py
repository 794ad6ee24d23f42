"""Checkpoints: written completely or not at all; the newest complete one is loaded.

checkpoints/step_00002000/
    generator.safetensors, generator_ema.safetensors, discriminator.safetensors, recognition.safetensors
    optimizers.pt      state of Adam and of the scalers, tensors and numbers only
    config.yaml        the resolved config
    run.json           metadata: step, image shape, data fingerprint, partly filled metric window
    files.json         size and SHA-256 of each of these, written last
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from infogan_dist.config.load import CONFIG_FILE, save_config
from infogan_dist.config.schema import CheckpointConfig, Config
from infogan_dist.errors import ConfigError, DataError
from infogan_dist.files import flush_to_disk

INDEX, METADATA, OPTIMIZERS = "files.json", "run.json", "optimizers.pt"
FOLDER, PREFIX = "checkpoints", "step_"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Attributes:
        path: its folder.
        metadata: the content of run.json.
    """

    path: Path
    metadata: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.metadata["step"])

    def digest(self) -> str:
        """Return the SHA-256 of files.json, which contains those of all files."""
        return hashlib.sha256((self.path / INDEX).read_bytes()).hexdigest()


def save(
    run: Path,
    config: Config,
    networks: Mapping[str, nn.Module],
    optimizers: dict[str, Any],
    metadata: dict[str, Any],
) -> None:
    """Write the checkpoint of `metadata["step"]`: into a temporary folder, flushed, then renamed.

    Args:
        run: the run folder.
        config: the resolved config.
        networks: by the name of their file.
        optimizers: state of Adam and of the scalers.
        metadata: for run.json; with `step`.

    Raises:
        DataError: the disk is full or read-only; earlier checkpoints are unchanged.
    """
    final = step_folder(run, metadata["step"])
    part = final.with_name(f".{final.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, network in networks.items():
            save_file(_host_state(network), part / f"{name}.safetensors")
        state = io.BytesIO()  # torch.save hides the cause of a disk error when it writes a file itself
        torch.save(optimizers, state)
        (part / OPTIMIZERS).write_bytes(state.getvalue())
        save_config(config, part / CONFIG_FILE)
        (part / METADATA).write_text(json.dumps(metadata, indent=1))
        (part / INDEX).write_text(json.dumps({p.name: _digest(p) for p in sorted(part.iterdir())}, indent=1))
        for file in part.iterdir():
            flush_to_disk(file)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
        flush_to_disk(final.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise DataError(
            f"{final}: the checkpoint cannot be written ({error}); make room and start again: "
            "the run continues from its newest checkpoint"
        ) from None


def find(path: Path, step: int | None = None) -> Checkpoint | None:
    """Return the newest complete checkpoint, or that of a step; None where there is none.

    Incomplete and damaged ones are ignored.

    Args:
        path: a run folder, or a checkpoint folder itself.
        step: the step, or None for the newest.
    """
    if (path / INDEX).is_file():
        return _read(path)
    for folder in reversed(step_folders(path)):
        if step in (None, step_of(folder)):
            checkpoint = _read(folder)
            if checkpoint is not None:
                return checkpoint
    return None


def require(path: Path, step: int | None = None) -> Checkpoint:
    """Return the checkpoint that `find` returns. Raises `DataError` with the saved steps if it is None."""
    checkpoint = find(path, step)
    if checkpoint is None:
        steps = ", ".join(str(step_of(folder)) for folder in step_folders(path)) or "none"
        what = "no complete checkpoint" if step is None else f"no complete checkpoint of step {step}"
        raise DataError(f"{path}: {what} there; saved steps: {steps}")
    return checkpoint


def load_network(checkpoint: Checkpoint, name: str, network: nn.Module) -> None:
    """Load a network's weights and buffers in place. Raises `ConfigError` where they do not fit."""
    path = checkpoint.path / f"{name}.safetensors"
    state, expected = load_file(path), network.state_dict()
    for key in sorted({*state, *expected}):
        if key not in state or key not in expected or state[key].shape != expected[key].shape:
            has, wants = (list(d[key].shape) if key in d else "absent" for d in (state, expected))
            raise ConfigError(
                f"{path}: {key} is {has}, the config's network has {wants}; use the config it was saved with"
            )
    network.load_state_dict(state)


def load_optimizers(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the state of Adam and of the scalers, on the CPU. Only tensors and numbers are unpickled."""
    return torch.load(checkpoint.path / OPTIMIZERS, map_location="cpu", weights_only=True)


def prune(run: Path, config: CheckpointConfig, best_step: int | None) -> None:
    """Remove checkpoints, except the newest, those of `checkpoint.keep_every`, and the best."""
    folders = step_folders(run)
    for folder in folders[: -config.keep]:
        step = step_of(folder)
        permanent = config.keep_every is not None and step > 0 and step % config.keep_every == 0
        if not permanent and step != best_step:
            shutil.rmtree(folder, ignore_errors=True)


def step_folder(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return run / FOLDER / f"{PREFIX}{step:08d}"


def step_folders(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, complete or not, oldest first."""
    return sorted((p for p in _entries(run / FOLDER) if p.name.startswith(PREFIX)), key=step_of)


def _entries(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (p for p in folder.iterdir() if p.name.removeprefix(PREFIX).isdecimal())


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint's folder."""
    return int(folder.name.removeprefix(PREFIX))


def _read(folder: Path) -> Checkpoint | None:
    """Return the checkpoint if all of its files have the size and the SHA-256 of files.json, else None."""
    try:
        index = json.loads((folder / INDEX).read_text())
        if any(_digest(folder / name) != digest for name, digest in index.items()):
            return None
        return Checkpoint(folder, json.loads((folder / METADATA).read_text()))
    except (OSError, ValueError, AttributeError):
        return None


def _host_state(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}


def _digest(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
