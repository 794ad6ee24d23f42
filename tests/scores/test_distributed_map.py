"""An error of a task is raised on all processes."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import ArrayLike

from infogan_dist.errors import ConfigError, DataError
from infogan_dist.scores.distributed_map import DistributedMap, serial_map, with_shared_errors


class Processes:
    """Threads that play the processes of a run, each with the map of its rank."""

    def __init__(self, world: int):
        self.world, self.barrier = world, threading.Barrier(world, timeout=20)
        self.tables: list[np.ndarray] = [np.zeros(0)] * world

    def map_of(self, rank: int) -> DistributedMap:
        def distributed_map(count: int, width: int, task: Callable[[int], ArrayLike]) -> np.ndarray:
            table = np.zeros((count, width))
            for i in range(count * rank // self.world, count * (rank + 1) // self.world):
                table[i] = task(i)
            self.tables[rank] = table
            self.barrier.wait()
            result = sum(self.tables)
            self.barrier.wait()
            return np.asarray(result)

        return with_shared_errors(distributed_map, self.world)


def run_all(world: int, task: Callable[[int], ArrayLike]) -> list[np.ndarray | Exception]:
    """Return what a map of 6 rows and 2 columns returns or raises on each process."""
    processes = Processes(world)
    results: list[np.ndarray | Exception] = [np.zeros(0)] * world

    def run(rank: int) -> None:
        try:
            results[rank] = processes.map_of(rank)(6, 2, task)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_without_errors_the_table_is_that_of_one_process():
    expected = serial_map(6, 2, lambda i: [i, i**2])
    assert all(np.array_equal(np.asarray(table), expected) for table in run_all(3, lambda i: [i, i**2]))


@pytest.mark.parametrize(
    ("error", "other_type", "message"),
    [
        (DataError("shard é: missing; restore it"), DataError, "shard é: missing; restore it"),
        (ConfigError("key: wrong; set it"), ConfigError, "key: wrong; set it"),
        (ValueError("negative"), RuntimeError, "ValueError: negative"),
    ],
)
def test_the_error_of_one_process_is_raised_on_all(
    error: Exception, other_type: type[Exception], message: str
):
    def task(i: int) -> list[int]:
        if i == 3:
            raise error
        return [i, i]

    first, failing, last = run_all(3, task)
    assert failing is error
    for other in (first, last):
        assert type(other) is other_type
        assert str(other) == message
