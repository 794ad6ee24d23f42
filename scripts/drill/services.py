"""Faults of the numbers of a training run, and of W&B."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from drill.bench import STEPS, Drill, DrillError, Fault
from drill.remote import FaultyServer

POISONED_STEP = 100
MAX_SLOWDOWN = 1.5  # against an undisturbed run; the start of W&B takes a part of so short a run


def poison_step(drill: Drill, run: Path, processes: int = 1) -> str:
    """Put a NaN into the images of one process: all end at the same step; without it the run continues."""
    started = drill.start(run, "checkpoint.every=10", processes=processes, poison=POISONED_STEP)
    message = drill.expect_error(
        started,
        f"step {POISONED_STEP + 1}",
        "discriminator",
        f"step_{POISONED_STEP:08d}",
        status=3 if processes == 1 else None,
    )
    drill.complete(run, "checkpoint.every=10", processes=processes)
    return message


def skip_poisoned_step(drill: Drill, run: Path) -> str:
    """Put a NaN into the images of one process under train.on_nonfinite=skip: the step has no effect."""
    drill.start(run, "train.on_nonfinite=skip", processes=2, poison=POISONED_STEP).wait_for_success()
    counts = [json.loads(line)["nonfinite/d"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    if sum(counts) != 1:
        raise DrillError(f"{sum(counts)} steps counted")
    return f"1 of {STEPS} steps without effect, counted"


def disturb_wandb(drill: Drill, run: Path, kind: str) -> str:
    """Train with a W&B server that fails: training must not take noticeably longer.

    An undisturbed run shares the processor core with it, so that both have the same load.

    Args:
        drill, run: as of each fault.
        kind: `gone` (nothing listens), `silent` (connections are accepted, nothing is sent) or `refusing`
            (each request is answered with an error).
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = None
        if kind == "silent":
            listener.listen(64)
        elif kind == "refusing":
            server = FaultyServer(drill.folder / "nothing")
            url = server.url
        env = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
        undisturbed = drill.peers[run] = run.with_name(f"{run.name}-undisturbed")
        with on_one_core():
            both = [drill.start(run, "tracking.trackers=[wandb]", env=env), drill.start(undisturbed)]
        for started in both:
            started.wait_for_success()
    if server is not None:
        server.close()
    duration, usual = training_seconds(run), training_seconds(undisturbed)
    observation = f"the loop took {duration:.1f} s, that of the undisturbed run {usual:.1f} s"
    if not duration < MAX_SLOWDOWN * usual:
        raise DrillError(observation)
    return observation


@contextmanager
def on_one_core() -> Iterator[None]:
    """Let processes that are started in this context share one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def training_seconds(run: Path) -> float:
    """Return the duration of a run's loop until its last logged step."""
    return json.loads((run / "timing.jsonl").read_text().splitlines()[-1])["seconds"]


def faults() -> list[Fault]:
    """Return the faults of the numbers and of W&B."""
    return [
        Fault("nan", "a loss that is not finite", poison_step),
        Fault(
            "nan-one-of-two",
            "a loss that is not finite on one of two processes",
            partial(poison_step, processes=2),
            2,
        ),
        Fault("nan-skip", "the same under on_nonfinite=skip", skip_poisoned_step, 2, False),
        Fault("wandb-gone", "W&B cannot be reached", partial(disturb_wandb, kind="gone")),
        Fault(
            "wandb-silent", "W&B accepts connections and never answers", partial(disturb_wandb, kind="silent")
        ),
        Fault("wandb-refusing", "W&B refuses every request", partial(disturb_wandb, kind="refusing")),
    ]
