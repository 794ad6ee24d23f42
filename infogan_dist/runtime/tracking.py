"""Logging of metrics and pictures: to the run folder, and to services that mirror it, as Accelerate trackers.

`metrics.jsonl`, `scores.jsonl` and the PNG files are the primary record. Measured times go to `timing.jsonl`,
so that `metrics.jsonl` is the same, bit for bit, each time a config is run.
"""

import contextlib
import logging
import os
import queue
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker
from accelerate.tracking import get_available_trackers as installed_trackers
from PIL import Image

from infogan_dist import __version__
from infogan_dist.config.load import flatten
from infogan_dist.config.schema import Config, TrackingConfig
from infogan_dist.credentials import redact_argument, redact_text, redact_url
from infogan_dist.errors import EXIT_STOPPED, ConfigError
from infogan_dist.files import report_unwritable, write_text
from infogan_dist.runtime import run_logs
from infogan_dist.runtime.failure import end_trackers_by
from infogan_dist.runtime.pictures import save_picture

PICTURES, WANDB_ID = "pictures", "wandb_id"
WANDB_INIT_TIMEOUT_S = 30
WANDB_FINISH_TIMEOUT_S = 60  # at the end of a run, for what W&B has not sent or written yet

logger = logging.getLogger(__name__)

Pictures = dict[str, np.ndarray]  # uint8 [height, width, 3] by name


class RunFolderTracker(GeneralTracker):
    """Writes metrics.jsonl, timing.jsonl, scores.jsonl and pictures/step_*/NAME.png."""

    name = "run_folder"
    requires_logging_directory = False

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    @property
    def tracker(self) -> Path:
        return self.folder

    def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        run_logs.append(self.folder, values, step)

    def log_images(self, values: Pictures, step: int | None = None, **kwargs: Any) -> None:
        folder = self.folder / PICTURES / f"step_{step:08d}"
        with report_unwritable(folder, run_logs.RESTART):
            folder.mkdir(parents=True, exist_ok=True)
            for name, picture in values.items():
                save_picture(picture, folder / f"{name.replace('/', '_')}.png")


class WandbMirror(GeneralTracker):
    """A W&B run that mirrors the run folder. Whatever W&B does, training neither waits nor ends.

    A thread of its own makes all calls, in order. The id of the W&B run is stored in the run folder, so that
    a resumed run continues the same W&B run.
    """

    name = "wandb"
    requires_logging_directory = False

    def __init__(self, folder: Path, config: TrackingConfig):
        super().__init__()
        self.folder, self.config = folder, config
        self.run: Any = None
        self._status = 0
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)

    def start(self) -> None:
        """Connect to W&B, in the thread."""
        self._thread.start()
        self._calls.put(self._connect)

    @property
    def tracker(self) -> Any:
        return self.run

    def store_init_configuration(self, values: dict) -> None:
        self._calls.put(lambda: self.run.config.update(values, allow_val_change=True))

    def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        self._calls.put(lambda: self.run.log({"step": step, **values}))

    def log_images(self, values: Pictures, step: int | None = None, **kwargs: Any) -> None:
        def call() -> None:
            images = {k: wandb.Image(Image.fromarray(v)) for k, v in values.items()}
            self.run.log({"step": step, **images})

        self._calls.put(call)

    def finish(self) -> None:
        """End the W&B run; stop waiting for a service that does not answer after `WANDB_FINISH_TIMEOUT_S`."""
        failed = sys.exc_info()[0] is not None  # trackers are finished after an error as well
        status = self._status or int(failed)
        self._calls.put(lambda: self.run.finish(exit_code=status))
        self._calls.put(None)
        self._thread.join(WANDB_FINISH_TIMEOUT_S)
        if self._thread.is_alive():
            logger.warning("W&B has not finished within %d s; run `wandb sync` later", WANDB_FINISH_TIMEOUT_S)

    def log_checkpoint(self, folder: Path, step: int) -> None:
        """Upload a checkpoint as a version of this run's artifact."""
        if not self.config.artifacts:
            return

        def call() -> None:
            artifact = wandb.Artifact(f"{self.run.id}-checkpoint", "model", metadata={"step": step})
            # If the service is slow, the checkpoint may have been pruned before its turn comes.
            with contextlib.suppress(OSError):
                artifact.add_dir(str(folder))
                self.run.log_artifact(artifact, aliases=[f"step-{step}"])

        self._calls.put(call)

    def mark_preempting(self) -> None:
        """Ask W&B to requeue this run of a sweep; it does so when the run ends with a status other than 0."""
        self._status = EXIT_STOPPED
        self._calls.put(lambda: self.run.mark_preempting())

    def mark_failed(self, status: int) -> None:
        """Set the exit status with which the W&B run ends."""
        self._status = status

    def _connect(self) -> None:
        mode = wandb_mode(self.config.wandb_mode)
        try:
            self.run = self._init(mode)
        except Exception as error:  # any error of the service
            logger.warning("W&B does not start (%s); logging offline", error)
            self.run = self._init("offline")
        self.run.define_metric("*", step_metric="step")

    def _init(self, mode: str) -> Any:
        return wandb.init(
            project=self.config.project,
            name=self.config.name or self.folder.resolve().name,
            group=self.config.group,
            tags=self.config.tags or None,
            notes=self.config.notes,
            id=_run_id(self.folder / WANDB_ID),
            dir=self.folder,
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(
                init_timeout=WANDB_INIT_TIMEOUT_S,
                silent=True,
                console="off",
                # A run that is stopped on W&B's page, or by a sweep, saves a checkpoint like after any
                # request to stop. W&B's default, a KeyboardInterrupt, could interrupt a save.
                stop_fn=lambda: signal.raise_signal(signal.SIGTERM),
            ),
        )

    def _work(self) -> None:
        """Make the calls in order. After one fails, drop the rest, and train on without W&B."""
        for call in iter(self._calls.get, None):
            try:
                call()
            except Exception as error:  # any error of the service
                logger.warning("W&B fails (%s); continuing without it", error)
                return


