"""Real processes of one group: each runs the same function, as under torchrun."""

import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from tests.conftest import CONTEXT, environment, free_port

TIMEOUT_S = 60


def on_ranks(world: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `task(*arguments)` in each of `world` processes, and return their results by rank.

    Args:
        world: number of processes.
        task: a function of a module. It and its results are sent between processes, so results are plain
            numbers, strings and containers.
        arguments: of the task.
    """
    shared = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": free_port(), "ACCELERATE_USE_CPU": "true"}
    connections, processes = [], []
    for rank in range(world):
        env = {
            **environment(),
            **{k: str(v) for k, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()},
        }
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_answer, args=(theirs, env, task, arguments))
        process.start()
        theirs.close()
        connections.append(ours)
        processes.append(process)
    try:
        answers = [c.recv() if c.poll(TIMEOUT_S) else ("no answer in time", None) for c in connections]
    finally:
        for process in processes:
            process.kill()
            process.join()
    errors = [error for error, _ in answers if error]
    assert not errors, errors[0]
    return [result for _, result in answers]


def _answer(connection: Connection, env: dict[str, str], task: Callable[..., Any], arguments: tuple) -> None:
    os.environ.clear()
    os.environ.update(env)
    try:
        answer = (None, task(*arguments))
    except BaseException:
        answer = (traceback.format_exc(), None)
    connection.send(answer)
    connection.recv()  # the group stays complete until all processes have answered
