"""Real processes of one group: each runs the same function, as under torchrun."""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from infogan_dist.console import set_up_logging
from tests.conftest import CONTEXT, environment, free_port
from tests.rigs.processes import wait_until

TIMEOUT_S = 60


@dataclass(frozen=True)
class RankEnd:
    """How a process of a group ended.

    Attributes:
        status: its exit status; negative: the signal that ended it.
        output: what it wrote to stderr.
    """

    status: int
    output: str


def on_ranks(world: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `task(*arguments)` in each of `world` processes, and return their results by rank.

    Args:
        world: number of processes.
        task: a function of a module. It and its results are sent between processes, so results are plain
            numbers, strings and containers.
        arguments: of the task.
    """
    connections, processes = _start(world, _answer, task, arguments)
    try:
        answers = [c.recv() if c.poll(TIMEOUT_S) else ("no answer in time", None) for c in connections]
    finally:
        for process in processes:
            process.kill()
            process.join()
    errors = [error for error, _ in answers if error]
    assert not errors, errors[0]
    return [result for _, result in answers]


def ends_of_ranks(world: int, folder: Path, task: Callable[..., Any], *arguments: Any) -> list[RankEnd]:
    """Call `task(*arguments)` in each of `world` processes, and return by rank how they ended.

    Args:
        world: number of processes.
        folder: for their output.
        task, arguments: as of `on_ranks`.
    """
    _, processes = _start(world, _end, task, arguments, str(folder))
    try:
        wait_until(lambda: all(p.exitcode is not None for p in processes), TIMEOUT_S)
    finally:
        for process in processes:
            process.kill()
            process.join()
    outputs = [(folder / f"{rank}.err").read_text() for rank in range(world)]
    return [RankEnd(p.exitcode, output) for p, output in zip(processes, outputs, strict=True)]


def _start(world: int, target: Callable[..., None], *arguments: Any) -> tuple[list[Connection], list[Any]]:
    """Start the processes of a group, and return a connection to each, and the processes."""
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": free_port(), "ACCELERATE_USE_CPU": "true"}
    connections, processes = [], []
    for rank in range(world):
        env = {
            **environment(),
            **{k: str(v) for k, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()},
        }
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=target, args=(theirs, env, *arguments))
        process.start()
        theirs.close()
        connections.append(ours)
        processes.append(process)
    return connections, processes


def _answer(connection: Connection, env: dict[str, str], task: Callable[..., Any], arguments: tuple) -> None:
    os.environ.clear()
    os.environ.update(env)
    try:
        answer = (None, task(*arguments))
    except BaseException:
        answer = (traceback.format_exc(), None)
    connection.send(answer)
    connection.recv()  # the group stays complete until all processes have answered


def _end(
    connection: Connection, env: dict[str, str], task: Callable[..., Any], arguments: tuple, folder: str
) -> None:
    os.environ.clear()
    os.environ.update(env)
    output = os.open(f"{folder}/{env['RANK']}.err", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 2)
    sys.stderr = os.fdopen(2, "w")
    set_up_logging()
    task(*arguments)
