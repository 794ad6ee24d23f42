"""How a score's work is shared: as a table whose rows are independent of one another."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

DistributedMap = Callable[[int, int, Callable[[int], ArrayLike]], np.ndarray]
"""`distributed_map(count, width, task)` gives float64 [count, width] to all processes: row i is `task(i)`, which one
process computes. To be called by all processes, in the same order. A row may depend on its index alone: then
the table is the same, bit for bit, whatever the number of processes."""


def serial_map(count: int, width: int, task: Callable[[int], ArrayLike]) -> np.ndarray:
    """The `DistributedMap` of a single process."""
    table = np.zeros((count, width))
    for i in range(count):
        table[i] = task(i)
    return table
