"""The place of this process among those that a launcher started, and the command that starts several.

`torchrun` and `accelerate launch` describe a process's place by environment variables. They are read here
alone, without importing torch.
"""

import os
import signal
import sys
from dataclasses import dataclass

# Requests to stop: from Slurm, Kubernetes and `kill`; from Slurm before a time limit; from the keyboard.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass(frozen=True)
class ProcessPlace:
    """The place of a process among those of a run.

    Attributes:
        rank, world: index of this process, and the number of processes, over all machines.
        local_rank, local_world: the same on this machine.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int

    @property
    def is_first(self) -> bool:
        """Whether this is the main process, which logs, draws and saves."""
        return self.rank == 0


def process_place() -> ProcessPlace:
    """Return the place that the launcher gave this process; without a launcher, that of a single process."""

    def number(name: str, default: str) -> int:
        return int(os.environ.get(name, default))

    return ProcessPlace(
        number("RANK", "0"),
        number("WORLD_SIZE", "1"),
        number("LOCAL_RANK", "0"),
        number("LOCAL_WORLD_SIZE", "1"),
    )


def launch_command(*target: str, processes: int = 1) -> list[str]:
    """Return the command that runs a Python target on this machine.

    Args:
        target: arguments of the Python interpreter, such as `-m infogan_dist.train configs/mnist.yaml`.
        processes: more than one are started by torchrun.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *(torchrun if processes > 1 else []), *target]
