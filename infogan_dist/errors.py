"""What a user can get wrong, said in one line: what, where, what to do."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STOPPED = 75  # exit status (EX_TEMPFAIL): asked to stop, saved, to be started again
GRACE_S = 3  # a process that fails takes the others down: the first one needs time to speak


class UserError(Exception):
    """What a user has to know. Its text is one line; a command line exits with its status."""

    status = 2


class ConfigError(UserError):
    """The configuration or the command line asks for something impossible."""


class DataError(UserError):
    """A shard set, an image or a checkpoint is not what it should be."""


class TrainingError(UserError):
    """Training itself went wrong, on every process at the same step."""

    status = 3


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns a `UserError` into one line on stderr and its exit status.

    Every process of a run meets the same error, so only the first says it; but a `DataError` may be known
    to one process alone, which therefore speaks for itself.
    """
    try:
        yield
    except UserError as error:
        first = int(os.environ.get("RANK", "0")) == 0
        if first or isinstance(error, DataError):
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        else:
            time.sleep(GRACE_S)
        sys.exit(error.status)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says in one line that a file of the run cannot be written; the run ends: its folder is the truth."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); make room and start again: the run goes "
            "on from its newest checkpoint"
        ) from None


def write_whole(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    os.replace(part, path)
