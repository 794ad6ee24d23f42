"""Faults of processes: killed, stopped, suspended, moved."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np

from drill.bench import STEPS, TRAINEE, Drill, DrillError, Fault, final_weights
from infogan_dist.errors import EXIT_STOPPED

SUSPENSION_S = 3


def kill_run(drill: Drill, run: Path, processes: int = 1, times: int = 1) -> str:
    """Kill all processes of a run, at another step each time, and start it again."""
    for i in range(times):
        started = drill.start(run, processes=processes)
        started.wait_for_step((i + 1) * STEPS // (times + 1))
        for pid in [*started.worker_pids(), started.process.pid]:
            os.kill(pid, signal.SIGKILL)
        started.wait()
    return drill.resume_message(drill.complete(run, processes=processes))


def kill_worker(drill: Drill, run: Path, rank: int) -> str:
    """Kill one of two workers under torchrun, which restarts both without help."""
    # torchrun reads each of its options from a variable as well.
    started = drill.start(run, processes=2, env={"PET_MAX_RESTARTS": "3"})
    started.wait_for_step(STEPS // 2)
    os.kill(started.worker_pids()[rank], signal.SIGKILL)
    return f"restarted by the launcher, {drill.resume_message(started.wait_for_success())}"


def stop_run(drill: Drill, run: Path, number: int, processes: int = 1, rank: int | None = None) -> str:
    """Send a signal that requests a stop, then start the run again.

    Args:
        drill, run: as of each fault.
        number: the signal.
        processes: number of processes.
        rank: the process that receives the signal; None: all of them.
    """
    started = drill.start(run, processes=processes)
    started.wait_for_step(STEPS // 3)
    pids = started.worker_pids() if processes > 1 else [started.process.pid]
    for pid in pids if rank is None else [pids[rank]]:
        os.kill(pid, number)
    status, output = started.wait()
    if "stopped at step" not in output or (processes == 1 and status != EXIT_STOPPED):
        raise DrillError(f"exit status {status}: {output[-300:]}")
    step = output.partition("stopped at step ")[2].partition(",")[0]
    drill.complete(run, processes=processes)
    return f"saved at step {step}, exit status {status}, continued"


def suspend_worker(drill: Drill, run: Path) -> str:
    """Suspend one of two workers for a while: the other waits for it."""
    started = drill.start(run, processes=2)
    started.wait_for_step(STEPS // 3)
    suspended = started.worker_pids()[1]
    os.kill(suspended, signal.SIGSTOP)
    time.sleep(SUSPENSION_S)
    os.kill(suspended, signal.SIGCONT)
    started.wait_for_success()
    return "the other waited"


def kill_loader(drill: Drill, run: Path) -> str:
    """Kill a data-loading subprocess: the run ends with an error, and continues when it is started again."""
    started = drill.start(run)
    started.wait_for_step(STEPS // 3)
    children = Path(f"/proc/{started.process.pid}/task/{started.process.pid}/children").read_text().split()
    for child in children:
        if str(TRAINEE).encode() in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
    message = drill.expect_error(started, "a loading subprocess ended")
    drill.complete(run)
    return message


def move_run(drill: Drill, run: Path) -> str:
    """Move a run in fp64 from four processes to one, then to two: its weights are equal up to rounding."""
    exact = "train.precision=fp64"
    for processes, steps in ((4, 80), (1, 150), (2, STEPS)):
        drill.complete(run, exact, f"train.steps={steps}", processes=processes)
    reference = run.with_name("move-undisturbed")
    drill.complete(reference, exact)
    actual, wanted = final_weights(run), final_weights(reference)
    error = max(
        float(np.abs(actual[k] - wanted[k]).max() / max(np.abs(wanted[k]).max(), 1e-9)) for k in wanted
    )
    if error > 1e-9:
        raise DrillError(f"weights differ by {error:.1e}")
    return f"weights differ by {error:.1e} of the largest"


def kill_while_saving(drill: Drill, run: Path) -> str:
    """Kill a run several times that saves after every step."""
    options = ("checkpoint.every=1", "checkpoint.keep=2")
    for i in range(4):
        started = drill.start(run, *options)
        started.wait_for_step(20 * (i + 1))
        started.process.kill()
        started.wait()
    drill.complete(run, *options)
    return f"left behind: {len(list((run / 'checkpoints').glob('.*')))} incomplete checkpoints"


def faults() -> list[Fault]:
    """Return the faults of processes."""
    term, usr1, interrupt = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT
    return [
        Fault("kill", "kill -9, started again", kill_run),
        Fault("kill-thrice", "kill -9 three times", partial(kill_run, times=3)),
        Fault("kill-two", "kill -9 of two processes and their launcher", partial(kill_run, processes=2), 2),
        Fault("kill-four", "kill -9 of four processes and their launcher", partial(kill_run, processes=4), 4),
        Fault("kill-worker-0", "kill -9 of the first of two workers", partial(kill_worker, rank=0), 2),
        Fault("kill-worker-1", "kill -9 of the second of two workers", partial(kill_worker, rank=1), 2),
        Fault("kill-loader", "kill -9 of a loading subprocess", kill_loader),
        Fault("kill-saving", "kill -9 four times, saving after every step", kill_while_saving),
        Fault("term", "SIGTERM", partial(stop_run, number=term)),
        Fault("usr1", "SIGUSR1", partial(stop_run, number=usr1)),
        Fault("interrupt", "Ctrl-C", partial(stop_run, number=interrupt)),
        Fault("term-two", "SIGTERM to both workers", partial(stop_run, number=term, processes=2), 2),
        Fault(
            "usr1-one-of-two",
            "SIGUSR1 to one of two workers",
            partial(stop_run, number=usr1, processes=2, rank=1),
            2,
        ),
        Fault("pause", f"one of two workers suspended for {SUSPENSION_S} s", suspend_worker, 2),
        Fault("move", "stopped, and moved from 4 processes to 1 to 2", move_run, 1, False),
    ]
