"""A run set up: its data, networks and state, what it logs, draws and saves."""

import fcntl
import os
import shutil
import sys
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from infogan_dist import __version__, checkpoint, tracking
from infogan_dist.checkpoint import Checkpoint
from infogan_dist.codes import LatentSpec
from infogan_dist.config import Config
from infogan_dist.data.fetch import open_store, shown
from infogan_dist.data.loader import Batch, Loader
from infogan_dist.data.order import Order
from infogan_dist.data.shards import Manifest, load_manifest
from infogan_dist.engine import Engine, check_world, is_first
from infogan_dist.errors import ConfigError, writing
from infogan_dist.metrics import Meter
from infogan_dist.networks import build
from infogan_dist.pictures import grid, run_pictures
from infogan_dist.settings import differences, load_config, save_config
from infogan_dist.state import first_state
from infogan_dist.steps import Stepper

LOCK = ".lock"  # held by the main process of the run that a folder belongs to
DRIFT_TO_TELL = 0.05  # passes that lanes over unequal shards may be apart before the user is told


class Run:
    """A run set up: everything that can be refused has been, and the state is that of its newest checkpoint.

    Raises:
        ConfigError, DataError: before a device is touched, where that can be known.
    """

    def __init__(self, config: Config):
        self.config, self.folder = config, Path(config.run)
        check_world(config)
        tracking.check_trackers(config)
        self.manifest = load_manifest(config.data.shards)
        self.test = None if config.data.test is None else load_manifest(config.data.test)
        self.spec = LatentSpec(config.noise, config.codes)
        networks = build(config.networks, self.spec, self.manifest.image_shape, config.seed)
        _make_folder(self.folder)
        self._lock = hold_folder(self.folder) if is_first() else None
        resumed = resume_point(self.folder, config, self.manifest)
        start = resumed or (
            checkpoint.require(Path(config.train.init_from)) if config.train.init_from else None
        )

        self.engine = Engine(config)
        self.state, self.meter = first_state(config, self.engine, networks), Meter(self.engine)
        self.stepper = Stepper(config, self.spec, self.engine, self.state)
        self.metrics: dict[str, float] = {}
        self.total = config.length(self.manifest.samples)
        self.loader = self._loader()
        if start is not None:
            for name, network in self.state.networks().items():
                checkpoint.load_network(start, name, network)
        if resumed is not None:
            self._resume(resumed)
        self._warm_up()

    def _loader(self) -> Loader:
        config, engine = self.config, self.engine
        sizes = [shard.samples for shard in self.manifest.shards]
        order = Order(config.seed, sizes, config.data.lanes, config.real_batch)
        drift = order.drift()
        if engine.is_main and drift > DRIFT_TO_TELL:
            say(f"shards hold {min(sizes)} to {max(sizes)} images: passes overlap by {drift:.0%} of a pass")
        own = config.data.lanes // engine.world
        lanes = range(engine.rank * own, (engine.rank + 1) * own)
        pin = engine.device.type == "cuda"
        skip = config.data.on_error == "skip"
        kept = config.data.cache_mib * 2**20
        store = open_store(config.data)
        return Loader(self.manifest, order, lanes, config.data.workers, kept, pin, skip, store)

    def _resume(self, resumed: Checkpoint) -> None:
        self.state.load_optimizers(checkpoint.load_optimizers(resumed))
        self.state.step, self.metrics = resumed.step, resumed.about["metrics"]
        self.meter.load(resumed.about["window"])
        if self.engine.is_main:
            say(f"going on from {resumed.path}")

    def _warm_up(self) -> None:
        config, engine = self.config, self.engine
        if engine.world > 1:
            shape = self.manifest.image_shape
            count = config.train.batch_size // engine.world // config.train.accumulation
            real = torch.zeros((count, *shape), dtype=engine.dtype, device=engine.device)
            latents = self.spec.sample(config.seed, "warm_up", 0, count, engine.dtype).to(engine.device)
            self.stepper.warm_up(real, latents)

    def open(self) -> None:
        """Writes the resolved config, cuts the logs back to the state's step, starts the trackers."""
        self.engine.listen_for_stop()
        if self.engine.is_main:
            for left in (self.folder / checkpoint.FOLDER).glob(".*.part"):
                shutil.rmtree(left, ignore_errors=True)
            with writing(self.folder / checkpoint.CONFIG):
                save_config(self.config, self.folder / checkpoint.CONFIG)
            tracking.cut_back(self.folder, self.state.step)
        tracking.open_trackers(self.engine.accelerator, self.config, self.folder)

    def step(self, batch: Batch) -> torch.Tensor:
        """One step on this process's slice of a global batch; returns its flags."""
        config, engine = self.config, self.engine
        images = batch.images.to(engine.device, non_blocking=True).to(engine.dtype) / 127.5 - 1
        count = config.train.batch_size // engine.world
        first = self.state.step * config.train.batch_size + engine.rank * count
        latents = self.spec.sample(config.seed, "latents", first, count, engine.dtype).to(engine.device)
        terms, flags = self.stepper.train_step(images, latents)
        terms["data/substituted"] = batch.substituted.to(engine.device, engine.dtype).mean()
        self.meter.add(terms, dict(zip(("nonfinite/d", "nonfinite/g"), flags, strict=True)))
        return flags

    def log(self, timing: dict[str, float]) -> None:
        """Reduces the window's metrics over all processes and hands them to the trackers."""
        entropy = {f"entropy/{n}": c.entropy * c.variables for n, c in self.spec.codes.items()}
        rates = {"lr/d": self.config.optim.discriminator.lr, "lr/g": self.config.optim.generator.lr}
        scores = {name: value for name, value in self.metrics.items() if name.startswith("score/")}
        self.metrics = {**self.meter.window(), **entropy, **rates}
        self.metrics |= {f"dead/{n}": float(self._is_dead(n)) for n in self.spec.codes}
        self.engine.accelerator.log({**self.metrics, **timing}, step=self.state.step)
        self.metrics |= scores  # the last ones, by which checkpoint.best may choose

    def _is_dead(self, name: str) -> bool:
        """Whether the images show next to nothing of a code that had time to be learned."""
        code, gain = self.spec.codes[name], self.metrics[f"gain/{name}"]
        return self.state.step >= self.config.train.warm_up and gain < code.least_gain

    def evaluate(self) -> None:
        """Scores the run so far and logs it as `score/NAME`. To be called by all processes."""
        # Imported where it is needed: scikit-learn takes its time.
        from infogan_dist.scores.evaluation import evaluate
        from infogan_dist.scores.subject import Subject

        trained = self.state.networks()

        def load(name: str, network: nn.Module) -> None:
            network.load_state_dict(trained[name].state_dict())

        found = evaluate(Subject(self.engine, self.config, load, self.manifest, self.test))
        scores = {f"score/{name}": value for name, value in found.values().items()}
        self.metrics |= scores
        self.engine.accelerator.log(scores, step=self.state.step)
        if self.engine.is_main:
            pictures = {f"score/{name}": pixels for name, pixels in found.pictures.items()}
            tracking.log_pictures(self.engine.accelerator, pictures, self.state.step)

    def draw(self) -> None:
        """Draws the averaged generator's pictures, on the main process."""
        if self.engine.is_main:
            pictures = run_pictures(self.state.ema, self.spec, self.config.seed)
            tracking.log_pictures(self.engine.accelerator, pictures, self.state.step)

    def draw_real(self, batch: Batch) -> None:
        """Draws the first real images, to see what the networks are shown."""
        if self.engine.is_main:
            picture = grid(batch.images[:100].float() / 127.5 - 1, 10)
            tracking.log_pictures(self.engine.accelerator, {"real": picture}, self.state.step)

    def save(self) -> None:
        """Saves a checkpoint and removes those that are not kept. To be called by all processes."""
        window = self.meter.state()
        if (
            self.engine.is_main
            and checkpoint.find(checkpoint.step_folder(self.folder, self.state.step)) is None
        ):
            about = {
                "version": __version__,
                "step": self.state.step,
                "world": self.engine.world,
                "data": self.manifest.name,
                "data_fingerprint": self.manifest.fingerprint(),
                "image_shape": self.manifest.image_shape,
                "label_names": self.manifest.label_names,
                "metrics": self.metrics,
                "window": window,
            }
            checkpoint.save(self.folder, self.config, self.state.networks(), self.state.optimizers(), about)
            folder = checkpoint.step_folder(self.folder, self.state.step)
            tracking.log_checkpoint(self.engine.accelerator, folder, self.state.step)
            checkpoint.prune(
                self.folder, self.config.checkpoint, checkpoint.best(self.folder, self.config.checkpoint)
            )
        self.engine.wait()