class TensorBoardMirror(TensorBoardTracker):
    """Accelerate's tracker, with pictures [height, width, colour] and with the config as text."""

    def store_init_configuration(self, values: dict) -> None:
        rows = "\n".join(f"| {k} | {v} |" for k, v in values.items())
        self.tracker.add_text("config", f"| key | value |\n| --- | --- |\n{rows}")

    def log_images(self, values: Pictures, step: int | None = None, **kwargs: Any) -> None:
        batch = {k: v[None] for k, v in values.items()}
        super().log_images(batch, step, dataformats="NHWC")


def check_trackers(config: Config) -> None:
    """Refuse a tracker that is unknown or not installed, and artifacts that would upload a password.

    Raises:
        ConfigError: with the tracker or the URL.
    """
    installed = [str(t) for t in installed_trackers()]
    for name in config.tracking.trackers:
        if name not in installed:
            raise ConfigError(
                f"tracking.trackers: {name} is unknown or not installed (installed: {', '.join(installed)}); "
                f"run `pip install {name}`, or remove it"
            )
    if config.tracking.artifacts and any(redact_url(url) != url for url in _urls(config).values()):
        raise ConfigError(
            "tracking.artifacts: each checkpoint's config would upload the password or query in data.shards "
            "or data.test to W&B; remove it from the URL"
        )


def open_trackers(accelerator: Accelerator, config: Config, folder: Path) -> None:
    """Start the run folder's tracker and its mirrors on the main process; the other processes log nothing."""
    if not accelerator.is_main_process:
        return
    own = {
        "wandb": lambda: WandbMirror(folder, config.tracking),
        "tensorboard": lambda: TensorBoardMirror("tensorboard", folder),
    }
    mirrors = [own[name]() if name in own else name for name in dict.fromkeys(config.tracking.trackers)]
    accelerator.log_with = [RunFolderTracker(folder), *mirrors]  # type: ignore[assignment]
    urls = {key: redact_url(url) for key, url in _urls(config).items()}
    public = {**flatten(config), **urls, "version": __version__}
    simple = {k: v if isinstance(v, (int, float)) else redact_text(str(v)) for k, v in public.items()}
    # W&B and other trackers record the command line, which they read from here.
    sys.argv[1:] = map(redact_argument, sys.argv[1:])
    accelerator.init_trackers(config.tracking.project, config=simple)
    end_trackers_by(partial(_end_failed, accelerator))


def _end_failed(accelerator: Accelerator, status: int) -> None:
    """End the trackers of a run that failed with an exit status."""
    for tracker in accelerator.trackers:
        if isinstance(tracker, WandbMirror):
            tracker.mark_failed(status)
        tracker.finish()


def _urls(config: Config) -> dict[str, str]:
    """Return the locations in the config, which may contain passwords, by key."""
    urls = {"data.shards": config.data.shards, "data.test": config.data.test}
    return {key: url for key, url in urls.items() if url is not None}


def log_pictures(accelerator: Accelerator, pictures: Pictures, step: int) -> None:
    """Log pictures, uint8 [height, width, 3] by name, to each tracker that accepts them."""
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            tracker.log_images(pictures, step=step)  # type: ignore[attr-defined]


def log_checkpoint(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Upload a saved checkpoint to the trackers that store artifacts."""
    for tracker in accelerator.trackers:
        if isinstance(tracker, WandbMirror):
            tracker.log_checkpoint(folder, step)


def mark_preempting(accelerator: Accelerator) -> None:
    """Report to the trackers that this run will be started again."""
    for tracker in accelerator.trackers:
        if isinstance(tracker, WandbMirror):
            tracker.mark_preempting()


def wandb_mode(mode: str) -> str:
    """Return online, offline or disabled. `auto` takes WANDB_MODE, else online if logged in, else offline."""
    if mode != "auto":
        return mode
    named = os.environ.get("WANDB_MODE")
    if named in ("online", "offline", "disabled"):
        return named
    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def _run_id(path: Path) -> str:
    """Return the id of the folder's W&B run: the stored one, else the sweep agent's, else a new one."""
    if not path.is_file():
        write_text(path, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    return path.read_text()
