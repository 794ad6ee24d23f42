"""The interface by which a score divides its work among the processes: a table with independent rows."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from infogan_dist.errors import ConfigError, DataError

# Kinds of errors that are raised on all processes, as their numbers in the table that the processes exchange.
ERROR_KINDS: tuple[type[Exception], ...] = (RuntimeError, ConfigError, DataError)
MESSAGE_LENGTH = 1000  # characters of an error's message that the other processes receive


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


def with_shared_errors(distributed_map: DistributedMap, world: int) -> DistributedMap:
    """Return a map that raises the error of a task on all processes, if a task fails on any of them.

    Otherwise the process that fails would leave the map, and the other processes would wait for it without
    end.

    Args:
        distributed_map: the map of all processes, which computes row r of a table with a row per process on
            process r.
        world: number of processes.
    """
    if world == 1:
        return distributed_map

    def careful_map(count: int, width: int, task: Callable[[int], ArrayLike]) -> np.ndarray:
        errors: list[Exception] = []

        def row(i: int) -> np.ndarray:
            if not errors:
                try:
                    # torch warns of arrays that cannot be written, hence the copy.
                    return np.broadcast_to(np.asarray(task(i), np.float64), (width,)).copy()
                except Exception as error:
                    errors.append(error)
            return np.zeros(width)

        table = distributed_map(count, width, row)
        if distributed_map(world, 1, lambda rank: [bool(errors)]).any():
            messages = distributed_map(world, 1 + MESSAGE_LENGTH, lambda rank: _encode_error(errors))
            if errors:
                raise errors[0]
            raise _decode_error(next(row for row in messages if row[0]))
        return table

    return careful_map


def _encode_error(errors: list[Exception]) -> list[int]:
    """Return the kind of the first error, 0 for none, and the characters of its message."""
    if not errors:
        return [0] * (1 + MESSAGE_LENGTH)
    kind = max(i for i, error_type in enumerate(ERROR_KINDS) if i == 0 or isinstance(errors[0], error_type))
    text = str(errors[0]) if kind else f"{type(errors[0]).__name__}: {errors[0]}"
    return [1 + kind, *(ord(c) for c in text[:MESSAGE_LENGTH].ljust(MESSAGE_LENGTH))]


def _decode_error(row: np.ndarray) -> Exception:
    """Return the error that `_encode_error` encoded."""
    return ERROR_KINDS[int(row[0]) - 1]("".join(chr(int(c)) for c in row[1:]).rstrip())
