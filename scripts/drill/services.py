"""Faults of training itself and of the services beside it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from drill.bench import STEPS, Drill, Fault, NotSurvived
from drill.remote import BadServer

SLOWER = 1.5  # times as long, beside an undisturbed run; W&B's own start takes a share of so short a run


def not_finite(drill: Drill, run: Path, processes: int = 1) -> str:
    """One image of one process is not finite: all end at the same step; without it the run goes on."""
    running = drill.start(run, "checkpoint.every=10", processes=processes, poison=100)
    status = 3 if processes == 1 else None
    said = drill.refused(running, "step 101", "discriminator", "step_00000100", status=status)
    drill.finish(run, "checkpoint.every=10", processes=processes)
    return said


def not_finite_skipped(drill: Drill, run: Path) -> str:
    status, said = drill.start(run, "train.on_nonfinite=skip", processes=2, poison=100).end()
    if status:
        raise NotSurvived(said[-300:])
    counts = [json.loads(line)["nonfinite/d"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    if sum(counts) != 1:
        raise NotSurvived(f"{sum(counts)} steps counted")
    return f"1 of {STEPS} steps without effect, counted"


def wandb_trouble(drill: Drill, run: Path, kind: str) -> str:
    """W&B cannot be reached, does not answer, or refuses: training takes no longer.

    An undisturbed run shares the processor core with it, so that both meet the same load.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = None
        if kind == "silent":
            listener.listen(64)  # connections open, and nobody ever answers
        elif kind == "refusing":
            server = BadServer(drill.folder / "nothing")
            url = server.url
        env = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
        calm = drill.peers[run] = run.with_name(f"{run.name}-undisturbed")
        with on_one_core():
            both = [drill.start(run, "tracking.trackers=[wandb]", env=env), drill.start(calm)]
        for running in both:
            status, said = running.end()
            if status:
                raise NotSurvived(f"exit status {status}: {said[-400:]}")
    if server is not None:
        server.close()
    took, usual = last_second(run), last_second(calm)
    if not took < SLOWER * usual:
        raise NotSurvived(f"the loop took {took:.1f} s, beside it an undisturbed one {usual:.1f} s")
    return f"the loop took {took:.1f} s, beside it an undisturbed one {usual:.1f} s"


@contextmanager
def on_one_core() -> Iterator[None]:
    """Processes that are started in here share one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def last_second(run: Path) -> float:
    return json.loads((run / "timing.jsonl").read_text().splitlines()[-1])["seconds"]


def faults() -> list[Fault]:
    """What may happen to the numbers, and to W&B."""
    return [
        Fault("nan", "a loss that is not finite", not_finite),
        Fault(
            "nan-one-of-two", "a loss that is not finite on one of two", partial(not_finite, processes=2), 2
        ),
        Fault("nan-skip", "the same under on_nonfinite=skip", not_finite_skipped, 2, False),
        Fault("wandb-gone", "W&B cannot be reached", partial(wandb_trouble, kind="gone")),
        Fault(
            "wandb-silent", "W&B takes connections and never answers", partial(wandb_trouble, kind="silent")
        ),
        Fault("wandb-refusing", "W&B refuses every request", partial(wandb_trouble, kind="refusing")),
    ]