def resume_point(folder: Path, config: Config, manifest: Manifest) -> Checkpoint | None:
    """The checkpoint that a run in this folder goes on from.

    Raises:
        ConfigError: the folder's run has another config or other data: another result.
    """
    found = checkpoint.find(folder)
    if found is None:
        return None
    changed = differences(load_config(found.path / checkpoint.CONFIG), config)
    if found.about["data_fingerprint"] != manifest.fingerprint():
        changed.append(f"data.shards: {found.about['data']} -> other images in {shown(config.data.shards)}")
    if changed:
        raise ConfigError(
            f"{folder}: holds a run whose result would be another ({'; '.join(changed)}); "
            "choose another folder with run=..., or remove this one"
        )
    return found


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run: {folder} cannot be made ({error.strerror}); set run=FOLDER") from None


def hold_folder(folder: Path) -> int:
    """Holds the folder for this process; the kernel lets go of it however the process ends.

    Raises:
        ConfigError: another run holds it, or nothing can be written there.
    """
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"run: {folder} belongs to a run that is still going; wait for it, or set run=FOLDER"
        ) from None
    except OSError as error:
        raise ConfigError(f"run: {folder} cannot be written ({error.strerror}); set run=FOLDER") from None
    return lock


def say(text: str) -> None:
    """A line to the user, beside the progress bar."""
    tqdm.write(text, file=sys.stderr)
