"""Faults of processes: killed, stopped, paused, moved."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np

from drill.bench import STEPS, TRAINEE, Drill, Fault, NotSurvived, weights


def killed(drill: Drill, run: Path, processes: int = 1, times: int = 1) -> str:
    """Killed with all its processes, at another step each time, and started again by hand."""
    for i in range(times):
        running = drill.start(run, processes=processes)
        running.reach((i + 1) * STEPS // (times + 1))
        for pid in [*running.workers(), running.process.pid]:
            os.kill(pid, signal.SIGKILL)
        running.end()
    return drill.finish(run, processes=processes).splitlines()[0].replace(str(drill.folder), "...")[:120]


def worker_killed(drill: Drill, run: Path, rank: int) -> str:
    """One of two workers dies under torchrun, which starts both again; nobody helps."""
    running = drill.start(run, processes=2, restarts=3)
    running.reach(STEPS // 2)
    os.kill(running.workers()[rank], signal.SIGKILL)
    status, said = running.end()
    if status:
        raise NotSurvived(f"exit status {status}: {said[-400:]}")
    return "restarted by the launcher, " + next(
        line for line in said.splitlines() if "going on from" in line
    ).replace(str(drill.folder), "...")


def asked_to_stop(drill: Drill, run: Path, number: int, processes: int = 1, only: int | None = None) -> str:
    running = drill.start(run, processes=processes)
    running.reach(STEPS // 3)
    pids = running.workers() if processes > 1 else [running.process.pid]
    for pid in pids if only is None else [pids[only]]:
        os.kill(pid, number)
    status, said = running.end()
    if "stopped at step" not in said or (processes == 1 and status != 75):
        raise NotSurvived(f"exit status {status}: {said[-300:]}")
    step = said.partition("stopped at step ")[2].partition(",")[0]
    drill.finish(run, processes=processes)
    return f"saved at step {step}, exit status {status}, went on"


def paused(drill: Drill, run: Path) -> str:
    running = drill.start(run, processes=2)
    running.reach(STEPS // 3)
    frozen = running.workers()[1]
    os.kill(frozen, signal.SIGSTOP)
    time.sleep(3)
    os.kill(frozen, signal.SIGCONT)
    status, said = running.end()
    if status:
        raise NotSurvived(said[-300:])
    return "the other waited"


def loader_killed(drill: Drill, run: Path) -> str:
    """A data-loading subprocess dies: the run says so, and goes on when started again."""
    running = drill.start(run)
    running.reach(STEPS // 3)
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()
    for child in children:
        if str(TRAINEE).encode() in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
    said = drill.refused(running, "a loading subprocess ended")
    drill.finish(run)
    return said


def moved(drill: Drill, run: Path) -> str:
    """Four processes, then one, then two, in fp64: the same images, and the same weights to rounding."""
    exact = "train.precision=fp64"
    for processes, steps in ((4, 80), (1, 150), (2, STEPS)):
        drill.finish(run, exact, f"train.steps={steps}", processes=processes)
    through = run.with_name("moved-through")
    drill.finish(through, exact)
    ours, theirs = weights(run), weights(through)
    worst = max(float(np.abs(ours[k] - theirs[k]).max() / max(np.abs(theirs[k]).max(), 1e-9)) for k in theirs)
    if worst > 1e-9:
        raise NotSurvived(f"weights differ by {worst:.1e}")
    return f"weights differ by {worst:.1e} of the largest"


def killed_while_saving(drill: Drill, run: Path) -> str:
    """Killed again and again in a run that saves after every step."""
    often = ("checkpoint.every=1", "checkpoint.keep=2")
    for i in range(4):
        running = drill.start(run, *often)
        running.reach(20 * (i + 1))
        running.process.kill()
        running.end()
    drill.finish(run, *often)
    return f"left behind: {len(list((run / 'checkpoints').glob('.*')))} half-written checkpoints"


def faults() -> list[Fault]:
    """What may happen to processes."""
    term, usr1, stop = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT
    return [
        Fault("kill", "kill -9, started again", killed),
        Fault("kill-thrice", "kill -9 three times", partial(killed, times=3)),
        Fault("kill-two", "kill -9 of two processes and their launcher", partial(killed, processes=2), 2),
        Fault("kill-four", "kill -9 of four processes and their launcher", partial(killed, processes=4), 4),
        Fault("kill-worker-0", "kill -9 of the first of two workers", partial(worker_killed, rank=0), 2),
        Fault("kill-worker-1", "kill -9 of the second of two workers", partial(worker_killed, rank=1), 2),
        Fault("kill-loader", "kill -9 of a loading subprocess", loader_killed),
        Fault("kill-saving", "kill -9 four times, saving after every step", killed_while_saving),
        Fault("term", "SIGTERM", partial(asked_to_stop, number=term)),
        Fault("usr1", "SIGUSR1", partial(asked_to_stop, number=usr1)),
        Fault("interrupt", "Ctrl-C", partial(asked_to_stop, number=stop)),
        Fault("term-two", "SIGTERM to both workers", partial(asked_to_stop, number=term, processes=2), 2),
        Fault(
            "usr1-one-of-two",
            "SIGUSR1 to one of two",
            partial(asked_to_stop, number=usr1, processes=2, only=1),
            2,
        ),
        Fault("pause", "one of two workers stopped for 3 s", paused, 2),
        Fault("move", "stopped, and moved from 4 processes to 1 to 2", moved, 1, False),
    ]
