"""A run: what it starts from, the loop, and what it leaves behind."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from infogan_dist import __version__, checkpoint, tracking
from infogan_dist.checkpoint import Checkpoint
from infogan_dist.codes import LatentSpec
from infogan_dist.config import Config
from infogan_dist.data.loader import Batch, Loader
from infogan_dist.data.order import Order
from infogan_dist.data.shards import Manifest, load_manifest
from infogan_dist.engine import Engine, check_world
from infogan_dist.errors import ConfigError, TrainingError
from infogan_dist.metrics import Meter
from infogan_dist.networks import build
from infogan_dist.pictures import grid, run_pictures
from infogan_dist.settings import differences, load_config, save_config
from infogan_dist.steps import Stepper

NEAR_ZERO, NEAR_ZERO_WINDOWS = 0.05, 3  # D's loss in nats, and windows in a row, that mean G has lost
DRIFT_TO_TELL = 0.05  # passes that lanes over unequal shards may be apart before the user is told


@dataclass
class Outcome:
    """How a run ended: its step, its last logged metrics, and whether it was asked to stop before its end."""

    step: int
    metrics: dict[str, float]
    stopped: bool


class Run:
    """A run set up: everything that can be refused has been, and the state is that of its newest checkpoint.

    Raises:
        ConfigError, DataError: before a device is touched, where that can be known.
    """

    def __init__(self, config: Config):
        self.config, self.folder = config, Path(config.run)
        check_world(config)
        tracking.check_trackers(config.tracking)
        self.manifest = load_manifest(config.data.shards)
        self.spec = LatentSpec(config.noise, config.codes)
        networks = build(config.networks, self.spec, self.manifest.image_shape, config.seed)
        resumed = resume_point(self.folder, config, self.manifest)
        start = resumed or (checkpoint.require(Path(config.train.init_from)) if config.train.init_from else None)

        self.engine = Engine(config)
        self.stepper = Stepper(config, self.spec, self.engine, networks)
        self.state, self.meter = self.stepper.state, Meter(self.engine)
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
            _say(f"shards hold {min(sizes)} to {max(sizes)} images: passes overlap by {drift:.0%} of a pass")
        own = config.data.lanes // engine.world
        lanes = range(engine.rank * own, (engine.rank + 1) * own)
        pin = engine.device.type == "cuda"
        return Loader(self.manifest, order, lanes, config.data.workers, config.data.cache_mib * 2**20, pin)

    def _resume(self, resumed: Checkpoint) -> None:
        self.state.load_optimizers(checkpoint.load_optimizers(resumed))
        self.state.step, self.metrics = resumed.step, resumed.about["metrics"]
        self.meter.load(resumed.about["window"])
        if self.engine.is_main:
            _say(f"going on from {resumed.path}")

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
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in (self.folder / checkpoint.FOLDER).glob(".*.part"):
                shutil.rmtree(left, ignore_errors=True)
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
        self.meter.add(terms)
        return flags

    def log(self, timing: dict[str, float]) -> None:
        """Reduces the window's metrics over all processes and hands them to the trackers."""
        entropy = {f"entropy/{n}": c.entropy * c.variables for n, c in self.spec.codes.items()}
        rates = {"lr/d": self.config.optim.discriminator.lr, "lr/g": self.config.optim.generator.lr}
        self.metrics = {**self.meter.mean(), **entropy, **rates}
        self.engine.accelerator.log({**self.metrics, **timing}, step=self.state.step)

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
        if self.engine.is_main and checkpoint.find(checkpoint.step_folder(self.folder, self.state.step)) is None:
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
            checkpoint.prune(self.folder, self.config.checkpoint, checkpoint.best(self.folder, self.config.checkpoint))
        self.engine.wait()


def train(config: Config) -> Outcome:
    """Trains a run to its length, from its newest checkpoint where it has one.

    Raises:
        ConfigError, DataError: see `Run`.
        TrainingError: a loss or a gradient was not finite.
    """
    run = Run(config)
    run.open()
    if run.engine.is_main:
        _say(_headline(run))
    try:
        stopped = _loop(run)
        run.save()
        if not stopped:
            run.draw()
        elif run.engine.is_main:
            tracking.mark_preempting(run.engine.accelerator)
    finally:
        run.engine.close()
    return Outcome(run.state.step, run.metrics, stopped)


