"""Messages and progress of the command lines; all of them go to stderr."""

import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from infogan_dist.credentials import redact_text
from infogan_dist.errors import EXIT_INTERRUPTED, DataError, MachineError, UserError
from infogan_dist.launcher import process_place

PROGRESS_INTERVAL_S = 30.0  # between two lines of progress where stderr is not a terminal
# A launcher kills the other processes when one fails: they wait, so that the first one can print its message.
ERROR_DELAY_S = 3.0
LINE_FORMAT = "{desc}{percentage:.0f}%, {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
PACKAGE_LOGGER = logging.getLogger("infogan_dist")
logger = logging.getLogger(__name__)


class _PrefixFormatter(logging.Formatter):
    """Prefix warnings and errors with `warning: ` and `error: `; remove the credentials from URLs."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return prefix + redact_text(super().format(record))


def set_up_logging(quiet: bool = False) -> None:
    """Print the package's messages to stderr, and the tracebacks of errors that nothing catches.

    Args:
        quiet: print warnings and errors only, and no progress. The other processes of a run are always quiet,
            so that a message appears once.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrefixFormatter())
    sys.excepthook = lambda kind, error, trace: report_error(error)  # without the credentials of URLs
    PACKAGE_LOGGER.handlers = [handler]
    PACKAGE_LOGGER.propagate = False
    PACKAGE_LOGGER.setLevel(logging.WARNING if quiet or not process_place().is_first else logging.INFO)


def report_error(error: BaseException) -> None:
    """Print a `UserError` as one line, any other exception with its traceback; no credentials of URLs."""
    if isinstance(error, UserError):
        logger.error(" ".join(str(error).split()))
    else:
        sys.stderr.write(redact_text("".join(traceback.format_exception(error))))
        sys.stderr.flush()  # before anything that may block, also if it is a buffered file


def exit_status(error: BaseException) -> int:
    """Return the exit status of a process that ends with an exception."""
    if isinstance(error, UserError):
        return error.status
    return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def is_raised_by_all(error: BaseException) -> bool:
    """Whether all processes of a run raise the same error. A `DataError` may occur on one of them alone."""
    return isinstance(error, UserError) and not isinstance(error, DataError)


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Print a `UserError` as one line and exit with its status.

    An error that all processes raise is printed by the first one only, a `MachineError` by the first one of
    its machine. For errors after the processes have connected see `runtime/failure.py`.
    """
    try:
        yield
    except UserError as error:
        place = process_place()
        is_first = place.local_rank == 0 if isinstance(error, MachineError) else place.is_first
        if is_first or not is_raised_by_all(error):
            report_error(error)
        else:
            time.sleep(ERROR_DELAY_S)
        sys.exit(error.status)


class _ProgressLines:
    """The part of tqdm's interface that is used here, as one message per `PROGRESS_INTERVAL_S`."""

    def __init__(self, total: int, initial: int, unit: str, description: str):
        self.total, self.count, self.unit, self.description = total, initial, unit, description
        self.initial, self.postfix = initial, ""
        self.start = self.last_message = time.monotonic()

    def update(self, count: int = 1) -> None:
        self.count += count
        if time.monotonic() - self.last_message >= PROGRESS_INTERVAL_S:
            self._print()

    def set_postfix_str(self, text: str) -> None:
        self.postfix = text

    def _print(self) -> None:
        self.last_message = time.monotonic()
        meter = tqdm.format_meter(
            self.count,
            self.total,
            self.last_message - self.start,
            prefix=f"{self.description}: " if self.description else "",
            unit=self.unit,
            postfix=self.postfix,
            initial=self.initial,
            bar_format=LINE_FORMAT,
        )
        logger.info(meter)


@contextmanager
def progress(
    total: int, unit: str, *, initial: int = 0, description: str = "", disable: bool = False
) -> Iterator[Any]:
    """Show progress on stderr: a bar on a terminal, else a line per `PROGRESS_INTERVAL_S` and at the end.

    Messages that are logged within the block appear above the bar.

    Args:
        total, initial: number of units at the end and at the start.
        unit: singular name of a unit, such as `step`.
        description: printed in front.
        disable: show nothing. Nothing is printed either after `set_up_logging(quiet=True)`, or without a
            call of `set_up_logging`.

    Yields:
        An object with `update(count=1)` and `set_postfix_str(text)`, as of tqdm.
    """
    disable = disable or not logger.isEnabledFor(logging.INFO)
    if disable or sys.stderr.isatty():
        bar = tqdm(
            total=total,
            initial=initial,
            unit=unit,
            desc=description or None,
            disable=disable,
            dynamic_ncols=True,
        )
        with logging_redirect_tqdm([PACKAGE_LOGGER]), bar:
            yield bar
    else:
        lines = _ProgressLines(total, initial, unit, description)
        yield lines
        lines._print()
