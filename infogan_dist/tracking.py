"""Metrics and pictures, to the run folder and to what mirrors it, as Accelerate trackers.

`metrics.jsonl` and the PNG files are the truth. What a clock says goes to `timing.jsonl`, so that
`metrics.jsonl` is the same, bit for bit, each time a config is run.
"""

import contextlib
import json
import math
import os
import queue
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker
from accelerate.tracking import get_available_trackers as installed_trackers
from PIL import Image

from infogan_dist import __version__
from infogan_dist.config import Config, TrackingConfig
from infogan_dist.data.fetch import shown
from infogan_dist.errors import STOPPED, ConfigError, write_whole, writing
from infogan_dist.settings import flat

METRICS, TIMING, PICTURES, WANDB_ID = "metrics.jsonl", "timing.jsonl", "pictures", "wandb_id"
CLOCK = "timing/"  # prefix of values that differ from one run of a config to the next
WANDB_INIT_TIMEOUT_S = 30
WANDB_PATIENCE_S = 60  # at the end of a run, for what has not been sent or written yet

Pictures = dict[str, np.ndarray]  # uint8 [height, width, 3] by name


class RunFolderTracker(GeneralTracker):
    """metrics.jsonl, timing.jsonl and pictures/step_*/NAME.png."""

    name = "run_folder"
    requires_logging_directory = False

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    @property
    def tracker(self) -> Path:
        return self.folder

    def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        metrics = {k: v for k, v in values.items() if not k.startswith(CLOCK)}
        timing = {k.removeprefix(CLOCK): v for k, v in values.items() if k.startswith(CLOCK)}
        for name, line in ((METRICS, metrics), (TIMING, timing)):
            text = json.dumps({"step": step, **{k: _finite(v) for k, v in line.items()}}) + "\n"
            with writing(self.folder / name), (self.folder / name).open("a") as stream:
                stream.write(text)

    def log_images(self, values: Pictures, step: int | None = None, **kwargs: Any) -> None:
        folder = self.folder / PICTURES / f"step_{step:08d}"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, picture in values.items():
                path = folder / f"{name.replace('/', '_')}.png"
                part = path.with_suffix(".part")
                Image.fromarray(picture).save(part, "png")
                os.replace(part, path)


class WandbMirror(GeneralTracker):
    """A W&B run that mirrors the run folder, and never stops, slows or questions the run it mirrors.

    A thread of its own makes all calls, in order; however long W&B takes, training does not wait. The run's
    id is kept in the run folder, so that a resumed run goes on in place.
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
        """Ends the W&B run; a service that does not answer is left behind after a while."""
        failed = sys.exc_info()[0] is not None  # trackers are also ended where a run fails
        status = self._status or int(failed)
        self._calls.put(lambda: self.run.finish(exit_code=status))
        self._calls.put(None)
        self._thread.join(WANDB_PATIENCE_S)
        if self._thread.is_alive():
            _warn(f"W&B has not finished within {WANDB_PATIENCE_S} s; `wandb sync` may, later")

    def log_checkpoint(self, folder: Path, step: int) -> None:
        """Uploads a checkpoint as a version of the artifact that holds this run's."""
        if not self.config.artifacts:
            return

        def call() -> None:
            artifact = wandb.Artifact(f"{self.run.id}-checkpoint", "model", metadata={"step": step})
            # A slow service may come to it only after it was pruned.
            with contextlib.suppress(OSError):
                artifact.add_dir(str(folder))
                self.run.log_artifact(artifact, aliases=[f"step-{step}"])

        self._calls.put(call)

    def mark_preempting(self) -> None:
        """Tells a sweep to put this run back into its queue; W&B does so where the run then fails."""
        self._status = STOPPED
        self._calls.put(lambda: self.run.mark_preempting())

    def _connect(self) -> None:
        mode = wandb_mode(self.config.wandb_mode)
        try:
            self.run = self._init(mode)
        except Exception as error:  # a service's trouble, of whatever kind
            _warn(f"W&B does not start ({error}); logging offline")
            self.run = self._init("offline")
        self.run.define_metric("*", step_metric="step")

    def _init(self, mode: str) -> Any:
        return wandb.init(
            project=self.config.project,
            name=self.config.name or self.folder.resolve().name,
            group=self.config.group,
            tags=self.config.tags or None,
            notes=self.config.notes,
            id=_kept_id(self.folder / WANDB_ID),
            dir=self.folder,
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(
                init_timeout=WANDB_INIT_TIMEOUT_S,
                silent=True,
                console="off",
                # A run that is stopped on W&B's page, or by a sweep, saves as one that is asked to stop.
                # W&B's own way, Ctrl-C's signal, would break off a save where an agent has signalled too.
                stop_fn=lambda: signal.raise_signal(signal.SIGTERM),
            ),
        )

    def _work(self) -> None:
        """Makes the calls until one fails: then W&B is left behind, and what is still asked is dropped."""
        for call in iter(self._calls.get, None):
            try:
                call()
            except Exception as error:  # as above
                _warn(f"W&B fails ({error}); going on without")
                return


