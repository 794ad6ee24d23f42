"""The training loop."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from infogan_dist.config.schema import Config
from infogan_dist.console import progress
from infogan_dist.errors import DataError, TrainingError
from infogan_dist.runtime import checkpoint, tracking
from infogan_dist.runtime.failure import ends_all_processes
from infogan_dist.training.monitor import FailureMonitor, StepTimer
from infogan_dist.training.run import Run

logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """How a call of `train` ended.

    Attributes:
        step: the run's last finished step.
        metrics: the last logged ones.
        images_per_second: over this call's steps, pictures and checkpoints included; 0 without steps.
        stopped: whether a stop was requested before the run's end.
    """

    step: int
    metrics: dict[str, float]
    images_per_second: float
    stopped: bool


@ends_all_processes()
def train(config: Config) -> Outcome:
    """Train a run to its end, from its newest checkpoint where it has one.

    With several processes an error ends all of them instead of being raised; see `runtime/failure.py`.

    Raises:
        ConfigError, DataError: see `Run`.
        TrainingError: a loss or a gradient was not finite.
    """
    run = Run(config)
    start, first_step = time.perf_counter(), run.state.step
    try:
        run.open()
        logger.info(_description(run))
        with _killed_workers_reported():
            stopped = _loop(run)
        run.save()
        if not stopped:
            run.draw()
        elif run.engine.is_main:
            tracking.mark_preempting(run.engine.accelerator)
    except BaseException:
        if run.engine.world == 1:
            run.engine.close()
        raise
    run.engine.close()
    images = (run.state.step - first_step) * config.train.batch_size
    return Outcome(run.state.step, run.metrics, images / (time.perf_counter() - start), stopped)


def _loop(run: Run) -> bool:
    """Do steps until the run's end, or until a stop is requested; return whether it was."""
    config, state, schedule = run.config, run.state, run.schedule
    batches, timer = run.batches(), StepTimer()
    monitor = FailureMonitor(list(run.spec.codes), run.train_step.losses.adversarial.winning_threshold)
    should_stop = partial(_should_stop, config)
    with progress(
        schedule.total,
        "step",
        initial=state.step,
        disable=not (config.tracking.progress and run.engine.is_main),
    ) as bar:
        if run.lacks_scores():
            run.evaluate()
        while state.step < schedule.total:
            batch = timer.next_batch(batches)
            if state.step == 0:
                run.draw_real(batch)
            images = config.clustering.batch_size if run.is_clustering else config.train.batch_size
            previous_flags = run.engine.exchange(run.step(batch))
            timer.count(images)
            bar.update()
            if schedule.should_log(state.step):
                run.log(timer.window())
                bar.set_postfix_str(_short_metrics(run.metrics, list(config.codes)))
                if run.engine.is_main and "d/loss" in run.metrics:
                    monitor.check(run.metrics, state.step)
            stop = should_stop(previous_flags, state.step - 1)
            saves = schedule.should_save(state.step) or schedule.should_evaluate(state.step)
            if stop or saves:
                # No step is saved before its own flags were read; the host waits for them here only.
                stop |= should_stop(run.engine.last_flags(), state.step)
            if stop:
                return True
            if schedule.should_draw(state.step):
                run.draw()
            if saves:
                run.save()  # before the scores, whose computation may fail
            if schedule.should_evaluate(state.step):
                run.evaluate()
    should_stop(run.engine.last_flags(), state.step)
    return False


def _should_stop(config: Config, flags: list[float] | None, step: int) -> bool:
    """Return whether a stop was requested.

    Args:
        config: the run's.
        flags: of `Engine.exchange`: stop requested, D's and G's loss or gradient not finite.
        step: the step that the flags belong to.

    Raises:
        TrainingError: a loss or a gradient was not finite, under `train.on_nonfinite=fail`.
    """
    if flags is None:
        return False
    stop, *nonfinite = flags
    if not any(nonfinite) or config.train.on_nonfinite == "skip":
        return stop > 0
    names = [n for n, flag in zip(("discriminator", "generator"), nonfinite, strict=True) if flag]
    names = ["classifier"] if step <= config.clustering.steps else names
    last = checkpoint.find(Path(config.run))
    raise TrainingError(
        f"step {step}: the {' and '.join(names)}'s loss or gradient is not finite; the weights are those of "
        f"the step before; last checkpoint: {last.path if last else 'none'}; "
        "try lower learning rates, or optim.*.clip=1"
    )


@contextmanager
def _killed_workers_reported() -> Iterator[None]:
    """Convert the DataLoader's error for a killed loading subprocess to one line."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        message = f"data.workers: a loading subprocess ended ({error}); start again to continue"
        raise DataError(message) from None


def _description(run: Run) -> str:
    engine, config = run.engine, run.config
    sizes = ", ".join(
        f"{name} {sum(p.numel() for p in network.parameters()):,}"
        for name, network in run.state.networks().items()
        if name != "generator_ema"
    )
    return (
        f"{config.run}: {run.manifest.samples:,} images of {run.manifest.name}, "
        f"steps {run.state.step:,} to {run.schedule.total:,} "
        f"of {config.train.batch_size} on {engine.world} x {engine.device.type}; parameters: {sizes}"
    )


def _short_metrics(metrics: dict[str, float], codes: list[str]) -> str:
    """Return both losses and the bound of each code, for the progress bar; at first the classifier's."""
    if "d/loss" not in metrics:
        return f"classifier={metrics['classifier/loss']:.2f} agreement={metrics['classifier/agreement']:.2f}"
    bounds = " ".join(f"{n}={metrics[f'bound/{n}']:.2f}" for n in codes)
    return f"D={metrics['d/loss']:.2f} G={metrics['g/loss']:.2f} {bounds}"
