"""The training command with an error planted on one process, and a process group that behaves like NCCL's.

    torchrun --nproc-per-node 2 -m tests.rigs.failing_train RANK PLACE RECORD CONFIG.yaml [key=value ...]

PLACE is a key of `PLACES`. RECORD is a file to which the failing process writes the time of the error.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from infogan_dist import train
from infogan_dist.errors import DataError
from infogan_dist.launcher import STOP_SIGNALS, process_place
from infogan_dist.runtime.run_folder import RunFolder
from infogan_dist.scores.scored_model import ScoredModel
from infogan_dist.training.run import Run

FAULT_STEP = 3
MESSAGE = "planted: an error of one process"
# Class, method and exception. Only a user's error is printed as one line.
PLACES: dict[str, tuple[type, str, type[BaseException]]] = {
    "open": (Run, "open", OSError),
    "step": (Run, "step", DataError),
    "save": (RunFolder, "save", OSError),
    "draw": (Run, "draw", MemoryError),
    "score": (ScoredModel, "generated_readers", OSError),
}
SECONDS_OF_OPEN_SOCKETS = 20


def block_for_ever(*arguments: Any, **options: Any) -> None:
    """Wait like a call into C++, during which Python calls no signal handlers."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    while True:
        time.sleep(1)


def leave_sockets_open() -> None:
    """Give this process's sockets to another one, so that its peers wait for it after its end, as under NCCL.

    With gloo they would otherwise fail as soon as the connection is closed.
    """
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    sockets = [int(path.name) for path in links if os.readlink(path).startswith("socket:")]
    quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.Popen(["sleep", str(SECONDS_OF_OPEN_SOCKETS)], pass_fds=sockets, env={}, **quiet)


def plant(place: str, record: Path) -> None:
    """Make a method raise an error, from `FAULT_STEP` on if it is called in each step."""
    owner, name, error = PLACES[place]
    method = getattr(owner, name)

    def failing(self: Any, *arguments: Any, **options: Any) -> Any:
        if name == "step" and self.state.step < FAULT_STEP:
            return method(self, *arguments, **options)
        leave_sockets_open()
        if not record.exists():
            record.write_text(str(time.time()))
        raise error(MESSAGE)

    setattr(owner, name, failing)


if __name__ == "__main__":
    rank, place, record, *words = sys.argv[1:]
    dist.destroy_process_group = block_for_ever
    if process_place().rank == int(rank):
        plant(place, Path(record))
    train.main(words)