def _loop(run: Run) -> bool:
    """Steps until the run's length, or until all processes know that one was asked to stop."""
    config, state = run.config, run.state
    batches = run.loader.batches(state.step)
    clock, watch = _Clock(run), _Watch(run)
    bar = tqdm(
        total=run.total,
        initial=state.step,
        unit="step",
        disable=not (config.tracking.progress and run.engine.is_main),
        dynamic_ncols=True,
    )
    with bar:
        while state.step < run.total:
            batch = clock.timed(batches)
            if state.step == 0:
                run.draw_real(batch)
            flags = run.engine.exchange(run.step(batch))
            bar.update()
            if state.step % config.train.log_every == 0:
                run.log(clock.window())
                bar.set_postfix_str(_short(run))
                watch.look()
            if flags and any(flags[1:]):
                watch.fail(flags)
            if flags and flags[0]:
                return True
            if state.step % config.tracking.pictures_every == 0 and state.step < run.total:
                run.draw()
            if _saves(config, state.step):
                run.save()
    return False


def _saves(config: Config, step: int) -> bool:
    every = (config.checkpoint.every, config.checkpoint.keep_every)
    return any(n is not None and step % n == 0 for n in every)


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
        changed.append(f"data.shards: {found.about['data']} -> other images in {config.data.shards}")
    if changed:
        raise ConfigError(
            f"{folder}: holds a run whose result would be another ({'; '.join(changed)}); "
            "choose another folder with run=..., or remove this one"
        )
    return found


class _Clock:
    """What a clock says: it goes to timing.jsonl, apart from what the config alone decides."""

    def __init__(self, run: Run):
        self.run, self.start = run, time.perf_counter()
        self.mark, self.first, self.waited = self.start, run.state.step, 0.0

    def timed(self, batches: Iterator[Batch]) -> Batch:
        before = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - before
        return batch

    def window(self) -> dict[str, float]:
        now, step = time.perf_counter(), self.run.state.step
        seconds = now - self.mark
        rate = (step - self.first) * self.run.config.train.batch_size / seconds
        said = {"images_per_second": rate, "data_wait_share": self.waited / seconds, "seconds": now - self.start}
        self.mark, self.first, self.waited = now, step, 0.0
        return {tracking.CLOCK + k: v for k, v in said.items()}


class _Watch:
    """Looks for what goes wrong in training."""

    def __init__(self, run: Run):
        self.run, self.low = run, 0

    def look(self) -> None:
        """Warns, once, of a discriminator that has won: its loss stays near 0 and G learns nothing more."""
        metrics = self.run.metrics
        self.low = self.low + 1 if metrics["d/real"] + metrics["d/fake"] < NEAR_ZERO else 0
        if self.low == NEAR_ZERO_WINDOWS and self.run.engine.is_main:
            _say(
                f"warning: the discriminator's loss stays below {NEAR_ZERO} (step {self.run.state.step}): the sign of a "
                "failed run; a lower optim.discriminator.lr, objective.r1=1 or another seed may help"
            )

    def fail(self, flags: list[float]) -> None:
        """Ends the run at the same step on all processes. Raises `TrainingError`."""
        step, names = self.run.state.step - 2, ("discriminator", "generator")
        which = " and ".join(n for n, flag in zip(names, flags[1:], strict=True) if flag)
        last = checkpoint.find(self.run.folder)
        raise TrainingError(
            f"step {step}: the {which}'s loss or gradient is not finite; the weights kept no trace of it; last "
            f"checkpoint: {last.path if last else 'none'}; try lower learning rates, or optim.*.clip=1"
        )


def _headline(run: Run) -> str:
    engine, config = run.engine, run.config
    sizes = ", ".join(
        f"{name} {sum(p.numel() for p in network.parameters()):,}"
        for name, network in run.state.networks().items()
        if name != "generator_ema"
    )
    return (
        f"{config.run}: {run.manifest.samples:,} images of {run.manifest.name}, steps {run.state.step:,} to {run.total:,} "
        f"of {config.train.batch_size} on {engine.world} x {engine.device.type}; parameters: {sizes}"
    )


def _short(run: Run) -> str:
    """What the progress bar shows: both losses and the bound per code."""
    m = run.metrics
    bounds = " ".join(f"{n}={m[f'bound/{n}']:.2f}" for n in run.spec.codes)
    return f"D={m['d/loss']:.2f} G={m['g/loss']:.2f} {bounds}"


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
