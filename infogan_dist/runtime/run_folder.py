"""The folder of a run: its lock, the checkpoint that it continues from, saving and pruning.

runs/mnist/
    config.yaml         the resolved config
    metrics.jsonl       one line per `train.log_every` steps; identical each time the config is run
    timing.jsonl        measured times of the same steps
    scores.jsonl        one line per `train.evaluate_every` steps
    pictures/step_*/    PNG files
    checkpoints/step_*/ see `checkpoint.py`
    .lock               locked while a run is going in this folder
"""

import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from infogan_dist.config.load import CONFIG_FILE, load_config, resume_conflicts, save_config
from infogan_dist.config.schema import CheckpointConfig, Config
from infogan_dist.credentials import redact_url
from infogan_dist.data.shards import Manifest
from infogan_dist.errors import ConfigError
from infogan_dist.files import flush_to_disk, report_unwritable
from infogan_dist.runtime import checkpoint, run_logs
from infogan_dist.runtime.checkpoint import Checkpoint


class RunFolder:
    """The folder of a run; only the main process writes to it.

    Attributes:
        path: the folder.
        lock_path: a file that is locked while a run is going in the folder.
    """

    def __init__(self, path: Path):
        self.path, self.lock_path = path, path / ".lock"
        self._lock: int | None = None

    def create(self) -> None:
        """Create the folder where it is missing. Raises `ConfigError`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"run: {self.path} cannot be created ({error.strerror}); set run=FOLDER"
            ) from None

    def lock(self) -> None:
        """Lock the folder for this process; the kernel releases the lock however the process ends.

        Raises:
            ConfigError: another run has locked it, or nothing can be written there.
        """
        try:
            self._lock = os.open(self.lock_path, os.O_RDWR | os.O_CREAT)
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"run: {self.path} belongs to a run that is still going; wait for it, or set run=FOLDER"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"run: {self.path} cannot be written ({error.strerror}); set run=FOLDER"
            ) from None

    def unlock(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def resume_point(self, config: Config, manifest: Manifest) -> Checkpoint | None:
        """Return the checkpoint that a run with this config continues from, None where there is none.

        Raises:
            ConfigError: the folder's run has another config or other data, so that its result would differ.
        """
        newest = checkpoint.find(self.path)
        if newest is None:
            return None
        changed = resume_conflicts(load_config(newest.path / CONFIG_FILE), config)
        if newest.metadata["data_fingerprint"] != manifest.fingerprint():
            location = redact_url(config.data.shards)
            changed.append(f"data.shards: {newest.metadata['data']} -> other images in {location}")
        if changed:
            raise ConfigError(
                f"{self.path}: contains a run whose result would differ ({'; '.join(changed)}); "
                "choose another folder with run=..., or remove this one"
            )
        return newest

    def prepare(self, config: Config, step: int) -> None:
        """Remove incomplete checkpoints, write the resolved config, and truncate the logs to a step."""
        for partial in (self.path / checkpoint.FOLDER).glob(".*.part"):
            shutil.rmtree(partial, ignore_errors=True)
        with report_unwritable(self.path, run_logs.RESTART):
            save_config(config, self.path / CONFIG_FILE)
            run_logs.truncate_logs(self.path, step)

    def save(
        self,
        config: Config,
        networks: Mapping[str, nn.Module],
        optimizers: dict[str, Any],
        metadata: dict[str, Any],
    ) -> Path | None:
        """Save a checkpoint, and prune older ones.

        Args:
            config: the resolved config, whose `checkpoint` section decides which older ones remain.
            networks, optimizers, metadata: see `checkpoint.save`.

        Returns:
            The checkpoint's folder; None if there was a complete one of this step already.

        Raises:
            DataError: it cannot be written; earlier checkpoints are unchanged.
        """
        folder = checkpoint.step_folder(self.path, metadata["step"])
        if checkpoint.find(folder) is not None:
            return None
        # A log must not be older than the checkpoint that follows it, also after a power failure.
        with report_unwritable(self.path, run_logs.RESTART):
            for name in run_logs.LOGS:
                if (self.path / name).is_file():
                    flush_to_disk(self.path / name)
        checkpoint.save(self.path, config, networks, optimizers, metadata)
        checkpoint.prune(self.path, config.checkpoint, self.best_step(config.checkpoint))
        return folder

    def best_step(self, config: CheckpointConfig) -> int | None:
        """Return the step of the checkpoint with the best value of `checkpoint.best`; None if there is none.

        The value is the last one that was logged up to the checkpoint's step. Of checkpoints with the same
        value the oldest is the best: between two evaluations the score is that of the first checkpoint.
        """
        if config.best is None:
            return None
        is_score = config.best.startswith(run_logs.SCORE_PREFIX)
        values = run_logs.logged_values(
            self.path, run_logs.SCORES if is_score else run_logs.METRICS, config.best
        )
        rated: list[tuple[float, int]] = []
        for folder in checkpoint.step_folders(self.path):
            step = checkpoint.step_of(folder)
            last = max((s for s in values if s <= step), default=None)
            if last is not None:
                rated.append((values[last] if config.best_mode == "max" else -values[last], -step))
        return -max(rated)[1] if rated else None