class TensorBoardMirror(TensorBoardTracker):
    """Accelerate's, with pictures as height x width x colour, and without a second hparams run a start."""

    def store_init_configuration(self, values: dict) -> None:
        rows = "\n".join(f"| {k} | {v} |" for k, v in values.items())
        self.tracker.add_text("config", f"| key | value |\n| --- | --- |\n{rows}")

    def log_images(self, values: Pictures, step: int | None = None, **kwargs: Any) -> None:
        batch = {k: v[None] for k, v in values.items()}
        super().log_images(batch, step, dataformats="NHWC")


def check_trackers(config: Config) -> None:
    """Refuses a tracker that is unknown or not installed, and what would upload a password.

    Raises:
        ConfigError: as said.
    """
    installed = [str(t) for t in installed_trackers()]
    for name in config.tracking.trackers:
        if name not in installed:
            raise ConfigError(
                f"tracking.trackers: {name} is unknown or not installed; there are {', '.join(installed)}; "
                f"`pip install {name}` may help"
            )
    if config.tracking.artifacts and {**flat(config), **_public_urls(config)} != flat(config):
        raise ConfigError(
            "tracking.artifacts: a checkpoint's config would carry the password or query in data.shards or "
            "data.test to W&B; leave it out of the URL"
        )


def open_trackers(accelerator: Accelerator, config: Config, folder: Path) -> None:
    """Starts the run folder's tracker and its mirrors, on the main process; the others' logs go nowhere."""
    if not accelerator.is_main_process:
        return
    own = {
        "wandb": lambda: WandbMirror(folder, config.tracking),
        "tensorboard": lambda: TensorBoardMirror("tensorboard", folder),
    }
    mirrors = [own[name]() if name in own else name for name in dict.fromkeys(config.tracking.trackers)]
    accelerator.log_with = [RunFolderTracker(folder), *mirrors]  # type: ignore[assignment]
    public = {**flat(config), **_public_urls(config), "version": __version__}
    simple = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in public.items()}
    accelerator.init_trackers(config.tracking.project, config=simple)


def _public_urls(config: Config) -> dict[str, str]:
    """The config's URLs without the passwords and queries they may hold."""
    urls = {"data.shards": config.data.shards, "data.test": config.data.test}
    return {key: shown(url) for key, url in urls.items() if url is not None}


def log_pictures(accelerator: Accelerator, pictures: Pictures, step: int) -> None:
    """Hands pictures to each tracker's own `log_images`."""
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            tracker.log_images(pictures, step=step)  # type: ignore[attr-defined]


def log_checkpoint(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Hands a saved checkpoint to the trackers that can keep one."""
    for tracker in accelerator.trackers:
        if isinstance(tracker, WandbMirror):
            tracker.log_checkpoint(folder, step)


def mark_preempting(accelerator: Accelerator) -> None:
    """Tells the trackers that can use it that this run will be started again."""
    for tracker in accelerator.trackers:
        if isinstance(tracker, WandbMirror):
            tracker.mark_preempting()


def cut_back(folder: Path, step: int) -> None:
    """Removes from the logs what came after a step, as when a run goes on from its checkpoint."""
    for name in (METRICS, TIMING):
        path = folder / name
        if path.is_file():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            with writing(path):
                write_whole(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line that a kill has cut in two


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def wandb_mode(mode: str) -> str:
    """online, offline or disabled; `auto` is WANDB_MODE's, else online where a key is known, else offline."""
    if mode != "auto":
        return mode
    named = os.environ.get("WANDB_MODE")
    if named in ("online", "offline", "disabled"):
        return named
    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def _kept_id(path: Path) -> str:
    """The id of the folder's W&B run: the one it has, else what a sweep's agent gives, else a new one."""
    if not path.is_file():
        path.write_text(os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    return path.read_text()


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
