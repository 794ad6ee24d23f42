"""The interface by which a score divides its work among the processes: a table with independent rows."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike


class DistributedMap(Protocol):
    """A function that computes the rows of a table on several processes, such as `Engine.distributed_map`."""

    def __call__(self, count: int, width: int, task: Callable[[int], ArrayLike]) -> np.ndarray:
        """Compute a table whose rows are divided among the processes.

        All processes call it, in the same order.

        Args:
            count, width: rows and columns of the table.
            task: maps the index of a row to its `width` numbers, which must depend on that index alone. One
                process computes each row.

        Returns:
            float64 [count, width], the same on all processes, and bit for bit the same for any number of
            them.
        """
        ...


def serial_map(count: int, width: int, task: Callable[[int], ArrayLike]) -> np.ndarray:
    """Compute all rows in this process; the `DistributedMap` of a single process."""
    table = np.zeros((count, width))
    for i in range(count):
        table[i] = task(i)
    return table
