"""Training: the loop, what a clock says of it, and what is looked out for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

from infogan_dist import checkpoint, tracking
from infogan_dist.config import Config
from infogan_dist.data.loader import Batch
from infogan_dist.errors import DataError, TrainingError
from infogan_dist.run import Run, say

NEAR_ZERO, NEAR_ZERO_WINDOWS = 0.05, 3  # D's loss in nats, and windows in a row, that mean G has lost


@dataclass
class Outcome:
    """How a call of `train` ended.

    Attributes:
        step: the run's step.
        metrics: the last logged ones.
        images_per_second: over this call's steps, pictures and checkpoints included; 0 without steps.
        stopped: it was asked to stop before the run's end.
    """

    step: int
    metrics: dict[str, float]
    images_per_second: float
    stopped: bool


def train(config: Config) -> Outcome:
    """Trains a run to its length, from its newest checkpoint where it has one.

    Raises:
        ConfigError, DataError: see `Run`.
        TrainingError: a loss or a gradient was not finite.
    """
    run = Run(config)
    run.open()
    if run.engine.is_main:
        say(_headline(run))
    start, first = time.perf_counter(), run.state.step
    try:
        with _loading_told():
            stopped = _loop(run)
        run.save()
        if not stopped:
            run.draw()
        elif run.engine.is_main:
            tracking.mark_preempting(run.engine.accelerator)
    finally:
        run.engine.close()
    rate = (run.state.step - first) * config.train.batch_size / (time.perf_counter() - start)
    return Outcome(run.state.step, run.metrics, rate, stopped)


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
            if watch.stop(flags, state.step - 1):
                run.engine.last_flags()
                return True
            if state.step % config.tracking.pictures_every == 0 and state.step < run.total:
                run.draw()
            if _scores(config, state.step, run.total):
                run.evaluate()
            if _saves(config, state.step):
                run.save()
    watch.stop(run.engine.last_flags(), state.step)
    return False


@contextmanager
def _loading_told() -> Iterator[None]:
    """Says in one line that a loading subprocess was killed, which the DataLoader raises wherever we are."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        said = f"data.workers: a loading subprocess ended ({error}); start again to go on"
        raise DataError(said) from None


def _scores(config: Config, step: int, total: int) -> bool:
    every = config.train.evaluate_every
    return every is not None and (step % every == 0 or step == total)


def _saves(config: Config, step: int) -> bool:
    every = (config.checkpoint.every, config.checkpoint.keep_every)
    return any(n is not None and step % n == 0 for n in every)


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
        said = {
            "images_per_second": rate,
            "data_wait_share": self.waited / seconds,
            "seconds": now - self.start,
        }
        self.mark, self.first, self.waited = now, step, 0.0
        return {tracking.CLOCK + k: v for k, v in said.items()}


class _Watch:
    """Looks for what goes wrong in training."""

    def __init__(self, run: Run):
        self.run, self.low = run, 0
        self.told: set[str] = set()

    def look(self) -> None:
        """Warns, once each, of codes that are dead, and of a discriminator that has won.

        Its loss then stays near 0, and G learns nothing more.
        """
        metrics = self.run.metrics
        for name in self.run.spec.codes:
            if metrics[f"dead/{name}"]:
                self._tell(
                    f"the images show next to nothing of code {name} (step {self.run.state.step}, gain "
                    f"{metrics[f'gain/{name}']:.3f} nats); a larger codes.{name}.weight may help"
                )
        self.low = self.low + 1 if metrics["d/real"] + metrics["d/fake"] < NEAR_ZERO else 0
        if self.low == NEAR_ZERO_WINDOWS:
            self._tell(
                f"the discriminator's loss stays below {NEAR_ZERO} (step {self.run.state.step}), the sign "
                "of a failed run; a lower optim.discriminator.lr, objective.r1=1 or another seed may help"
            )

    def _tell(self, text: str) -> None:
        kind = text.partition(" (step")[0]
        if kind not in self.told and self.run.engine.is_main:
            say(f"warning: {text}")
        self.told.add(kind)

    def stop(self, flags: list[float] | None, step: int) -> bool:
        """Whether the flags of a step ask all processes to stop.

        Raises:
            TrainingError: they tell of a loss or a gradient that was not finite.
        """
        if flags is None:
            return False
        if not any(flags[1:]) or self.run.config.train.on_nonfinite == "skip":
            return flags[0] > 0
        which = " and ".join(
            n for n, flag in zip(("discriminator", "generator"), flags[1:], strict=True) if flag
        )
        last = checkpoint.find(self.run.folder)
        raise TrainingError(
            f"step {step}: the {which}'s loss or gradient is not finite; the weights "
            f"kept no trace of it; last checkpoint: {last.path if last else 'none'}; "
            "try lower learning rates, or optim.*.clip=1"
        )


def _headline(run: Run) -> str:
    engine, config = run.engine, run.config
    sizes = ", ".join(
        f"{name} {sum(p.numel() for p in network.parameters()):,}"
        for name, network in run.state.networks().items()
        if name != "generator_ema"
    )
    return (
        f"{config.run}: {run.manifest.samples:,} images of {run.manifest.name}, "
        f"steps {run.state.step:,} to {run.total:,} "
        f"of {config.train.batch_size} on {engine.world} x {engine.device.type}; parameters: {sizes}"
    )


def _short(run: Run) -> str:
    """What the progress bar shows: both losses and the bound per code."""
    m = run.metrics
    bounds = " ".join(f"{n}={m[f'bound/{n}']:.2f}" for n in run.spec.codes)
    return f"D={m['d/loss']:.2f} G={m['g/loss']:.2f} {bounds}"
