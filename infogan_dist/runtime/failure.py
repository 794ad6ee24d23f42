"""The end of all processes of a run after an error on one of them.

The other processes wait for the failed one in a collective operation, which under NCCL ends only at its
time-out, and destroying the process group would wait for them in turn. A process that fails therefore prints
its message first. Then it writes its rank and exit status to the key-value store of the process group, ends
its trackers within a time limit, and leaves by `os._exit`. A thread of every process reads the store each
second, and ends its process likewise.

The thread has a connection of its own to the store. It runs while the main thread is blocked in a collective
operation, when Python calls no signal handlers; with every backend and launcher, and on several hosts.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch.distributed as dist

from infogan_dist.console import exit_status, is_raised_by_all, report_error

POLL_S = 1.0  # between two reads of the store
STORE_TIMEOUT_S = 1.0  # for writing to the store, before the message is printed in any case
TRACKERS_TIMEOUT_S = 8.0  # for the trackers, W&B in particular, to send what they have
AGREEMENT_S = 5.0  # for all processes to report an error that they have alike
MAX_MISSED_READS = 3  # then the store is lost; at a normal end the watch is closed before
KEY = "infogan_dist/failure"

logger = logging.getLogger(__name__)


class FailureWatch:
    """Ends this process soon after another one has failed.

    Args:
        store: the store of the process group.
        rank: index of this process.

    Attributes:
        end_trackers: is called with the exit status before the process ends.
    """

    def __init__(self, store: dist.Store, rank: int):
        # A connection of its own, since the main thread may be waiting in the other one.
        self._store, self._rank = store.clone(), rank  # type: ignore[attr-defined]
        self.end_trackers: Callable[[int], None] = lambda status: None
        self._closed = threading.Event()
        self._ending = threading.Lock()  # held by the thread that ends the process, and never released
        self._agreements = 0
        self._launcher = os.getppid() if dist.is_torchelastic_launched() else None
        threading.Thread(target=self._watch, name="failure-watch", daemon=True).start()

    def close(self) -> None:
        """Stop watching: from here on all processes end normally."""
        self._closed.set()

    def fails_alike(self, world: int, message: str) -> bool:
        """Print a warning on the first process that calls this; return whether all do, within `AGREEMENT_S`.

        The processes use the store for this, since one that has not failed waits in a collective operation.
        """
        self._agreements += 1
        key, deadline = f"{KEY}/{self._agreements}", time.monotonic() + AGREEMENT_S
        if self._store.add(key, 1) == 1:
            logger.warning(message)
        while time.monotonic() < deadline:
            if self._store.add(key, 0) == world:
                return True
            time.sleep(0.1)
        return False

    def fail(self, error: BaseException) -> NoReturn:
        """Print an error, publish the failure, and end this process.

        If another process has failed before, the error is its consequence, and one line names that process.
        """
        status = exit_status(error)
        try:
            self._ending.acquire()
            if is_raised_by_all(error) and self._rank > 0:
                time.sleep(POLL_S)  # so that the first process, whose messages users read, prints it
            rank, status = self._publish(status)
            if rank == self._rank:
                report_error(error)
            elif not is_raised_by_all(error):
                _report_failure_of(rank)
            self._leave(status)
        finally:  # also if Ctrl-C is pressed once more
            os._exit(status)

    def _publish(self, status: int) -> tuple[int, int]:
        """Write this process's failure to the store; return rank and exit status of the first that failed."""
        first = f"{self._rank} {status}"

        def publish() -> None:
            nonlocal first
            first = self._store.compare_set(KEY, "", first).decode()

        _call_within(STORE_TIMEOUT_S, publish)
        first_rank, first_status = first.split()
        return int(first_rank), int(first_status)

    def _watch(self) -> None:
        missed = 0
        while not self._closed.wait(POLL_S):
            if self._launcher not in (None, os.getppid()):
                # The other processes are alive: a checkpoint can be saved.
                logger.warning("the launcher has ended; stopping")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            try:
                failure = self._store.get(KEY).decode() if self._store.check([KEY]) else None
                missed = 0
            except RuntimeError:
                missed, failure = missed + 1, None
            if (failure or missed == MAX_MISSED_READS) and self._ending.acquire(blocking=False):
                if failure is None:
                    logger.warning("the store of the process group is lost: process 0 or its launcher ended")
                    self._leave(1)
                rank, status = map(int, failure.split())
                _report_failure_of(rank)
                self._leave(status)

    def _leave(self, status: int) -> NoReturn:
        start = time.monotonic()
        _call_within(TRACKERS_TIMEOUT_S, lambda: self.end_trackers(status))
        if self._rank == 0:
            # This process may host the store, in which the others have yet to read of the failure.
            time.sleep(max(0.0, 2 * POLL_S - (time.monotonic() - start)))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


_watch: FailureWatch | None = None


def start_watch(store: dist.Store, rank: int) -> FailureWatch:
    """Watch for failures of the other processes; see `FailureWatch`."""
    global _watch
    _watch = FailureWatch(store, rank)
    return _watch


def end_trackers_by(end: Callable[[int], None]) -> None:
    """Set the function that ends the trackers, given the exit status, before this process leaves."""
    if _watch is not None:
        _watch.end_trackers = end


@contextmanager
def ends_all_processes() -> Iterator[None]:
    """End all processes of a run after an error in the block, or in the decorated function.

    With one process, or before the processes have connected, the error is raised as usual. Otherwise it is
    printed, and this process ends with the status of the error, by `os._exit`.
    """
    try:
        yield
    except BaseException as error:
        if _watch is None:
            raise
        _watch.fail(error)


def _report_failure_of(rank: int) -> None:
    logger.warning("process %d failed, see its message; this process ends", rank)


def _call_within(seconds: float, function: Callable[[], None]) -> None:
    """Call a function in a thread, wait for its end for at most `seconds`, and ignore its errors."""

    def call() -> None:
        with contextlib.suppress(Exception):
            function()

    # A thread may be refused if the process has run out of memory.
    with contextlib.suppress(RuntimeError):
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(seconds)
